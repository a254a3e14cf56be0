// npm openai, unmodified, over @x402/fetch: what an agent's program looks like. Retries are the SDK's default, so an upstream
// failure shows how often the payer is debited.
//   --base URL/v1 [--rpc URL --key 0x… --chain 84532] [--svm_rpc URL --svm_key HEX] [--scheme exact|upto] [--network N]
//   [--transfer eip3009|permit2] [--max_retries N] [--stream] [--body JSON | --model M --prompt P --max_tokens N]
import OpenAI from 'openai'
import { chatBody, errorLine, interesting, once, options } from '../clients/lib.mjs'
import { wallet } from './wallet.mjs'

once(async () => {
  const o = options()
  const { fetch, calls, payers } = await wallet(o)
  const client = new OpenAI({
    baseURL: o.base, apiKey: 'unused', fetch,
    ...(o.max_retries === undefined ? {} : { maxRetries: Number(o.max_retries) }),
  })
  const result = { client: 'openai+@x402/fetch', payers, calls }
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
