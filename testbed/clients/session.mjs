// mppx SDK: one session, driven step by step. Stops at the first step that throws; the steps done so far are reported.
//   --url URL --rpc URL [--key 0x…] --steps json,sse,topup=0.01,close [--deposit USD] [--topup_size USD] [--head] [--bootstrap]
//   [--body JSON | --model M --prompt P --max_tokens N]
// Steps: `json` and `sse` ask for content, `fails` asks for it and gets none, `topup=USD` locks more, `close` settles, `wait=MS` waits.
import { chatBody, errorLine, once, options } from './lib.mjs'
import { manager } from './session-pay.mjs'

once(async () => {
  const o = options()
  const { session, account, record } = manager(o)
  const result = { client: 'mppx session', payer: account.address, steps: [], calls: record.calls }
  const body = (stream) => {
    const { stream: _, ...rest } = chatBody(o)
    return { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(stream ? { ...rest, stream: true } : rest) }
  }
  for (const step of String(o.steps ?? 'json,close').split(',')) {
    const [name, value] = step.split('=')
    const done = { step }
    result.steps.push(done)
    try {
      if (name === 'json') {
        const response = await session.fetch(o.url, body(false))
        const text = await response.text()
        Object.assign(done, { status: response.status, receipt: response.receipt })
        try { done.body = JSON.parse(text) } catch { done.text = text }
        done.ok = response.ok
      } else if (name === 'fails') {
        const response = await session.fetch(o.url, body(false))
        Object.assign(done, { status: response.status, text: await response.text() })
        done.ok = !response.ok
      } else if (name === 'sse') {
        done.messages = []
        for await (const message of await session.sse(o.url, { ...body(true), onReceipt: (receipt) => { done.receipt = receipt } })) done.messages.push(message)
        done.ok = true
      } else if (name === 'topup') {
        done.receipt = await session.topUp(value)
        done.ok = true
      } else if (name === 'close') {
        done.receipt = await session.close()
        done.ok = done.receipt !== undefined
      } else if (name === 'wait') {
        await new Promise((resolve) => setTimeout(resolve, Number(value)))
        done.ok = true
      } else throw new Error(`unknown step ${step}`)
    } catch (error) {
      Object.assign(done, { ok: false, error: errorLine(error) })
    }
    Object.assign(done, { channel: session.channelId, cumulative: session.cumulative })
    if (!done.ok) break
  }
  const ok = result.steps.every((step) => step.ok)
  await record.done()
  const used = record.calls
  return {
    ...result, ok, channel: session.channelId ?? null,
    statuses: used.map((call) => call.status),
    vouchers: used.filter((call) => call.action === 'voucher').map((call) => call.cumulative),
    management: used.filter((call) => call.action && !call.body).map((call) => `${call.method} ${call.action} ${call.status}`),
    transactions: used.map((call) => call.receipt?.txHash).filter(Boolean),
  }
})
