// A seller of chat completions with nothing of the gate in it: v1 and v2 on one path, paid through a facilitator before the
// answer. What a client makes of it is a fact about the client; the gate is compared with it.
//   --facilitator URL --pay_to 0x… [--chain 84532] [--svm_pay_to ADDRESS]     prints one line, {"url": …}; POST anywhere
import { createServer } from 'node:http'
import { declareEip2612GasSponsoringExtension } from '@x402/extensions'
import { options } from '../clients/lib.mjs'
import { USDC, V1_NAMES } from './chains.mjs'

/** Atoms that a call costs, and the ceiling and the charge of a metered one. */
const PRICE = '2000', CEILING = '50000', METERED = '1234'
const DEVNET = 'solana:EtWTRABZaYq6iMfeYKouRu166VU2xqa1'
const DEVNET_USDC = '4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU'

const o = options({ chain: '84532' })
const { kinds } = await (await fetch(`${o.facilitator}/supported`)).json()
const given = (network, scheme) => kinds.find((kind) => kind.x402Version === 2 && kind.network === network && kind.scheme === scheme)?.extra
const network = `eip155:${o.chain}`
const { asset, name } = USDC[o.chain]
const common = { network, asset, payTo: o.pay_to, maxTimeoutSeconds: 300 }
const offers = [
  { scheme: 'exact', amount: PRICE, ...common, extra: { name, version: '2' } },
  { scheme: 'exact', amount: PRICE, ...common, extra: { name, version: '2', assetTransferMethod: 'permit2' } },
  { scheme: 'upto', amount: CEILING, ...common, extra: { name, version: '2', assetTransferMethod: 'permit2', ...given(network, 'upto') } },
]
if (o.svm_pay_to) offers.push({ scheme: 'exact', network: DEVNET, amount: PRICE, asset: DEVNET_USDC, payTo: o.svm_pay_to, maxTimeoutSeconds: 60, extra: given(DEVNET, 'exact') })

const b64 = (value) => Buffer.from(JSON.stringify(value)).toString('base64')
const ask = async (path, body) => (await fetch(o.facilitator + path, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) })).json()
const same = (a, b) => a?.scheme === b.scheme && a?.network === b.network && a?.amount === b.amount && (a?.extra?.assetTransferMethod ?? null) === (b.extra?.assetTransferMethod ?? null)

const server = createServer(async (request, response) => {
  const parts = []
  for await (const part of request) parts.push(part)
  const url = `http://${request.headers.host}${request.url}`
  const { extra, ...rest } = offers[0]
  const v1 = V1_NAMES[o.chain] && { scheme: 'exact', network: V1_NAMES[o.chain], maxAmountRequired: PRICE, resource: url, description: '', mimeType: 'application/json', payTo: rest.payTo, maxTimeoutSeconds: rest.maxTimeoutSeconds, asset, extra }
  const unpaid = (error) => {
    response.writeHead(402, { 'content-type': 'application/json', 'PAYMENT-REQUIRED': b64({ x402Version: 2, error, resource: { url }, accepts: offers, extensions: declareEip2612GasSponsoringExtension() }) })
    response.end(JSON.stringify({ x402Version: 1, error, accepts: v1 ? [v1] : [] }))
  }
  const header = request.headers['payment-signature'] ?? request.headers['x-payment']
  if (!header) return unpaid('Payment required')
  const payment = JSON.parse(Buffer.from(header, 'base64').toString('utf8'))
  const paymentRequirements = payment.x402Version === 1 ? v1 : offers.find((offer) => same(payment.accepted, offer))
  if (!paymentRequirements) return unpaid('No matching payment requirements')
  const body = { x402Version: payment.x402Version, paymentPayload: payment, paymentRequirements }
  const verdict = await ask('/verify', body)
  if (!verdict.isValid) return unpaid(verdict.invalidReason)
  if (paymentRequirements.scheme === 'upto') body.paymentRequirements = { ...paymentRequirements, amount: METERED }
  const settled = await ask('/settle', body)
  const receipt = { [payment.x402Version === 1 ? 'X-PAYMENT-RESPONSE' : 'PAYMENT-RESPONSE']: b64(settled) }
  if (!settled.success) {
    response.writeHead(402, { 'content-type': 'application/json', ...receipt })
    return response.end('{}')
  }
  const asked = JSON.parse(Buffer.concat(parts).toString('utf8'))
  const head = { id: 'chatcmpl-ref', created: 1, model: asked.model ?? 'm' }
  const usage = { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7 }
  if (!asked.stream) {
    response.writeHead(200, { 'content-type': 'application/json', ...receipt })
    return response.end(JSON.stringify({ ...head, object: 'chat.completion', usage, choices: [{ index: 0, message: { role: 'assistant', content: 'tok0 tok1 tok2 tok3' }, finish_reason: 'stop' }] }))
  }
  response.writeHead(200, { 'content-type': 'text/event-stream', ...receipt })
  const chunk = (rest) => response.write(`data: ${JSON.stringify({ ...head, object: 'chat.completion.chunk', ...rest })}\n\n`)
  for (const i of [0, 1, 2, 3]) chunk({ choices: [{ index: 0, delta: { content: (i ? ' ' : '') + 'tok' + i }, finish_reason: null }] })
  chunk({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] })
  chunk({ choices: [], usage })
  response.end('data: [DONE]\n\n')
})
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ url: `http://127.0.0.1:${server.address().port}` })))
