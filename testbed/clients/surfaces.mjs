// One call of one surface by npm openai (default) or the AI SDK (`--sdk ai`), with mppx's paying fetch under it.
//   --base URL/v1 --rpc URL --surface completions|embeddings|images|speech|transcriptions [--sdk ai] [--stream] [--key 0x…] [--model M]
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { embed, embedMany, generateImage, generateSpeech, transcribe } from 'ai'
import OpenAI, { toFile } from 'openai'
import { errorLine, once, options } from './lib.mjs'
import { payer } from './pay.mjs'

const hex = (bytes) => Buffer.from(bytes).toString('hex')

/** What an agent's program gets of each surface, in the types of the SDK. */
const openai = {
  async completions(client, model, o) {
    const body = { model, prompt: 'one two three', max_tokens: 5 }
    if (!o.stream) {
      const reply = await client.completions.create(body)
      return { text: reply.choices[0].text, usage: reply.usage }
    }
    const out = { text: '', usage: null }
    for await (const chunk of await client.completions.create({ ...body, stream: true, stream_options: { include_usage: true } })) {
      for (const choice of chunk.choices) out.text += choice.text
      if (chunk.usage) out.usage = chunk.usage
    }
    return out
  },
  async embeddings(client, model) {
    // The SDK asks for base64 by itself and decodes it.
    const reply = await client.embeddings.create({ model, input: ['one two three', 'four'] })
    return { vectors: reply.data.map((d) => Array.from(d.embedding)), usage: reply.usage }
  },
  async images(client, model) {
    const reply = await client.images.generate({ model, prompt: 'a bridge', n: 2, size: '256x256', response_format: 'b64_json' })
    return { images: reply.data.map((d) => d.b64_json) }
  },
  async speech(client, model) {
    const reply = await client.audio.speech.create({ model, voice: 'alloy', input: 'hello', response_format: 'wav' })
    return { type: reply.headers.get('content-type'), sound: hex(await reply.arrayBuffer()) }
  },
  async transcriptions(client, model) {
    const file = await toFile(Buffer.from('RIFF\r\n\u0000\u0001sound'), 'hello.wav', { type: 'audio/wav' })
    return { text: (await client.audio.transcriptions.create({ model, file, language: 'en' })).text }
  },
}

const ai = {
  async embeddings(provider, model) {
    const one = await embed({ model: provider.embeddingModel(model), value: 'one two three' })
    const many = await embedMany({ model: provider.embeddingModel(model), values: ['one two three', 'four'] })
    return { vectors: [one.embedding, ...many.embeddings], usage: one.usage }
  },
  async images(provider, model) {
    const made = await generateImage({ model: provider.imageModel(model), prompt: 'a bridge', size: '256x256' })
    return { images: made.images.map((image) => image.base64) }
  },
  async speech(provider, model, o, openai) {
    const made = await generateSpeech({ model: openai.speech(model), text: 'hello', voice: 'alloy', outputFormat: 'wav' })
    return { sound: hex(made.audio.uint8Array) }
  },
  async transcriptions(provider, model, o, openai) {
    const heard = await transcribe({ model: openai.transcription(model), audio: Buffer.from('RIFF\r\n\u0000\u0001sound') })
    return { text: heard.text }
  },
}

once(async () => {
  const o = options({ model: 'house/all' })
  const { fetch, calls, payments } = payer(o)
  const result = { client: o.sdk === 'ai' ? 'ai' : 'openai', surface: o.surface, calls, payments }
  try {
    const got = o.sdk === 'ai'
      ? await ai[o.surface](
        createOpenAICompatible({ name: 'pontage', baseURL: o.base, fetch }), o.model, o, createOpenAI({ baseURL: o.base, apiKey: 'unused', fetch }),
      )
      : await openai[o.surface](new OpenAI({ baseURL: o.base, apiKey: 'unused', fetch }), o.model, o)
    Object.assign(result, got, { ok: true })
  } catch (error) {
    Object.assign(result, { ok: false, error: errorLine(error) })
  }
  return result
})
