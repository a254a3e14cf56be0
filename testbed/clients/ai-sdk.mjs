// The AI SDK over an OpenAI-compatible endpoint, with mppx's paying fetch when `--rpc` is given.
//   --base URL/v1 [--rpc URL --key 0x…] [--authorization "Payment …"] [--stream] [--max_retries N] [--model M --prompt P --max_tokens N]
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, streamText } from 'ai'
import { errorLine, interesting, once, options } from './lib.mjs'
import { payer } from './pay.mjs'

once(async () => {
  const o = options()
  const wallet = o.rpc ? payer(o) : { fetch, calls: [], payments: [] }
  const provider = createOpenAICompatible({
    name: 'pontage', baseURL: o.base, fetch: wallet.fetch, includeUsage: true,
    headers: o.authorization ? { Authorization: o.authorization } : {},
  })
  const ask = {
    model: provider(o.model ?? 'openai/gpt-oss-120b'), prompt: o.prompt ?? 'one two three',
    ...(o.max_tokens ? { maxOutputTokens: Number(o.max_tokens) } : {}),
    ...(o.max_retries === undefined ? {} : { maxRetries: Number(o.max_retries) }),
  }
  const result = { client: 'ai-sdk', calls: wallet.calls, payments: wallet.payments, parts: {}, stream_errors: [] }
  try {
    if (o.stream) {
      const stream = streamText({ ...ask, onError: () => {} })
      let text = ''
      for await (const part of stream.fullStream) {
        result.parts[part.type] = (result.parts[part.type] ?? 0) + 1
        if (part.type === 'text-delta') text += part.text
        if (part.type === 'error') result.stream_errors.push(errorLine(part.error))
      }
      result.text = text
      if (result.stream_errors.length === 0) {
        result.usage = await stream.usage
        result.headers = interesting(Object.entries((await stream.response).headers ?? {}))
      }
    } else {
      const reply = await generateText(ask)
      Object.assign(result, { text: reply.text, usage: reply.usage, headers: interesting(Object.entries(reply.response.headers ?? {})) })
    }
    result.ok = result.stream_errors.length === 0
  } catch (error) {
    result.ok = false
    result.error = errorLine(error)
  }
  return result
})
