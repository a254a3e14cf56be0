// Calls of `/v1/responses` or `/v1/messages` by the SDK that speaks it, one after the other, with mppx's paying fetch under it, or its session fetch.
//   --base URL --sdk openai|anthropic|ai-openai|ai-anthropic [--how json,stream,helper] [--rpc URL [--session]] [--key 0x…] [--prompt P] [--limit N] [--max_retries N]
// Without `--rpc` nothing pays: which error it makes of our 402.
import Anthropic from '@anthropic-ai/sdk'
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { generateText, streamText } from 'ai'
import OpenAI from 'openai'
import { errorLine, interesting, once, options } from './lib.mjs'
import { payer } from './pay.mjs'
import { sessionFetch } from './session-pay.mjs'

const retries = (o) => (o.max_retries === undefined ? {} : { maxRetries: Number(o.max_retries) })

const sdks = {
  async openai(o, fetch) {
    const client = new OpenAI({ baseURL: `${o.base}/v1`, apiKey: 'client-key', fetch, ...retries(o) })
    const body = { model: o.model, input: o.prompt, max_output_tokens: Number(o.limit) }
    if (o.how === 'helper') {
      const stream = client.responses.stream(body)
      const kinds = []
      stream.on('event', (event) => { kinds.push(event.type) })
      const final = await stream.finalResponse()
      return { text: final.output_text, usage: final.usage, kinds }
    }
    if (o.how === 'stream') {
      const { data, response } = await client.responses.create({ ...body, stream: true }).withResponse()
      const out = { headers: interesting(response.headers), text: '', usage: null, kinds: [] }
      for await (const event of data) {
        out.kinds.push(event.type)
        if (event.type === 'response.output_text.delta') out.text += event.delta
        if (event.type === 'response.completed') out.usage = event.response.usage
      }
      return out
    }
    const { data, response } = await client.responses.create(body).withResponse()
    return { headers: interesting(response.headers), text: data.output_text, usage: data.usage, body: data }
  },
  async anthropic(o, fetch) {
    const client = new Anthropic({ baseURL: o.base, apiKey: 'client-key', fetch, ...retries(o) })
    const body = { model: o.model, messages: [{ role: 'user', content: o.prompt }], max_tokens: Number(o.limit) }
    if (o.how === 'helper') {
      const stream = client.messages.stream(body)
      const kinds = []
      stream.on('streamEvent', (event) => { kinds.push(event.type) })
      const final = await stream.finalMessage()
      return { text: await stream.finalText(), usage: final.usage, kinds }
    }
    if (o.how === 'stream') {
      const { data, response } = await client.messages.create({ ...body, stream: true }).withResponse()
      const out = { headers: interesting(response.headers), text: '', usage: null, kinds: [] }
      for await (const event of data) {
        out.kinds.push(event.type)
        if (event.type === 'content_block_delta') out.text += event.delta.text
        if (event.type === 'message_start') out.usage = event.message.usage
        if (event.type === 'message_delta') out.usage = { ...out.usage, ...event.usage }
      }
      return out
    }
    const { data, response } = await client.messages.create(body).withResponse()
    return { headers: interesting(response.headers), text: data.content.map((part) => part.text ?? '').join(''), usage: data.usage, body: data }
  },
  'ai-openai': (o, fetch) => ai(o, createOpenAI({ baseURL: `${o.base}/v1`, apiKey: 'client-key', fetch })(o.model)),
  'ai-anthropic': (o, fetch) => ai(o, createAnthropic({ baseURL: `${o.base}/v1`, apiKey: 'client-key', fetch })(o.model)),
}

async function ai(o, model) {
  const ask = { model, prompt: o.prompt, maxOutputTokens: Number(o.limit), ...retries(o) }
  if (o.how === 'json') {
    const reply = await generateText(ask)
    return { text: reply.text, usage: reply.usage, headers: interesting(Object.entries(reply.response.headers ?? {})) }
  }
  const stream = streamText({ ...ask, onError: () => {} })
  const out = { text: '', kinds: [] }
  for await (const part of stream.fullStream) {
    out.kinds.push(part.type)
    if (part.type === 'text-delta') out.text += part.text
    if (part.type === 'error') throw part.error
  }
  return { ...out, usage: await stream.usage }
}

once(async () => {
  const o = options({ model: 'openai/gpt-oss-120b', how: 'json', prompt: 'one two three', limit: 50 })
  const wallet = o.session ? sessionFetch(o) : o.rpc ? payer(o) : { fetch, payments: [] }
  let calls = 0
  const counting = async (input, init) => { calls++; return wallet.fetch(input, init) }
  const answers = []
  for (const how of o.how.split(',')) {
    const [before, answer] = [calls, { how }]
    try {
      Object.assign(answer, await sdks[o.sdk]({ ...o, how }, counting), { ok: true })
    } catch (error) {
      Object.assign(answer, { ok: false, error: errorLine(error) })
    }
    answers.push({ ...answer, calls: calls - before })
  }
  if (wallet.record) await wallet.record.done()
  const asked = (wallet.record?.calls ?? []).filter((call) => call.action && !call.body)
  return { client: o.sdk, payments: wallet.payments ?? [], answers, management: asked.map((call) => `${call.method} ${call.action} ${call.status}`) }
})
