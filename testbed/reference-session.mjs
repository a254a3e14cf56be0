// A seller of sessions built on mppx's own server side: 75 atoms a token, six tokens an answer. It has nothing of the gate in
// it, so what a client makes of it is a fact about the client. Prints its address and serves until its input ends.
//   node reference-session.mjs RPC_URL PAYEE_KEY [SUGGESTED_DEPOSIT_USD]
import { createServer } from 'node:http'
import { Store } from 'mppx'
import { Mppx, Request as NodeRequest, tempo } from 'mppx/server'
import { createClient, http } from 'viem'
import { privateKeyToAccount } from 'viem/accounts'
import { tempoModerato } from 'viem/tempo/chains'
import { PATH_USD } from './chain.mjs'

const [rpc, key, suggestedDeposit = '0.0003'] = process.argv.slice(2)
const account = privateKeyToAccount(key)
const client = createClient({ account, chain: tempoModerato, transport: http(rpc), pollingInterval: 100 })
const seller = Mppx.create({
  methods: [tempo.session({ account, recipient: account.address, currency: PATH_USD, chainId: 42431, getClient: () => client, store: Store.memory(), sse: true, channelStateTtl: 0 })],
  realm: '127.0.0.1', secretKey: 'reference-secret-0123456789abcdef0123456789',
})
const chunk = (model, rest) => JSON.stringify({ id: 'chatcmpl-ref', created: 1, model, object: 'chat.completion.chunk', ...rest })
const handle = async (request) => {
  const body = await request.clone().json().catch(() => ({}))
  const outcome = await seller.session({ amount: '0.000075', unitType: 'token', suggestedDeposit })(request)
  if (outcome.status === 402) return outcome.challenge
  if (!body.stream) {
    return outcome.withReceipt(Response.json({
      id: 'chatcmpl-ref', created: 1, model: body.model ?? 'm', object: 'chat.completion', usage: { prompt_tokens: 3, completion_tokens: 1, total_tokens: 4 },
      choices: [{ index: 0, message: { role: 'assistant', content: 'tok0' }, finish_reason: 'stop' }],
    }))
  }
  return outcome.withReceipt(async function* (stream) {
    for (let i = 0; i < 6; i++) {
      await stream.charge()
      yield chunk(body.model ?? 'm', { choices: [{ index: 0, delta: { content: (i ? ' ' : '') + 'tok' + i }, finish_reason: i === 5 ? 'stop' : null }] })
    }
    yield '[DONE]'
  })
}
const server = createServer(NodeRequest.toNodeListener(handle))
server.listen(0, '127.0.0.1', () => process.stdout.write(`http://127.0.0.1:${server.address().port}\n`))
process.stdin.on('end', () => process.exit(0)).resume()
