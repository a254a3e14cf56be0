// The story behind `make demo`, told step by step. Started by testbed/demo, which builds what it needs.
// Everything listens on loopback and a free port; only processes started here are ended.
import { spawn, spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { randomBytes } from 'node:crypto'
import { generatePrivateKey, privateKeyToAccount } from 'viem/accounts'
import { balance, freePort, fund, PATH_USD, sleep, startChain } from './chain.mjs'
import { interesting, readSse } from './clients/lib.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const once = !['', '0', undefined].includes(process.env.ONCE)
const account = () => { const key = generatePrivateKey(); return { key, address: privateKeyToAccount(key).address } }
const [payee, payer] = [account(), account()]
const usd = (atoms) => `$${atoms / 1_000_000n}.${String(atoms % 1_000_000n).padStart(6, '0')}`
const colour = process.stdout.isTTY && !process.env.NO_COLOR
const bold = (text) => (colour ? `\x1b[1m${text}\x1b[0m` : text)
const step = (title) => console.log(`\n${bold(title)}`)
const say = (...lines) => { for (const line of lines) console.log(`  ${line}`) }

const dir = mkdtempSync(join(tmpdir(), 'pontage-demo-'))
const log = join(dir, 'gate.log')
const running = []
let chain
let ending
let interrupt = () => { void end().then(() => process.exit(130)) }

function start(name, binary, args, options = {}) {
  const out = openSync(join(dir, `${name}.log`), 'a')
  const child = spawn(binary, args, { stdio: ['ignore', out, out], detached: true, ...options })
  const entry = { name, child, gone: false }
  child.once('exit', () => { entry.gone = true })
  child.once('error', () => { entry.gone = true })
  running.push(entry)
  return entry
}

/** Ends what was started here, in reverse, once. In a group of their own, children do not see Ctrl-C before we do. */
function end() {
  ending ??= (async () => {
    for (const { child, gone } of [...running].reverse()) {
      if (gone) continue
      const left = new Promise((resolve) => child.once('exit', resolve))
      child.kill('SIGTERM')
      await Promise.race([left, sleep(8000)])
      if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
    }
    if (chain) await chain.stop()
  })()
  return ending
}

class Failed extends Error {}
const must = (condition, sentence) => { if (!condition) throw new Failed(sentence) }

async function answers(entry, url, seconds) {
  const deadline = Date.now() + seconds * 1000
  while (Date.now() < deadline) {
    if (entry.gone) return false
    try { if ((await fetch(url)).ok) return true } catch {}
    await sleep(50)
  }
  return false
}

/** Runs the mppx command line as a user would, showing its output to `onText` as it comes. */
function cli(args, rpc, onText = () => {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [join(root, 'testbed/node_modules/mppx/dist/bin.js'), ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        ...process.env, NO_COLOR: '1', MPPX_PRIVATE_KEY: payer.key, MPPX_RPC_URL: rpc,
        XDG_STATE_HOME: join(dir, 'wallet-state'), XDG_CONFIG_HOME: join(dir, 'wallet-config'),
      },
    })
    const entry = { name: 'mppx', child, gone: false }
    running.push(entry)
    let out = ''
    let err = ''
    child.stdout.setEncoding('utf8').on('data', (text) => { out += text; onText(out) })
    child.stderr.setEncoding('utf8').on('data', (text) => { err += text })
    child.once('error', reject)
    child.once('close', (code) => { entry.gone = true; resolve({ code, out, err }) })
  })
}

/** The last HTTP head and the body in the output of `mppx -i`, which prints the 402 first. */
function parseInclude(out) {
  const at = out.lastIndexOf('HTTP/1.1 ')
  const split = out.indexOf('\n\n', at)
  if (at < 0 || split < 0) return null
  const lines = out.slice(at, split).split('\n')
  const headers = new Map(lines.slice(1).map((line) => [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 2)]))
  return { status: Number(lines[0].split(' ')[1]), headers: interesting(headers), body: out.slice(split + 2) }
}

function writeFiles(listen, admin, backend) {
  mkdirSync(join(dir, 'conf'))
  mkdirSync(join(dir, 'var'))
  writeFileSync(join(dir, 'conf/pontage.toml'), `[listen]
address = "${listen}"
public_url = "http://${listen}"
admin = "${admin}"
threads = 2
grace_seconds = 5

[secrets]
challenge_keys = ["env:PONTAGE_CHALLENGE_KEY"]
receipt_key = "env:PONTAGE_RECEIPT_KEY"

[store]
kind = "embedded"
path = "var/pontage.redb"

[rail.tempo]
kind = "mpp-tempo"
chain_id = 42431
rpc = "env:TEMPO_RPC_URL"
currency = "${PATH_USD}"
recipient = "${payee.address}"
settle_key = "env:PONTAGE_SETTLE_KEY"
accept_push = false
`)
  const rules = join(dir, 'lua-free-rules')
  cpSync(join(root, 'lua-free-rules/default'), rules, { recursive: true })
  const pools = join(rules, 'pools.toml')
  const text = readFileSync(pools, 'utf8')
  const changed = text.replace(/^servers = .*$/gm, `servers = ["${backend}"]`)
  must(changed !== text, 'lua-free-rules/default/pools.toml has no line "servers = …" to point at the demo backend.')
  writeFileSync(pools, changed)

}

async function story() {
  step('Starting')
  chain = await startChain()
  say(`chain     ${chain.url}  (anvil, Tempo; its accounts and money are toys)`)
  const backendAt = `127.0.0.1:${await freePort()}`
  const backend = start('backend', process.env.PONTAGE_DEMO_BACKEND, ['--listen', backendAt])
  must(await answers(backend, `http://${backendAt}/health`, 10), `the demo backend did not start; see ${join(dir, 'backend.log')}`)
  await fund(chain.url, payer.address, 1_000_000n)
  await fund(chain.url, payee.address, 0n)
  say(`backend   http://${backendAt}  (a pretend model, 20 ms per token)`)
  const [listen, admin] = [`127.0.0.1:${await freePort()}`, `127.0.0.1:${await freePort()}`]
  writeFiles(listen, admin, `http://${backendAt}`)
  const gate = start('gate', process.env.PONTAGE_BIN, ['serve', '--conf', 'conf/pontage.toml', '--rules', 'lua-free-rules'], {
    cwd: dir,
    env: {
      ...process.env, TEMPO_RPC_URL: chain.url, UPSTREAM_KEY: 'demo-upstream-key', PONTAGE_SETTLE_KEY: payee.key,
      PONTAGE_CHALLENGE_KEY: randomBytes(32).toString('hex'), PONTAGE_RECEIPT_KEY: randomBytes(32).toString('hex'),
    },
  })
  if (!(await answers(gate, `http://${admin}/readyz`, 30))) {
    const why = await fetch(`http://${admin}/readyz`).then((r) => r.text()).catch(() => 'no answer')
    throw new Failed(`the gate is not ready (${why.trim()}); it said:\n${readFileSync(log, 'utf8')}`)
  }
  say(`gate      http://${listen}  (rules from lua-free-rules/default)`)
  say(`admin     http://${admin}/metrics /readyz /status`)
  const url = `http://${listen}/v1/chat/completions`
  const body = (stream) => JSON.stringify({
    model: 'openai/gpt-oss-120b', max_tokens: 8, messages: [{ role: 'user', content: 'What does it cost to cross the bridge?' }], ...(stream ? { stream } : {}),
  })
  const balances = async () => ({ payer: await balance(chain.url, payer.address), payee: await balance(chain.url, payee.address) })

  step('1. A call without payment')
  say(`POST ${url}`)
  const unpaid = await fetch(url, { method: 'POST', headers: { 'content-type': 'application/json' }, body: body() })
  const refusal = await unpaid.text()
  say(`${unpaid.status} ${unpaid.statusText}`)
  must(unpaid.status === 402, `an unpaid call must be answered 402; the gate said: ${refusal}`)
  const { offers } = interesting(unpaid.headers)
  must(offers?.length > 0, 'the 402 carries no offer')
  for (const { method, intent, request } of offers) {
    say(`offer: ${method}/${intent}, ${request.amount} atoms of ${request.currency} = ${usd(BigInt(request.amount))} to ${request.recipient}`)
  }
  const price = BigInt(offers[0].request.amount)

  const calls = []
  for (const stream of [false, true]) {
    step(stream ? '3. The same, streamed' : '2. The same call by a client with a wallet (mppx)')
    say(`mppx ${url} -J '${body(stream)}'`)
    const before = await balances()
    let printed = 0
    let shown = false
    const { code, out, err } = await cli([url, '-J', body(stream), '-i', '-f'], chain.url, (text) => {
      const reply = stream ? parseInclude(text) : null
      if (reply?.status !== 200) return
      const { tokens } = readSse(reply.body)
      if (!shown) { process.stdout.write('  tokens: '); shown = true }
      for (; printed < tokens.length; printed++) process.stdout.write(tokens[printed])
    })
    if (shown) process.stdout.write('\n')
    const reply = parseInclude(out)
    must(code === 0 && reply?.status === 200, `the paid call failed (mppx ended with ${code}): ${err}${out}`)
    const receipt = reply.headers.payment_receipt
    must(receipt?.status === 'success', `the reply carries no Payment-Receipt: ${JSON.stringify(reply.headers)}`)
    const after = await balances()
    let usage
    let block
    let sealed
    if (stream) {
      const sse = readSse(reply.body)
      must(sse.done, 'the stream ended without [DONE]')
      must(sse.tokens.length > 0, 'the stream carried no token')
      usage = sse.usage
      block = sse.receipts[0] ?? sse.blocks[0]
      must(block, 'the stream carried no receipt')
      sealed = sse.sealed[0]
    } else {
      const json = JSON.parse(reply.body)
      say(`answer: ${json.choices[0].message.content}`)
      usage = json.usage
      block = json.pontage
    }
    say(`paid: ${usd(price)} in transaction ${receipt.reference}`)
    say(`receipt (Payment-Receipt): ${JSON.stringify(receipt)}`)
    if (block) say(`receipt (in the ${stream ? 'stream' : 'body'}): ${JSON.stringify(block)}`)
    if (sealed) {
      const { receipt_key } = await (await fetch(`http://${admin}/status`)).json()
      const verdict = spawnSync(process.env.PONTAGE_BIN, ['receipt', 'verify', '--key', receipt_key, sealed])
      must(verdict.status === 0, `the gate's own seal does not verify: ${verdict.stderr}`)
      say('seal of that receipt: verified with the key from /status (pontage receipt verify)')
    }
    if (usage) say(`used: ${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out`)
    say(`payee on chain: ${usd(before.payee)} → ${usd(after.payee)}`)
    say(`payer on chain: ${usd(before.payer)} → ${usd(after.payer)}`)
    must(before.payer - after.payer === price, `the payer spent ${usd(before.payer - after.payer)} instead of ${usd(price)}`)
    must(after.payee - before.payee === price, `the payee received ${usd(after.payee - before.payee)} instead of ${usd(price)}`)
    calls.push(receipt.reference)
  }
  must(calls[0] !== calls[1], 'both calls show the same transaction')

  step('Done: two calls, two payments, both on chain, to the atom.')
  if (once) return
  say('Still running; try these in another terminal:',
    '',
    `curl -i ${url} -H 'content-type: application/json' -d '${body()}'`,
    `curl ${`http://${listen}/v1/models`}`,
    `curl http://${admin}/metrics`,
    `MPPX_PRIVATE_KEY=${payer.key} MPPX_RPC_URL=${chain.url} node testbed/node_modules/mppx/dist/bin.js ${url} -J '${body()}'`,
    '',
    `The key above was made for this run. Rules and logs: ${dir}`,
    'Ctrl-C ends everything.')
  await new Promise((resolve, reject) => {
    interrupt = resolve
    gate.child.once('exit', () => reject(new Failed('the gate ended by itself:\n' + readFileSync(log, 'utf8'))))
  })
}

// Before the story reaches its end, Ctrl-C must not leave anything behind either.
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => interrupt())
try {
  await story()
  await end()
  rmSync(dir, { recursive: true, force: true })
} catch (error) {
  console.error(`\nThe demo failed: ${error instanceof Failed ? error.message : error.stack}`)
  await end()
  console.error(`Logs are kept in ${dir}`)
  process.exitCode = 1
}
process.exit()
