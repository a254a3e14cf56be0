"""Calls of `/v1/responses` by PyPI openai, or of `/v1/messages` by PyPI anthropic, one after the other, with pympp's paying transport under it.

    --base URL --sdk openai|anthropic [--how json,stream,helper] [--rpc URL] [--key 0x…] [--prompt P]

Without `--rpc` nothing pays: which error it makes of our 402.
"""

import asyncio

import httpx
import httpx2
import mpp.methods.tempo.client as tempo
from anthropic import AsyncAnthropic
from mpp.client import Mpp
from mpp.methods.tempo import TempoAccount
from openai import AsyncOpenAI

from common import error_line, interesting, once, options

# pympp signs for 60 s, which is right for a network at T11 and past the 30 s that the local chain (T4) allows.
tempo.EXPIRING_NONCE_VALID_BEFORE_SECS = 25

# Dev account 3 of the chain's public mnemonic.
PAYER_KEY = "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"


async def openai(o, http):
    client = AsyncOpenAI(base_url=f"{o['base']}/v1", api_key="client-key", http_client=http)
    body = {"model": o["model"], "input": o["prompt"], "max_output_tokens": 50}
    if o["how"] == "helper":
        async with client.responses.stream(**body) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        return {"text": final.output_text, "usage": final.usage.model_dump(), "kinds": kinds}
    if o["how"] == "stream":
        out = {"text": "", "usage": None, "kinds": []}
        async for event in await client.responses.create(**body, stream=True):
            out["kinds"].append(event.type)
            if event.type == "response.output_text.delta":
                out["text"] += event.delta
            if event.type == "response.completed":
                out["usage"] = event.response.usage.model_dump()
        return out
    raw = await client.responses.with_raw_response.create(**body)
    reply = raw.parse()
    return {"headers": interesting(raw.headers), "text": reply.output_text, "usage": reply.usage.model_dump()}


class Passed(httpx2.AsyncByteStream):
    """A body of httpx as one of httpx2."""

    def __init__(self, reply):
        self.reply = reply

    async def __aiter__(self):
        async for part in self.reply.aiter_raw():
            yield part

    async def aclose(self):
        await self.reply.aclose()


class Bridge(httpx2.AsyncBaseTransport):
    """The SDK speaks through httpx2, pympp pays in httpx: what one asks, the other sends."""

    def __init__(self, http):
        self.http = http

    async def handle_async_request(self, request):
        asked = self.http.build_request(request.method, str(request.url), headers=request.headers.raw, content=await request.aread())
        reply = await self.http.send(asked, stream=True)
        return httpx2.Response(reply.status_code, headers=reply.headers.raw, stream=Passed(reply))


async def anthropic(o, http):
    http = httpx2.AsyncClient(transport=Bridge(http), timeout=60)
    client = AsyncAnthropic(base_url=o["base"], api_key="client-key", http_client=http)
    body = {"model": o["model"], "messages": [{"role": "user", "content": o["prompt"]}], "max_tokens": 50}
    if o["how"] == "helper":
        async with client.messages.stream(**body) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_message()
        return {"text": final.content[0].text, "usage": final.usage.model_dump(), "kinds": kinds}
    if o["how"] == "stream":
        out = {"text": "", "usage": {}, "kinds": []}
        async for event in await client.messages.create(**body, stream=True):
            out["kinds"].append(event.type)
            if event.type == "content_block_delta":
                out["text"] += event.delta.text
            if event.type == "message_start":
                out["usage"] = event.message.usage.model_dump()
            if event.type == "message_delta":
                out["usage"].update({k: v for k, v in event.usage.model_dump().items() if v is not None})
        return out
    raw = await client.messages.with_raw_response.create(**body)
    parsed = raw.parse()
    reply = await parsed if asyncio.iscoroutine(parsed) else parsed
    return {"headers": interesting(raw.headers), "text": reply.content[0].text, "usage": reply.usage.model_dump()}


SDKS = {"openai": openai, "anthropic": anthropic}


async def run(o):
    o = {"model": "openai/gpt-oss-120b", "how": "json", "prompt": "one two three", **o}
    result = {"client": o["sdk"], "payments": [], "answers": []}
    calls = []

    async def counted(request):
        calls.append(request.url.path)

    async def call(http):
        for how in o["how"].split(","):
            answer, before = {"how": how}, len(calls)
            try:
                answer.update(await SDKS[o["sdk"]]({**o, "how": how}, http), ok=True)
            except Exception as error:  # noqa: BLE001
                answer.update(ok=False, error=error_line(error))
            result["answers"].append({**answer, "calls": len(calls) - before})

    hooks = {"request": [counted]}
    if "rpc" not in o:
        async with httpx.AsyncClient(timeout=60, event_hooks=hooks) as http:
            await call(http)
        return result
    account = TempoAccount.from_key(o.get("key", PAYER_KEY))
    async with Mpp(methods=[tempo.charge(account=account, rpc_url=o["rpc"])]) as payer:
        payer.on_credential_created(lambda event: result["payments"].append(event["credential"].to_authorization()))
        async with payer.client(timeout=60, event_hooks=hooks) as http:
            await call(http)
    return result


once(lambda: asyncio.run(run(options())))
