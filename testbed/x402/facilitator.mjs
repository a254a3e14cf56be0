// The published facilitator over local chains: v2 `exact` and `upto`, v1 `exact`, EIP-2612 gas sponsoring; with `--svm`, `exact`
// of both versions on Solana too. Prints one line, `{"url": …}`. `GET /calls` counts what it was asked.
//   [--chains '{"84532": URL, …}' --key 0x…] [--svm URL --svm_network N --svm_key HEX]
import { createServer } from 'node:http'
import { x402Facilitator } from '@x402/core/facilitator'
import { toFacilitatorEvmSigner } from '@x402/evm'
import { ExactEvmScheme } from '@x402/evm/exact/facilitator'
import { ExactEvmSchemeV1 } from '@x402/evm/exact/v1/facilitator'
import { UptoEvmScheme } from '@x402/evm/upto/facilitator'
import { EIP2612_GAS_SPONSORING } from '@x402/extensions'
import { createWalletClient, http, publicActions } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { options } from '../clients/lib.mjs'
import { evmChain, SVM_V1_NAMES, V1_NAMES } from './chains.mjs'

const o = options()
const facilitator = new x402Facilitator()
for (const [chain, rpc] of Object.entries(JSON.parse(o.chains ?? '{}'))) {
  const account = privateKeyToAccount(o.key)
  const client = createWalletClient({ account, chain: evmChain(chain), transport: http(rpc), pollingInterval: 50 }).extend(publicActions)
  const signer = toFacilitatorEvmSigner({
    address: account.address,
    getCode: (a) => client.getCode(a), readContract: (a) => client.readContract(a), verifyTypedData: (a) => client.verifyTypedData(a),
    writeContract: (a) => client.writeContract(a), sendTransaction: (a) => client.sendTransaction(a),
    waitForTransactionReceipt: (a) => client.waitForTransactionReceipt(a),
  })
  const network = `eip155:${chain}`
  facilitator.register(network, new ExactEvmScheme(signer)).register(network, new UptoEvmScheme(signer))
  if (V1_NAMES[chain]) facilitator.registerV1(V1_NAMES[chain], new ExactEvmSchemeV1(signer))
  facilitator.registerExtension(EIP2612_GAS_SPONSORING)
}
if (o.svm) {
  const { ExactSvmScheme } = await import('@x402/svm/exact/facilitator')
  const { ExactSvmSchemeV1 } = await import('@x402/svm/exact/v1/facilitator')
  const { toFacilitatorSvmSigner } = await import('@x402/svm')
  const { createKeyPairSignerFromPrivateKeyBytes } = await import('@solana/kit')
  const payer = await createKeyPairSignerFromPrivateKeyBytes(Buffer.from(o.svm_key, 'hex'))
  const signer = toFacilitatorSvmSigner(payer, { defaultRpcUrl: o.svm })
  facilitator.register(o.svm_network, new ExactSvmScheme(signer)).registerV1(SVM_V1_NAMES[o.svm_network], new ExactSvmSchemeV1(signer))
}

const calls = { supported: 0, verify: 0, settle: 0 }
// One account signs all settlements: two at once would take the same nonce.
let last = Promise.resolve()
const inTurn = (work) => (last = last.catch(() => {}).then(work))

const answer = async (path, body) => {
  if (path === '/calls') return [200, calls]
  if (path === '/supported') { calls.supported++; return [200, facilitator.getSupported()] }
  const { paymentPayload, paymentRequirements } = JSON.parse(body)
  if (path === '/verify') {
    calls.verify++
    try { return [200, await facilitator.verify(paymentPayload, paymentRequirements)] }
    catch (error) { return [500, { isValid: false, invalidReason: error.message }] }
  }
  if (path === '/settle') {
    calls.settle++
    try { return [200, await inTurn(() => facilitator.settle(paymentPayload, paymentRequirements))] }
    catch (error) { return [500, { success: false, errorReason: error.message, transaction: '', network: paymentRequirements.network }] }
  }
  return [404, {}]
}

const server = createServer(async (request, response) => {
  const parts = []
  for await (const part of request) parts.push(part)
  let status, said
  try { [status, said] = await answer(request.url, Buffer.concat(parts).toString('utf8')) }
  catch (error) { [status, said] = [400, { error: error.message }] }
  response.writeHead(status, { 'content-type': 'application/json' })
  response.end(JSON.stringify(said, (_, v) => (typeof v === 'bigint' ? v.toString() : v)))
})
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ url: `http://127.0.0.1:${server.address().port}` })))
