// Are the test bed's own scripts right? Every client script is run against mppx's server and a local chain: when this
// passes and a black-box test fails, look at the gate first. The scripts of sessions are run by tests/session_clients.rs.
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { balance, DEV, startChain } from './chain.mjs'
import { startReference } from './reference.mjs'

const here = fileURLToPath(new URL('.', import.meta.url))
const sh = (file, args) => new Promise((resolve, reject) => {
  execFile(file, args, { cwd: here, timeout: 60_000, maxBuffer: 1 << 24 }, (error, out, err) => (error ? reject(new Error(`${file} ${args[0]}: ${error.message}\n${err}`)) : resolve(out)))
})
const python = (await sh('./setup', ['--python'])).trim()
const run = async (script, flags) => {
  const args = Object.entries(flags).flatMap(([k, v]) => (v === true ? [`--${k}`] : [`--${k}`, String(v)]))
  const out = await sh(script.endsWith('.py') ? python : process.execPath, [`clients/${script}`, ...args])
  assert.equal(out.trim().split('\n').length, 1, `${script} must print one line`)
  return JSON.parse(out)
}

const TEXT = 'tok0 tok1 tok2 tok3'
const chain = await startChain()
const seller = await startReference(chain.url)
const url = `${seller.url}/v1/chat/completions`
const base = `${seller.url}/v1`
const free = `${seller.url}/free/v1`
const keys = { 'mppx.mjs': DEV[2].key, 'pympp_charge.py': DEV[3].key }
let debits = 0
const claims = [
  ['mppx pays a plain call by pull', async () => {
    const got = await run('mppx.mjs', { url, rpc: chain.url, key: keys['mppx.mjs'] })
    assert.equal(got.status, 200, JSON.stringify(got))
    assert.equal(got.text, TEXT)
    assert.match(got.receipt.reference, /^0x[0-9a-f]{64}$/)
    assert.deepEqual(got.calls.map((c) => c.status), [402, 200])
    debits += 1
  }],
  ['mppx pays a stream by push', async () => {
    const got = await run('mppx.mjs', { url, rpc: chain.url, key: keys['mppx.mjs'], mode: 'push', stream: true })
    assert.equal(got.status, 200, JSON.stringify(got))
    assert.equal(got.text, TEXT)
    assert.equal(got.sse.done, true)
    assert.equal(got.sse.receipts[0].charged, '0.02')
    assert.equal(got.sse.blocks[0].pontage.id, 'ref-1')
    debits += 1
  }],
  ['npm openai over mppx pays plain and streamed calls', async () => {
    for (const stream of [false, true]) {
      const got = await run('openai-mppx.mjs', { base, rpc: chain.url, key: keys['mppx.mjs'], ...(stream ? { stream } : {}) })
      assert.equal(got.ok, true, JSON.stringify(got))
      assert.equal(got.text, TEXT)
      assert.equal(got.headers.payment_receipt.status, 'success')
      debits += 1
    }
  }],
  ['npm openai over mppx repeats a failed call at its default, and each try is a debit here', async () => {
    const got = await run('openai-mppx.mjs', { base: `${seller.url}/broken/v1`, rpc: chain.url, key: keys['mppx.mjs'] })
    assert.equal(got.error.status, 500)
    assert.equal(got.error.code, 'upstream')
    assert.equal(seller.failures(), 3)
    assert.equal(got.payments.length, 3)
    debits += 3
  }],
  ['npm openai without a wallet reports the 402, and reads our receipt forms', async () => {
    const refused = await run('openai-plain.mjs', { base })
    assert.equal(refused.error.status, 402)
    assert.equal(refused.calls, 1)
    for (const helper of [false, true]) {
      const got = await run('openai-plain.mjs', { base: free, stream: true, ...(helper ? { helper } : {}) })
      assert.equal(got.ok, true, JSON.stringify(got))
      assert.equal(got.text, TEXT)
    }
  }],
  ['the AI SDK pays, and reads our receipt forms', async () => {
    for (const stream of [false, true]) {
      const got = await run('ai-sdk.mjs', { base, rpc: chain.url, key: keys['mppx.mjs'], ...(stream ? { stream } : {}) })
      assert.equal(got.ok, true, JSON.stringify(got))
      assert.equal(got.text, TEXT)
      debits += 1
    }
  }],
  ['pympp pays plain and streamed calls', async () => {
    for (const stream of [false, true]) {
      const got = await run('pympp_charge.py', { url, rpc: chain.url, key: keys['pympp_charge.py'], ...(stream ? { stream } : {}) })
      assert.equal(got.status, 200, JSON.stringify(got))
      assert.equal(got.headers.payment_receipt.status, 'success')
      assert.ok(got.raw.includes('tok3'))
      debits += 1
    }
  }],
  ['PyPI openai over pympp pays plain and streamed calls', async () => {
    for (const stream of [false, true]) {
      const got = await run('openai_pympp.py', { base, rpc: chain.url, key: keys['pympp_charge.py'], ...(stream ? { stream } : {}) })
      assert.equal(got.ok, true, JSON.stringify(got))
      assert.equal(got.text, TEXT)
      assert.equal(got.payments.length, 1)
      assert.equal(got.headers.payment_receipt.status, 'success')
      debits += 1
    }
  }],
  ['PyPI openai without a wallet reports the 402, and reads our receipt forms', async () => {
    const refused = await run('openai_plain.py', { base })
    assert.equal(refused.error.status, 402)
    assert.equal(refused.calls, 1)
    for (const helper of [false, true]) {
      const got = await run('openai_plain.py', { base: free, stream: true, ...(helper ? { helper } : {}) })
      assert.equal(got.ok, true, JSON.stringify(got))
      assert.equal(got.text, TEXT)
    }
  }],
]

let failed = 0
const before = await balance(chain.url, DEV[1].address)
try {
  for (const [claim, prove] of claims) {
    try { await prove(); console.log(`ok      ${claim}`) } catch (error) { failed++; console.log(`FAILED  ${claim}\n${error.message}`) }
  }
  const earned = (await balance(chain.url, DEV[1].address)) - before
  if (failed === 0 && earned !== BigInt(debits) * 20_000n) { failed++; console.log(`FAILED  the seller holds ${earned} atoms more, ${debits} debits of 20000 were counted`) }
} finally {
  seller.stop()
  await chain.stop()
}
process.exit(failed === 0 ? 0 : 1)
