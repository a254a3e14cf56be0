// npm openai, unmodified, with mppx's session fetch under it: what an agent's program looks like when it pays by the token.
// A seller's own path is asked by the SDK's own `client.post`.
//   --base URL/v1 [--path /chat/completions/stream] --rpc URL [--key 0x…] [--stream] [--calls N] [--deposit USD] [--max_retries N] [--head] [--body JSON | …]
import OpenAI from 'openai'
import { chatBody, errorLine, interesting, once, options } from './lib.mjs'
import { sessionFetch } from './session-pay.mjs'

once(async () => {
  const o = options()
  const { fetch, account, record } = sessionFetch(o)
  const client = new OpenAI({
    baseURL: o.base, apiKey: 'unused', fetch,
    ...(o.max_retries === undefined ? {} : { maxRetries: Number(o.max_retries) }),
  })
  const result = { client: 'openai+mppx session', payer: account.address, calls: record.calls, answers: [] }
  for (let i = 0; i < Number(o.calls ?? 1); i++) {
    const answer = {}
    result.answers.push(answer)
    try {
      const body = chatBody(o)
      const asked = o.path ? client.post(o.path, { body, stream: body.stream }) : client.chat.completions.create(body)
      const { data, response } = await asked.withResponse()
      Object.assign(answer, { status: response.status, headers: interesting(response.headers) })
      if (body.stream) {
        Object.assign(answer, { chunks: 0, tokens: [], extra: [], usage: null })
        for await (const chunk of data) {
          answer.chunks++
          if (chunk.usage) answer.usage = chunk.usage
          for (const choice of chunk.choices) if (choice.delta?.content) answer.tokens.push(choice.delta.content)
          if (chunk.choices.length === 0) answer.extra.push(chunk)
        }
        answer.text = answer.tokens.join('')
      } else {
        answer.body = data
        answer.usage = data.usage ?? null
        answer.text = data.choices?.[0]?.message?.content ?? null
      }
      answer.ok = true
    } catch (error) {
      Object.assign(answer, { ok: false, error: errorLine(error) })
      break
    }
  }
  const ok = result.answers.every((answer) => answer.ok)
  await record.done()
  return {
    ...result, ok,
    vouchers: record.calls.filter((call) => call.action === 'voucher').map((call) => call.cumulative),
    management: record.calls.filter((call) => call.action && !call.body).map((call) => `${call.method} ${call.action} ${call.status}`),
  }
})
