// A seller built on mppx's own server side: chat completions for 0.02 USD a call on the local chain. It has nothing of
// the gate in it, so what a client makes of it is a fact about the client. The stream carries our receipt forms.
import { createServer } from 'node:http'
import { Mppx, Request as NodeRequest, tempo } from 'mppx/server'
import { createClient, http } from 'viem'
import { tempoModerato } from 'viem/tempo/chains'
import { DEV, PATH_USD } from './chain.mjs'

const RECEIPT = { id: 'ref-1', usage: { prompt_tokens: 3, completion_tokens: 4, total_tokens: 7 }, charged: '0.02' }

export async function startReference(rpcUrl) {
  const client = createClient({ chain: tempoModerato, transport: http(rpcUrl), pollingInterval: 100 })
  const seller = Mppx.create({
    methods: [tempo.charge({ currency: PATH_USD, recipient: DEV[1].address, getClient: () => client })],
    realm: '127.0.0.1', secretKey: 'reference-secret-0123456789abcdef0123456789',
  })
  let failures = 0
  const handle = async (request) => {
    const path = new URL(request.url).pathname
    const body = await request.clone().json().catch(() => ({}))
    const paid = !path.startsWith('/free')
    let wrap = (response) => response
    if (paid) {
      const outcome = await seller.charge({ amount: '0.02', description: 'chat completion' })(request)
      if (outcome.status === 402) return outcome.challenge
      wrap = (response) => outcome.withReceipt(response)
    }
    if (path.startsWith('/broken')) {
      failures++
      return Response.json({ error: { message: 'backend failed', type: 'server_error', code: 'upstream' } }, { status: 500 })
    }
    const head = { id: 'chatcmpl-ref', created: 1, model: body.model ?? 'm' }
    if (!body.stream) {
      return wrap(Response.json({
        ...head, object: 'chat.completion', usage: RECEIPT.usage, pontage: RECEIPT,
        choices: [{ index: 0, message: { role: 'assistant', content: 'tok0 tok1 tok2 tok3' }, finish_reason: 'stop' }],
      }))
    }
    const chunk = (rest) => `data: ${JSON.stringify({ ...head, object: 'chat.completion.chunk', ...rest })}\n\n`
    const pieces = [0, 1, 2, 3].map((i) => chunk({ choices: [{ index: 0, delta: { ...(i ? {} : { role: 'assistant' }), content: (i ? ' ' : '') + 'tok' + i }, finish_reason: null }] }))
    pieces.push(
      chunk({ choices: [{ index: 0, delta: {}, finish_reason: 'stop' }] }),
      chunk({ choices: [], usage: RECEIPT.usage }),
      chunk({ choices: [], pontage: RECEIPT }),
      `: pontage-receipt ${Buffer.from(JSON.stringify(RECEIPT)).toString('base64url')}\n\n`,
      'data: [DONE]\n\n',
    )
    const stream = new ReadableStream({
      async pull(controller) {
        if (pieces.length === 0) return controller.close()
        await new Promise((resolve) => setTimeout(resolve, 5))
        controller.enqueue(new TextEncoder().encode(pieces.shift()))
      },
    })
    return wrap(new Response(stream, { headers: { 'content-type': 'text/event-stream' } }))
  }
  const server = createServer(NodeRequest.toNodeListener(handle))
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  return { url: `http://127.0.0.1:${server.address().port}`, failures: () => failures, stop: () => { server.closeAllConnections(); server.close() } }
}
