"""PyPI openai without a wallet: which error it makes of our 402, and whether it reads our streams.

    --base URL/v1 [--authorization "Payment …"] [--stream] [--helper] [--max_retries N] [--body JSON | …]

`--authorization` replaces the API key header, so that a paid stream can be read by a client that cannot pay.
"""

import httpx
from openai import OpenAI

from common import chat_body, error_line, interesting, once, options


def run():
    o = options()
    calls, answers = [], []
    hooks = {"request": [lambda request: calls.append(str(request.url.path))], "response": [answers.append]}
    http = httpx.Client(timeout=60, event_hooks=hooks)
    extra = {"max_retries": int(o["max_retries"])} if "max_retries" in o else {}
    headers = {"Authorization": o["authorization"]} if "authorization" in o else {}
    client = OpenAI(base_url=o["base"], api_key="unused", http_client=http, default_headers=headers, **extra)
    body = chat_body(o)
    result = {"client": "openai-python"}
    try:
        if o.get("helper"):
            body.pop("stream", None)
            with client.chat.completions.stream(**body) as stream:
                kinds = [event.type for event in stream]
                final = stream.get_final_completion()
            # The helper hides the head of the reply; the transport has it.
            result.update(helper=True, headers=interesting(answers[-1].headers), chunks=kinds.count("chunk"), text=final.choices[0].message.content)
        elif body.get("stream"):
            raw = client.chat.completions.with_raw_response.create(**body)
            result.update(status=raw.status_code, headers=interesting(raw.headers), chunks=0, tokens=[], extra=[], usage=None)
            for chunk in raw.parse():
                result["chunks"] += 1
                if chunk.usage:
                    result["usage"] = chunk.usage.model_dump()
                if len(chunk.choices) == 0:  # a chunk without `choices` would throw here, as in most programs
                    result["extra"].append(chunk.model_dump())
                elif chunk.choices[0].delta.content:
                    result["tokens"].append(chunk.choices[0].delta.content)
            result["text"] = "".join(result["tokens"])
        else:
            raw = client.chat.completions.with_raw_response.create(**body)
            reply = raw.parse()
            result.update(status=raw.status_code, headers=interesting(raw.headers), body=reply.model_dump(), text=reply.choices[0].message.content)
        result["ok"] = True
    except Exception as error:  # noqa: BLE001
        result.update(ok=False, error=error_line(error))
    result["calls"] = len(calls)
    return result


once(run)
