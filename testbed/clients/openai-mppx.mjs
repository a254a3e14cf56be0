// npm openai with mppx's paying fetch under it: what an agent's program looks like. Retries are the SDK's default,
// so an upstream failure shows how often the payer is debited.
//   --base URL/v1 --rpc URL [--key 0x…] [--mode pull|push] [--stream] [--helper] [--max_retries N] [--body JSON | …]
import OpenAI from 'openai'
import { chatBody, errorLine, interesting, once, options } from './lib.mjs'
import { payer } from './pay.mjs'

once(async () => {
  const o = options()
  const { fetch, calls, payments, account } = payer(o)
  const client = new OpenAI({
    baseURL: o.base, apiKey: 'unused', fetch,
    ...(o.max_retries === undefined ? {} : { maxRetries: Number(o.max_retries) }),
  })
  const result = { client: 'openai+mppx', payer: account.address, calls, payments }
  try {
    const body = chatBody(o)
    const { data, response } = await client.chat.completions.create(body).withResponse()
    Object.assign(result, { status: response.status, headers: interesting(response.headers) })
    if (body.stream) {
      Object.assign(result, { chunks: 0, tokens: [], extra: [], usage: null })
      for await (const chunk of data) {
        result.chunks++
        if (chunk.usage) result.usage = chunk.usage
        for (const choice of chunk.choices) if (choice.delta?.content) result.tokens.push(choice.delta.content)
        if (chunk.choices.length === 0) result.extra.push(chunk)
      }
      result.text = result.tokens.join('')
    } else {
      result.body = data
      result.usage = data.usage ?? null
      result.text = data.choices?.[0]?.message?.content ?? null
    }
    result.ok = true
  } catch (error) {
    result.ok = false
    result.error = errorLine(error)
  }
  return result
})
