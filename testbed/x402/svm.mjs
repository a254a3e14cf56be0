// A real Solana runtime (litesvm: the validator's own, with the real token programs) behind as much JSON-RPC as wallets and
// facilitators ask for. It says it is devnet, or with `--mainnet` mainnet. One slot per transaction; a blockhash is good until
// `bed_expire`.
// Prints one line, `{"url", "network", "mint", "payee", "fee_payer", "fee_payer_key"}`, keys being 32 bytes of hex.
//
// Methods of its own: `bed_account [key, atoms]` makes an account with so many atoms of USDC and no SOL and answers
// `{ address, tokens }`; `bed_atoms [owner]` is what an owner holds; `bed_landed []` names every transaction so far;
// `bed_expire []` makes every blockhash given so far too old.
import { createServer } from 'node:http'
import { createKeyPairSignerFromPrivateKeyBytes, getAddressEncoder, getBase58Decoder, getProgramDerivedAddress, getTransactionDecoder } from '@solana/kit'
import litesvm from 'litesvm'
import { options } from '../clients/lib.mjs'

const { FailedTransactionMetadata, LiteSVM } = litesvm
const [GENESIS, MINT] = options().mainnet
  ? ['5eykt4UsFv8P8NJdTREpY1vzqKqZKvdpKuc147dw2N9d', 'EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v']
  : ['EtWTRABZaYq6iMfeYKouRu166VU2xqa1wcaWoxPkrZBG', '4zMMC9srt5Ri5X14GAgXhaHii3GnPAEERYPJgZJDncDU']
const NETWORK = `solana:${GENESIS.slice(0, 32)}`
const TOKEN = 'TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA'
const ASSOCIATED = 'ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL'
const DECIMALS = 6
/** A transaction that fails with one of these never gets into a block, so nobody ever hears of it. */
const NEVER_LANDS = {
  2: 'AccountNotFound', 4: 'InsufficientFundsForFee', 5: 'InvalidAccountForFee', 6: 'AlreadyProcessed', 7: 'BlockhashNotFound',
  9: 'MissingSignatureForFee', 11: 'SignatureFailure', 13: 'SanitizeFailure', 17: 'UnsupportedVersion',
}
const FEE = 5000n

const svm = new LiteSVM()
const bytes = (address) => Buffer.from(getAddressEncoder().encode(address))
const u64 = (n) => { const out = Buffer.alloc(8); out.writeBigUInt64LE(BigInt(n)); return out }
const plant = (address, data) => svm.setAccount({
  address, data, executable: false, lamports: svm.minimumBalanceForRentExemption(BigInt(data.length)), programAddress: TOKEN, space: BigInt(data.length),
})
// Layouts of the token program: a mint without authorities, and an account without delegate, native coin or close authority.
plant(MINT, Buffer.concat([Buffer.alloc(36), u64(10n ** 15n), Buffer.from([DECIMALS, 1]), Buffer.alloc(36)]))
const tokensOf = async (owner) => (await getProgramDerivedAddress({ programAddress: ASSOCIATED, seeds: [bytes(owner), bytes(TOKEN), bytes(MINT)] }))[0]
const hold = async (owner, atoms) => {
  const address = await tokensOf(owner)
  plant(address, Buffer.concat([bytes(MINT), bytes(owner), u64(atoms), Buffer.alloc(36), Buffer.from([1]), Buffer.alloc(12), Buffer.alloc(8), Buffer.alloc(36)]))
  return address
}
const held = (address) => {
  const account = svm.getAccount(address)
  return account.exists && account.programAddress === TOKEN && account.data.length === 165 ? Buffer.from(account.data).readBigUInt64LE(64) : null
}
const keyed = (hex) => createKeyPairSignerFromPrivateKeyBytes(Buffer.from(hex, 'hex'))

const feePayerKey = '01'.repeat(32)
const feePayer = (await keyed(feePayerKey)).address
const payee = (await keyed('02'.repeat(32))).address
svm.airdrop(feePayer, 10_000_000_000n)
await hold(payee, 0n)

let slot = svm.getClock().slot
/** Signature to `{ slot, err, meta, wire }` of what got into a block. */
const landed = new Map()
/** A validator knows a transaction again by its message, the runtime here by its first signature, which may not be there yet. */
const messages = new Set()
const messageOf = (tx) => Buffer.from(tx.messageBytes).toString('base64')
const context = () => ({ apiVersion: '2.0.0', slot })
const withContext = (value) => ({ context: context(), value })
const decode = (wire) => getTransactionDecoder().decode(Buffer.from(wire, 'base64'))
const signatureOf = (tx) => {
  const first = Object.values(tx.signatures)[0]
  return first ? getBase58Decoder().decode(first) : null
}
const account = (address) => {
  const found = svm.getAccount(address)
  if (!found.exists) return null
  return { data: [Buffer.from(found.data).toString('base64'), 'base64'], executable: found.executable, lamports: found.lamports, owner: found.programAddress, rentEpoch: 0, space: found.data.length }
}
/** An error in the words of JSON-RPC. */
const wordOf = (failed) => {
  const err = failed.err()
  if (typeof err === 'number') return NEVER_LANDS[err] ?? `TransactionError${err}`
  const inner = err.err?.()
  return { InstructionError: [err.index ?? 0, inner?.code !== undefined ? { Custom: inner.code } : typeof inner === 'number' ? `InstructionError${inner}` : String(inner)] }
}
const metaOf = (outcome, err) => {
  const meta = outcome instanceof FailedTransactionMetadata || typeof outcome.meta === 'function' ? outcome.meta() : outcome
  return { err, fee: FEE, logMessages: meta.logs(), computeUnitsConsumed: meta.computeUnitsConsumed(), innerInstructions: [], status: err ? { Err: err } : { Ok: null } }
}

function simulate(wire, { sigVerify = false, replaceRecentBlockhash = false } = {}) {
  const tx = decode(wire)
  if (!replaceRecentBlockhash && messages.has(messageOf(tx))) return withContext({ err: 'AlreadyProcessed', logs: [], unitsConsumed: 0, accounts: null, returnData: null, innerInstructions: [] })
  svm.withSigverify(sigVerify).withBlockhashCheck(!replaceRecentBlockhash)
  try {
    const outcome = svm.simulateTransaction(tx)
    const err = outcome instanceof FailedTransactionMetadata ? wordOf(outcome) : null
    const meta = metaOf(outcome, err)
    return withContext({ err, logs: meta.logMessages, unitsConsumed: meta.computeUnitsConsumed, accounts: null, returnData: null, innerInstructions: [] })
  } finally { svm.withSigverify(true).withBlockhashCheck(true) }
}

function send(wire, { skipPreflight = false } = {}) {
  const tx = decode(wire)
  const signature = signatureOf(tx)
  if (!signature || Object.values(tx.signatures).some((s) => !s)) throw Object.assign(new Error('Transaction signature verification failure'), { code: -32003 })
  if (!skipPreflight) {
    const { value } = simulate(wire, { sigVerify: true })
    if (value.err) throw Object.assign(new Error(`Transaction simulation failed: ${JSON.stringify(value.err)}`), { code: -32002, data: value })
  }
  const outcome = svm.sendTransaction(tx)
  const err = outcome instanceof FailedTransactionMetadata ? wordOf(outcome) : null
  if (typeof err === 'string' && Object.values(NEVER_LANDS).includes(err)) return signature
  slot += 1n
  svm.warpToSlot(slot)
  messages.add(messageOf(tx))
  landed.set(signature, { slot, err, meta: metaOf(outcome, err), wire })
  return signature
}

const METHODS = {
  getHealth: () => 'ok',
  getVersion: () => ({ 'solana-core': '2.0.0', 'feature-set': 0 }),
  getGenesisHash: () => GENESIS,
  getSlot: () => slot,
  getBlockHeight: () => slot,
  getLatestBlockhash: () => withContext({ blockhash: svm.latestBlockhash(), lastValidBlockHeight: slot + 150n }),
  isBlockhashValid: (blockhash) => withContext(blockhash === svm.latestBlockhash()),
  getMinimumBalanceForRentExemption: (size) => svm.minimumBalanceForRentExemption(BigInt(size)),
  getFeeForMessage: () => withContext(FEE),
  getBalance: (address) => withContext(svm.getBalance(address) ?? 0n),
  getAccountInfo: (address) => withContext(account(address)),
  getMultipleAccounts: (addresses) => withContext(addresses.map(account)),
  getTokenAccountBalance: (address) => {
    const atoms = held(address)
    if (atoms === null) throw Object.assign(new Error('Invalid param: could not find account'), { code: -32602 })
    const whole = Number(atoms) / 10 ** DECIMALS
    return withContext({ amount: String(atoms), decimals: DECIMALS, uiAmount: whole, uiAmountString: String(whole) })
  },
  simulateTransaction: simulate,
  sendTransaction: send,
  getSignatureStatuses: (signatures) => withContext(signatures.map((signature) => {
    const found = landed.get(signature)
    return found ? { slot: found.slot, confirmations: null, confirmationStatus: 'finalized', err: found.err, status: found.meta.status } : null
  })),
  getTransaction: (signature) => {
    const found = landed.get(signature)
    return found ? { slot: found.slot, blockTime: null, version: 0, transaction: [found.wire, 'base64'], meta: found.meta } : null
  },
  bed_account: async (key, atoms) => {
    const { address } = await keyed(key)
    return { address, tokens: await hold(address, atoms) }
  },
  bed_atoms: async (owner) => String(held(await tokensOf(owner)) ?? 0n),
  bed_landed: () => [...landed.keys()],
  bed_expire: () => { svm.expireBlockhash(); return null },
}

async function answer({ id, method, params = [] }) {
  try {
    if (!METHODS[method]) throw Object.assign(new Error(`Method not found: ${method}`), { code: -32601 })
    return { jsonrpc: '2.0', id, result: (await METHODS[method](...params)) ?? null }
  } catch (error) {
    return { jsonrpc: '2.0', id, error: { code: error.code ?? -32603, message: error.message, data: error.data } }
  }
}

const server = createServer(async (request, response) => {
  const parts = []
  for await (const part of request) parts.push(part)
  let said
  try {
    const asked = JSON.parse(Buffer.concat(parts).toString('utf8'))
    said = Array.isArray(asked) ? await Promise.all(asked.map(answer)) : await answer(asked)
  } catch (error) { said = { jsonrpc: '2.0', id: null, error: { code: -32700, message: error.message } } }
  response.writeHead(200, { 'content-type': 'application/json' })
  // Nothing here is larger than a number of JSON can be.
  response.end(JSON.stringify(said, (_, v) => (typeof v === 'bigint' ? Number(v) : v)))
})
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({
  url: `http://127.0.0.1:${server.address().port}`, network: NETWORK, mint: MINT, payee, fee_payer: feePayer, fee_payer_key: feePayerKey,
})))
