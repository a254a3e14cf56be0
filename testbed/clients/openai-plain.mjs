// npm openai without a wallet: which error it makes of our 402, and whether it reads our streams.
//   --base URL/v1 [--authorization "Payment …"] [--stream] [--helper] [--body JSON | …]
// `--authorization` replaces the API key header, so that a paid stream can be read by a client that cannot pay.
import OpenAI from 'openai'
import { chatBody, errorLine, interesting, once, options } from './lib.mjs'

once(async () => {
  const o = options()
  let calls = 0
  let answer
  const client = new OpenAI({
    baseURL: o.base, apiKey: 'unused',
    defaultHeaders: o.authorization ? { Authorization: o.authorization } : {},
    fetch: async (input, init) => { calls++; return (answer = await fetch(input, init)) },
    ...(o.max_retries === undefined ? {} : { maxRetries: Number(o.max_retries) }),
  })
  const result = { client: 'openai' }
  try {
    const body = chatBody(o)
    if (o.helper) {
      // The `.stream()` helper folds chunks together and is the strictest reader of the SDK.
      const stream = client.chat.completions.stream({ ...body, stream: true })
      let chunks = 0
      stream.on('chunk', () => { chunks++ })
      const final = await stream.finalChatCompletion()
      // The helper hides the head of the reply; the transport has it.
      Object.assign(result, { helper: true, headers: interesting(answer.headers), chunks, text: final.choices[0]?.message?.content ?? null, usage: final.usage ?? null, final })
    } else {
      const { data, response } = await client.chat.completions.create(body).withResponse()
      Object.assign(result, { status: response.status, headers: interesting(response.headers) })
      if (body.stream) {
        Object.assign(result, { chunks: 0, tokens: [], extra: [], usage: null })
        for await (const chunk of data) {
          result.chunks++
          if (chunk.usage) result.usage = chunk.usage
          // The common idiom, on purpose: a chunk without `choices` would throw here.
          const content = chunk.choices[0]?.delta?.content
          if (content) result.tokens.push(content)
          if (chunk.choices.length === 0) result.extra.push(chunk)
        }
        result.text = result.tokens.join('')
      } else {
        result.body = data
        result.text = data.choices?.[0]?.message?.content ?? null
      }
    }
    result.ok = true
  } catch (error) {
    result.ok = false
    result.error = errorLine(error)
  }
  result.calls = calls
  return result
})
