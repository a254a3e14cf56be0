// What the client scripts share: options, one line of JSON out, and reading what the gate promises to send.
// Options come as `--name value` or, when absent, from the environment as PONTAGE_CLIENT_NAME. A flag without a value is `true`.

export function options(defaults = {}) {
  const out = { ...defaults }
  const argv = process.argv.slice(2)
  for (let i = 0; i < argv.length; i++) {
    if (!argv[i].startsWith('--')) throw new Error(`unexpected argument ${argv[i]}`)
    const name = argv[i].slice(2).replaceAll('-', '_')
    const next = argv[i + 1]
    if (next === undefined || next.startsWith('--')) out[name] = true
    else { out[name] = next; i++ }
  }
  for (const [key, value] of Object.entries(process.env)) {
    if (!key.startsWith('PONTAGE_CLIENT_')) continue
    const name = key.slice('PONTAGE_CLIENT_'.length).toLowerCase()
    if (!(name in out)) out[name] = value
  }
  return out
}

/** The body to send: `--body` whole, or a small chat made from `--model`, `--prompt`, `--max_tokens`, `--stream`. */
export function chatBody(o) {
  if (typeof o.body === 'string') return JSON.parse(o.body)
  const body = { model: o.model ?? 'openai/gpt-oss-120b', messages: [{ role: 'user', content: o.prompt ?? 'one two three' }] }
  if (o.max_tokens) body.max_tokens = Number(o.max_tokens)
  if (o.stream) body.stream = true
  return body
}

const b64json = (text) => {
  try { return JSON.parse(Buffer.from(text, 'base64url').toString('utf8')) } catch { return { undecodable: text } }
}

/** Every header a buyer may want to look at, receipts decoded. */
export function interesting(headers) {
  const out = {}
  for (const [name, value] of headers) {
    if (/^(payment-|pontage-|x-payment|x-should-retry|x-request-id|retry-after|www-authenticate|content-type|cache-control)/.test(name)) out[name] = value
  }
  if (out['payment-receipt']) out.payment_receipt = b64json(out['payment-receipt'])
  if (out['payment-response']) out.payment_response = b64json(out['payment-response'])
  if (out['x-payment-response']) out.x_payment_response = b64json(out['x-payment-response'])
  if (out['payment-required']) out.payment_required = b64json(out['payment-required'])
  if (out['www-authenticate']) {
    out.offers = [...out['www-authenticate'].matchAll(/method="([^"]+)", intent="([^"]+)", request="([^"]+)"/g)]
      .map(([, method, intent, request]) => ({ method, intent, request: b64json(request) }))
  }
  return out
}

/** A stream taken apart by bytes, the way no SDK shows it: comments, events, receipts, text. */
export function readSse(text) {
  const out = { comments: [], events: [], tokens: [], usage: null, receipts: [], sealed: [], blocks: [], errors: [], done: false, after_done: [] }
  for (const block of text.split(/\r\n\r\n|\n\n|\r\r/)) {
    if (block === '') continue
    let event = null
    const data = []
    for (const line of block.split(/\r\n|\n|\r/)) {
      if (line.startsWith(':')) {
        out.comments.push(line)
        const receipt = line.match(/^: ?pontage-receipt (\S+)/)
        // A sealed receipt is `<base64url of JSON>.<signature>`.
        if (receipt) { out.sealed.push(receipt[1]); out.receipts.push(b64json(receipt[1].split('.')[0])) }
      } else if (line.startsWith('event:')) event = line.slice(6).trim()
      else if (line.startsWith('data:')) data.push(line.slice(5).replace(/^ /, ''))
    }
    if (data.length === 0) continue
    const body = data.join('\n')
    if (out.done) out.after_done.push({ event, body })
    if (event) out.events.push(event)
    if (body === '[DONE]') { out.done = true; continue }
    let chunk
    try { chunk = JSON.parse(body) } catch { out.errors.push({ undecodable: body }); continue }
    if (chunk.error) out.errors.push(chunk.error)
    if (chunk.usage) out.usage = chunk.usage
    for (const choice of chunk.choices ?? []) if (choice.delta?.content) out.tokens.push(choice.delta.content)
    if (Array.isArray(chunk.choices) && chunk.choices.length === 0) {
      const { id, object, created, model, choices, usage, system_fingerprint, service_tier, ...extra } = chunk
      if (Object.keys(extra).length > 0) out.blocks.push(extra)
    }
  }
  return out
}

export function errorLine(error) {
  const headers = error?.headers ?? error?.responseHeaders
  return {
    name: error?.constructor?.name ?? String(error),
    message: String(error?.message ?? error),
    status: error?.status ?? error?.statusCode ?? null,
    type: error?.type ?? null,
    code: error?.code ?? null,
    cause: error?.cause ? String(error.cause?.message ?? error.cause) : null,
    headers: headers ? interesting(headers.entries?.() ?? Object.entries(headers)) : null,
    body: error?.error ?? error?.responseBody ?? null,
  }
}

/** Runs `work`, prints exactly one line of JSON and ends. The exit code says whether the run happened, not whether it was paid. */
export async function once(work) {
  let line
  try { line = await work() } catch (error) { line = { ok: false, error: errorLine(error) } }
  // Wait for the pipe: a long line would be cut by process.exit otherwise.
  process.stdout.write(JSON.stringify(line, (_, v) => (typeof v === 'bigint' ? v.toString() : v)) + '\n', () => process.exit(0))
}
