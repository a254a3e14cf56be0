// @x402/fetch: one paid call. `--legacy` is its forerunner x402-fetch 1.2, which knows only v1.
//   --url URL [--rpc URL --key 0x… --chain 84532] [--svm_rpc URL --svm_key HEX] [--scheme exact|upto] [--network N]
//   [--transfer eip3009|permit2] [--body JSON | --model M --prompt P --max_tokens N --stream]
import { chatBody, errorLine, interesting, once, options, readSse } from '../clients/lib.mjs'
import { wallet } from './wallet.mjs'

async function legacy({ rpc, key, chain = 84532 }) {
  const { wrapFetchWithPayment } = await import('x402-fetch')
  const { createWalletClient, http } = await import('viem')
  const { privateKeyToAccount } = await import('viem/accounts')
  const { evmChain } = await import('./chains.mjs')
  const { recorder } = await import('./wallet.mjs')
  const account = privateKeyToAccount(key)
  const record = recorder()
  const signer = createWalletClient({ account, chain: evmChain(chain), transport: http(rpc) })
  return { fetch: wrapFetchWithPayment(record.fetch, signer), calls: record.calls, payers: { evm: account.address } }
}

once(async () => {
  const o = options()
  const { fetch, calls, payers } = await (o.legacy ? legacy(o) : wallet(o))
  const result = { client: o.legacy ? 'x402-fetch' : '@x402/fetch', payers, calls }
  let response
  try {
    response = await fetch(o.url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(chatBody(o)) })
  } catch (error) {
    return { ...result, ok: false, error: errorLine(error) }
  }
  Object.assign(result, { ok: response.ok, status: response.status, headers: interesting(response.headers) })
  // The SDK's own reader must accept the receipt, not only ours.
  const receipt = response.headers.get(o.legacy ? 'x-payment-response' : 'payment-response')
  if (receipt) {
    try {
      if (o.legacy) result.receipt = (await import('x402-fetch')).decodeXPaymentResponse(receipt)
      else result.receipt = (await import('@x402/fetch')).decodePaymentResponseHeader(receipt)
    } catch (error) { result.receipt_error = String(error) }
  }
  try {
    const text = await response.text()
    if ((response.headers.get('content-type') ?? '').startsWith('text/event-stream')) {
      Object.assign(result, { sse: readSse(text), raw: text })
      result.text = result.sse.tokens.join('')
    } else {
      try { result.body = JSON.parse(text) } catch { result.body_text = text }
      result.text = result.body?.choices?.[0]?.message?.content ?? null
    }
  } catch (error) { result.stream_error = errorLine(error) }
  return result
})
