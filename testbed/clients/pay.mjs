// The mppx SDK's paying fetch, pointed at a local chain. Nothing here knows the gate.
import { Mppx, tempo } from 'mppx/client'
import { createClient, http } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { tempoModerato } from 'viem/tempo/chains'

/** Dev account 2 of the chain's public mnemonic. */
export const PAYER_KEY = '0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a'

/**
 * Returns the paying fetch and a record of everything that left the process through it: `calls` has one entry per
 * HTTP exchange, `payments` one per credential that was created.
 */
export function payer({ rpc, key = PAYER_KEY, mode, retries }) {
  const calls = []
  const payments = []
  const counting = async (input, init) => {
    const headers = new Headers(init?.headers ?? (input instanceof Request ? input.headers : undefined))
    const call = { paid: /^Payment /.test(headers.get('authorization') ?? ''), accept_payment: headers.get('accept-payment') }
    calls.push(call)
    const response = await fetch(input, init)
    call.status = response.status
    return response
  }
  const account = privateKeyToAccount(key)
  const client = createClient({ chain: tempoModerato, transport: http(rpc), pollingInterval: 100 })
  const mppx = Mppx.create({
    methods: [tempo.charge({ account, getClient: () => client, ...(mode ? { mode } : {}) })],
    fetch: counting,
    polyfill: false,
    ...(retries === undefined ? {} : { maxPaymentRetries: Number(retries) }),
  })
  mppx.onCredentialCreated(({ challenge, credential }) => {
    payments.push({ method: challenge.method, intent: challenge.intent, amount: challenge.request.amount, challenge: challenge.id, credential })
  })
  return { fetch: mppx.fetch, mppx, account, calls, payments }
}
