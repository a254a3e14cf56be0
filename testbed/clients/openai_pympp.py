"""PyPI openai with pympp's paying transport under it: what an agent's program looks like. Retries are the SDK's default, so
an upstream failure shows how often the payer is debited.

    --base URL/v1 --rpc URL [--key 0x…] [--max_retries N] [--stream] [--body JSON | --model M --prompt P --max_tokens N]
"""

import asyncio

import mpp.methods.tempo.client as tempo
from mpp.client import Mpp
from mpp.methods.tempo import TempoAccount
from openai import AsyncOpenAI

from common import chat_body, error_line, interesting, once, options

# pympp signs for 60 s, which is right for a network at T11 and past the 30 s that the local chain (T4) allows.
tempo.EXPIRING_NONCE_VALID_BEFORE_SECS = 25

# Dev account 3 of the chain's public mnemonic.
PAYER_KEY = "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"


async def run(o):
    account = TempoAccount.from_key(o.get("key", PAYER_KEY))
    result = {"client": "openai+pympp", "payer": account.address, "payments": [], "tokens": [], "calls": 0}

    async def counted(request):
        result["calls"] += 1

    extra = {"max_retries": int(o["max_retries"])} if "max_retries" in o else {}
    async with Mpp(methods=[tempo.charge(account=account, rpc_url=o["rpc"])]) as payer:
        payer.on_credential_created(lambda event: result["payments"].append(event["credential"].to_authorization()))
        async with payer.client(timeout=60, event_hooks={"request": [counted]}) as http:
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
