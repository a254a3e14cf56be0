// The published paying fetch, pointed at local chains, with a record of everything that left the process. Nothing here knows
// the gate.
import { ExactEvmScheme } from '@x402/evm/exact/client'
import { ExactEvmSchemeV1 } from '@x402/evm/exact/v1/client'
import { UptoEvmScheme } from '@x402/evm/upto/client'
import { toClientEvmSigner } from '@x402/evm'
import { wrapFetchWithPayment, x402Client } from '@x402/fetch'
import { createPublicClient, http } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { evmChain, V1_NAMES } from './chains.mjs'

/** A fetch that writes down each exchange: `{ status, paid }`, `paid` being the header that carried a payment. */
export function recorder() {
  const calls = []
  const recording = async (input, init) => {
    const headers = new Headers(init?.headers ?? (input instanceof Request ? input.headers : undefined))
    const call = { paid: ['payment-signature', 'x-payment'].find((name) => headers.has(name)) ?? null }
    if (call.paid) call.payment = JSON.parse(Buffer.from(headers.get(call.paid), 'base64').toString('utf8'))
    calls.push(call)
    const response = await fetch(input, init)
    call.status = response.status
    return response
  }
  return { calls, fetch: recording }
}

/**
 * `scheme`, `network` and `transfer` (`eip3009` or `permit2`) narrow what it will pay; without them the client's own choice
 * stands, its spend controls included. With `svm_rpc` and `svm_key` (32 bytes of hex) it pays on Solana too.
 */
export async function wallet({ rpc, chain = 84532, key, svm_rpc, svm_key, scheme, network, transfer }) {
  const record = recorder()
  const client = new x402Client()
  const payers = {}
  if (rpc) {
    const account = privateKeyToAccount(key)
    const signer = toClientEvmSigner(account, createPublicClient({ chain: evmChain(chain), transport: http(rpc) }))
    client.register('eip155:*', new ExactEvmScheme(signer)).register('eip155:*', new UptoEvmScheme(signer))
    if (V1_NAMES[chain]) client.registerV1(V1_NAMES[chain], new ExactEvmSchemeV1(signer))
    payers.evm = account.address
  }
  if (svm_rpc) {
    const { ExactSvmScheme } = await import('@x402/svm/exact/client')
    const { createKeyPairSignerFromPrivateKeyBytes } = await import('@solana/kit')
    const signer = await createKeyPairSignerFromPrivateKeyBytes(Buffer.from(svm_key, 'hex'))
    client.register('solana:*', new ExactSvmScheme(signer, { rpcUrl: svm_rpc }))
    payers.svm = signer.address
  }
  if (scheme || network || transfer) {
    client.registerPolicy((_, offers) => offers.filter((offer) =>
      (!scheme || offer.scheme === scheme) && (!network || offer.network === network)
      && (!transfer || (offer.extra?.assetTransferMethod ?? 'eip3009') === transfer)))
  }
  return { fetch: wrapFetchWithPayment(record.fetch, client), calls: record.calls, payers }
}
