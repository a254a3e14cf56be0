// mppx SDK: a charge with its paying fetch.
//   --url URL --rpc URL [--key 0x…] [--mode pull|push] [--body JSON | --model M --prompt P --max_tokens N --stream]
import { Receipt } from 'mppx'
import { chatBody, errorLine, interesting, once, options, readSse } from './lib.mjs'
import { payer } from './pay.mjs'

once(async () => {
  const o = options()
  const { fetch, calls, payments, account } = payer(o)
  const result = { client: 'mppx', payer: account.address, mode: o.mode ?? 'pull', calls, payments }
  let response
  try {
    response = await fetch(o.url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(chatBody(o)) })
  } catch (error) {
    return { ...result, ok: false, error: errorLine(error) }
  }
  Object.assign(result, { ok: response.ok, status: response.status, headers: interesting(response.headers) })
  // The SDK's own reader must accept the receipt, not only ours.
  if (response.headers.has('payment-receipt')) {
    try { result.receipt = Receipt.fromResponse(response) } catch (error) { result.receipt_error = String(error) }
  }
  if ((response.headers.get('content-type') ?? '').startsWith('text/event-stream')) {
    const started = performance.now()
    const arrivals = []
    const parts = []
    try {
      for await (const part of response.body) {
        arrivals.push(Math.round(performance.now() - started))
        parts.push(Buffer.from(part))
      }
    } catch (error) { result.stream_error = errorLine(error) }
    const text = Buffer.concat(parts).toString('utf8')
    Object.assign(result, { sse: readSse(text), raw: text, arrivals })
    result.text = result.sse.tokens.join('')
  } else {
    const text = await response.text()
    try { result.body = JSON.parse(text) } catch { result.body_text = text }
    result.text = result.body?.choices?.[0]?.message?.content ?? null
  }
  return result
})
