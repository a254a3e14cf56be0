// npm openai: the list of models, and one of them.
//   --base URL/v1 --model NAME
import OpenAI from 'openai'
import { errorLine, once, options } from './lib.mjs'

once(async () => {
  const o = options()
  const client = new OpenAI({ baseURL: o.base, apiKey: 'unused', maxRetries: 0 })
  const result = { client: 'openai' }
  try {
    result.list = []
    for await (const model of client.models.list()) result.list.push(model)
    // Also names with a slash, as the SDK writes them into the path; what it adds to the body stays out.
    const { _request_id, ...one } = await client.models.retrieve(o.model)
    Object.assign(result, { one, ok: true })
  } catch (error) {
    Object.assign(result, { ok: false, error: errorLine(error) })
  }
  return result
})
