"""One call of one surface by PyPI openai, with pympp's paying transport under it.

    --base URL/v1 --rpc URL --surface completions|embeddings|images|speech|transcriptions [--stream] [--key 0x…] [--model M]
"""

import asyncio

import mpp.methods.tempo.client as tempo
from mpp.client import Mpp
from mpp.methods.tempo import TempoAccount
from openai import AsyncOpenAI

from common import error_line, once, options

# pympp signs for 60 s, which is right for a network at T11 and past the 30 s that the local chain (T4) allows.
tempo.EXPIRING_NONCE_VALID_BEFORE_SECS = 25

# Dev account 3 of the chain's public mnemonic.
PAYER_KEY = "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"


async def completions(client, model, o):
    body = {"model": model, "prompt": "one two three", "max_tokens": 5}
    if not o.get("stream"):
        reply = await client.completions.create(**body)
        return {"text": reply.choices[0].text, "usage": reply.usage.model_dump()}
    out = {"text": "", "usage": None}
    async for chunk in await client.completions.create(**body, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            out["text"] += choice.text
        if chunk.usage:
            out["usage"] = chunk.usage.model_dump()
    return out


async def embeddings(client, model, o):
    # The SDK asks for base64 by itself and decodes it.
    reply = await client.embeddings.create(model=model, input=["one two three", "four"])
    return {"vectors": [list(item.embedding) for item in reply.data], "usage": reply.usage.model_dump()}


async def images(client, model, o):
    reply = await client.images.generate(model=model, prompt="a bridge", n=2, size="256x256", response_format="b64_json")
    return {"images": [item.b64_json for item in reply.data]}


async def speech(client, model, o):
    reply = await client.audio.speech.create(model=model, voice="alloy", input="hello", response_format="wav")
    return {"type": reply.response.headers.get("content-type"), "sound": reply.content.hex()}


async def transcriptions(client, model, o):
    file = ("hello.wav", b"RIFF\r\n\x00\x01sound", "audio/wav")
    return {"text": (await client.audio.transcriptions.create(model=model, file=file, language="en")).text}


CALLS = {f.__name__: f for f in (completions, embeddings, images, speech, transcriptions)}


async def run(o):
    account = TempoAccount.from_key(o.get("key", PAYER_KEY))
    result = {"client": "openai+pympp", "surface": o["surface"], "payments": []}
    async with Mpp(methods=[tempo.charge(account=account, rpc_url=o["rpc"])]) as payer:
        payer.on_credential_created(lambda event: result["payments"].append(event["credential"].to_authorization()))
        async with payer.client(timeout=60) as http:
            client = AsyncOpenAI(base_url=o["base"], api_key="unused", http_client=http)
            try:
                result.update(await CALLS[o["surface"]](client, o.get("model", "house/all"), o))
                result["ok"] = True
            except Exception as error:  # noqa: BLE001
                result.update(ok=False, error=error_line(error))
    return result


once(lambda: asyncio.run(run(options())))
