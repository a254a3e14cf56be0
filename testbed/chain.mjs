// Starts the local Tempo chain the way the tests do, for scripts. `stop()` ends only the process started here.
import { execFileSync, spawn } from 'node:child_process'
import { createServer } from 'node:net'
import { fileURLToPath } from 'node:url'

export const PATH_USD = '0x20c0000000000000000000000000000000000000'
const BETA_USD = '0x20c0000000000000000000000000000000000002'
/** The chain's public mnemonic is known to everybody; these accounts hold money on no other chain. */
export const DEV = [
  { address: '0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266', key: '0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80' },
  { address: '0x70997970C51812dc3A010C7d01b50e0d17dc79C8', key: '0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d' },
  { address: '0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC', key: '0x5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a' },
  { address: '0x90F79bf6EB2c4f870365E785982E1f101E93b906', key: '0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6' },
]

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

export function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(0, '127.0.0.1', () => { const { port } = server.address(); server.close(() => resolve(port)) })
  })
}

export async function rpc(url, method, params = []) {
  const response = await fetch(url, {
    method: 'POST', headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method, params }),
  })
  const { result, error } = await response.json()
  if (error) throw new Error(`${method}: ${error.message}`)
  return result
}

/** Balance of one account in a TIP-20 token, in atoms. */
export async function balance(url, address, token = PATH_USD) {
  return BigInt(await rpc(url, 'eth_call', [{ to: token, data: '0x70a08231' + address.slice(2).toLowerCase().padStart(64, '0') }, 'latest']))
}

/**
 * Gives a fresh account `atoms` of pathUSD, and gas to spend in another token, so that what its pathUSD loses is what
 * it paid.
 */
export async function fund(url, address, atoms) {
  const word = (n) => n.toString(16).padStart(64, '0')
  const send = async (call) => {
    const tx = await rpc(url, 'eth_sendTransaction', [{ gas: '0x1e8480', ...call }])
    for (let i = 0; i < 200; i++) {
      const receipt = await rpc(url, 'eth_getTransactionReceipt', [tx])
      if (receipt?.status === '0x1') return
      if (receipt) throw new Error(`funding transaction ${tx} was reverted`)
      await sleep(50)
    }
    throw new Error(`funding transaction ${tx} was not mined within 10 s`)
  }
  for (const [token, amount] of [[BETA_USD, 1_000_000_000n], [PATH_USD, atoms]]) {
    if (amount > 0n) await send({ from: DEV[0].address, to: token, data: '0xa9059cbb' + word(BigInt(address)) + word(amount) })
  }
  // `setUserToken(BetaUSD)` on the fee manager, as the account itself.
  await rpc(url, 'anvil_impersonateAccount', [address])
  await send({ from: address, to: '0xfeec000000000000000000000000000000000000', data: '0xe7897444' + word(BigInt(BETA_USD)), feeToken: BETA_USD })
  await rpc(url, 'anvil_stopImpersonatingAccount', [address])
}

export async function startChain() {
  const binary = execFileSync(fileURLToPath(new URL('./anvil-path', import.meta.url)), { encoding: 'utf8' }).trim()
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  const child = spawn(binary, [
    '--network', 'tempo', '--hardfork', 'T4', '--chain-id', '42431', '--host', '127.0.0.1', '--port', String(port),
    // Without both of these the block clock stands still between payments and every expiring nonce is refused.
    '--block-time', '1', '--mixed-mining', '--quiet',
  ], { stdio: 'ignore', detached: true })
  let gone = false
  child.once('exit', () => { gone = true })
  const deadline = Date.now() + 15_000
  for (;;) {
    if (gone) throw new Error('the local chain ended while starting')
    try { if (await rpc(url, 'eth_chainId') === '0xa5bf') break } catch {}
    if (Date.now() > deadline) { child.kill('SIGKILL'); throw new Error('the local chain did not answer within 15 s') }
    await sleep(50)
  }
  // Its first block is of 1970: to a node with nothing newer every expiring nonce is too far off.
  await rpc(url, 'evm_mine')
  return {
    url, pid: child.pid,
    stop: () => new Promise((resolve) => { if (gone) return resolve(); child.once('exit', resolve); child.kill('SIGTERM'); setTimeout(() => child.kill('SIGKILL'), 3000).unref() }),
  }
}
