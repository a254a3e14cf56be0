// mppx's session client, pointed at a local chain, with a record of everything that left the process. Nothing here knows
// the gate.
import { Credential, Receipt } from 'mppx'
import { Mppx, tempo } from 'mppx/client'
import { createClient, http } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { tempoModerato } from 'viem/tempo/chains'
import { interesting, readSse } from './lib.mjs'
import { PAYER_KEY } from './pay.mjs'

const header = (init, input, name) => new Headers(init?.headers ?? (input instanceof Request ? input.headers : undefined)).get(name)

/**
 * A fetch that writes down each exchange: `{ method, status, action, cumulative, additional, body, headers, receipt, raw }`.
 * `head`: bodyless credentials go out as HEAD, as the draft suggests, and not as POST. 
 */
export function recorder({ head } = {}) {
  const calls = []
  const reading = []
  const recording = async (input, init) => {
    const request = input instanceof Request ? input : undefined
    const call = { method: (init?.method ?? request?.method ?? 'GET').toUpperCase(), body: (init?.body ?? request?.body ?? null) !== null }
    const authorization = header(init, input, 'authorization')
    if (authorization?.startsWith('Payment ')) {
      const { payload, challenge } = Credential.deserialize(authorization)
      Object.assign(call, { action: payload.action ?? payload.type, channel: payload.channelId, cumulative: payload.cumulativeAmount, additional: payload.additionalDeposit, challenge: challenge.id })
      if (head && !call.body && call.method === 'POST') {
        call.method = 'HEAD'
        init = { ...init, method: 'HEAD' }
      }
    }
    call.hint = header(init, input, 'payment-session')
    calls.push(call)
    const response = await fetch(input, init)
    call.status = response.status
    call.headers = interesting(response.headers)
    if (response.headers.has('payment-receipt')) {
      // The SDK's own reader must accept the receipt, not only ours.
      try { call.receipt = Receipt.fromResponse(response) } catch (error) { call.receipt_error = String(error) }
    }
    if ((response.headers.get('content-type') ?? '').startsWith('text/event-stream')) {
      // Passed through and not copied: who stops reading must be able to hang up.
      const decoder = new TextDecoder()
      call.raw = ''
      const tap = new TransformStream({
        transform(part, out) { call.raw += decoder.decode(part, { stream: true }); out.enqueue(part) },
        flush() { call.ended = true },
      })
      return new Response(response.body.pipeThrough(tap), { status: response.status, statusText: response.statusText, headers: response.headers })
    } else if (call.status >= 400) {
      reading.push(response.clone().text().then((text) => { try { call.answer = JSON.parse(text) } catch { call.answer = text } }))
    }
    return response
  }
  const done = async () => {
    await Promise.all(reading)
    for (const call of calls) if (call.raw !== undefined) call.sse = readSse(call.raw)
  }
  return { calls, fetch: recording, done }
}

const client = (rpc) => createClient({ chain: tempoModerato, transport: http(rpc), pollingInterval: 100 })

/** The manager that drives JSON, streams, top-ups and closing by itself. `deposit` caps what it locks, in USD. */
export function manager({ rpc, key = PAYER_KEY, deposit, topup_size, bootstrap, head }) {
  const account = privateKeyToAccount(key)
  const record = recorder({ head })
  const session = tempo.session.manager({
    account, client: client(rpc), fetch: record.fetch,
    ...(deposit ? { maxDeposit: deposit } : {}),
    ...(topup_size ? { topUpAmount: topup_size } : {}),
    ...(bootstrap ? { bootstrap: true } : {}),
  })
  return { session, account, record }
}

/** A paying fetch on sessions, for a client library that knows nothing of payments. */
export function sessionFetch({ rpc, key = PAYER_KEY, deposit, head }) {
  const account = privateKeyToAccount(key)
  const record = recorder({ head })
  const mppx = Mppx.create({
    methods: [tempo.session({ account, getClient: () => client(rpc), ...(deposit ? { maxDeposit: deposit } : {}) })],
    fetch: record.fetch, polyfill: false,
  })
  return { fetch: mppx.fetch, mppx, account, record }
}
