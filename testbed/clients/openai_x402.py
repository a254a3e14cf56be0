"""PyPI openai with x402's paying transport under it: what an agent's program looks like. Retries are the SDK's default, so
an upstream failure shows how often the payer is debited.

    --base URL/v1 [--rpc URL --key 0x…] [--svm_rpc URL --svm_key HEX] [--scheme exact|upto] [--network N]
    [--transfer eip3009|permit2] [--max_retries N] [--stream] [--body JSON | --model M --prompt P --max_tokens N]
"""

import asyncio

import httpx
from openai import AsyncOpenAI
from x402.http.clients import x402_httpx_transport

from common import chat_body, error_line, interesting, once, options
from x402_wallet import wallet


async def run(o):
    result = {"client": "openai+x402", "payments": [], "tokens": []}
    payer, result["payers"] = wallet(o, result["payments"])
    extra = {"max_retries": int(o["max_retries"])} if "max_retries" in o else {}
    async with httpx.AsyncClient(timeout=60, transport=x402_httpx_transport(payer)) as http:
        client = AsyncOpenAI(base_url=o["base"], api_key="unused", http_client=http, **extra)
        body = chat_body(o)
        try:
            raw = await client.chat.completions.with_raw_response.create(**body)
            result.update(status=raw.status_code, headers=interesting(raw.headers))
            reply = raw.parse()
            if body.get("stream"):
                result["usage"] = None
                async for chunk in reply:
                    if chunk.usage:
                        result["usage"] = chunk.usage.model_dump()
                    # As in most programs: a chunk without `choices` would throw here.
                    for choice in chunk.choices:
                        if choice.delta.content:
                            result["tokens"].append(choice.delta.content)
                result["text"] = "".join(result["tokens"])
            else:
                result.update(body=reply.model_dump(), usage=reply.usage.model_dump(), text=reply.choices[0].message.content)
            result["ok"] = True
        except Exception as error:  # noqa: BLE001
            result.update(ok=False, error=error_line(error))
    return result


once(lambda: asyncio.run(run(options())))
