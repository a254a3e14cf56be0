"""PyPI pympp: a charge, plain or streamed.

    --url URL --rpc URL [--key 0x…] [--stream] [--body JSON | --model M --prompt P --max_tokens N]
"""

import asyncio

import mpp.methods.tempo.client as tempo
from mpp.client import Mpp
from mpp.methods.tempo import TempoAccount

from common import chat_body, error_line, interesting, once, options

# pympp signs for 60 s, which is right for a network at T11 and past the 30 s that the local chain (T4) allows.
tempo.EXPIRING_NONCE_VALID_BEFORE_SECS = 25

# Dev account 3 of the chain's public mnemonic.
PAYER_KEY = "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"


async def run(o):
    account = TempoAccount.from_key(o.get("key", PAYER_KEY))
    result = {"client": "pympp", "payer": account.address, "payments": []}
    async with Mpp(methods=[tempo.charge(account=account, rpc_url=o["rpc"])]) as payer:
        payer.on_credential_created(lambda event: result["payments"].append(str(getattr(event, "name", event.__class__.__name__))))
        try:
            async with payer.client(timeout=60) as http:
                async with http.stream("POST", o["url"], json=chat_body(o)) as response:
                    text = (await response.aread()).decode("utf-8", "replace")
        except Exception as error:  # noqa: BLE001
            return {**result, "ok": False, "error": error_line(error)}
    result.update(ok=response.is_success, status=response.status_code, headers=interesting(response.headers), raw=text)
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        try:
            result["body"] = response.json()
        except ValueError:
            pass
    return result


once(lambda: asyncio.run(run(options())))
