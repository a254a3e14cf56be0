"""PyPI x402: one paid call over httpx, or with --sync over requests.

    --url URL [--rpc URL --key 0x…] [--svm_rpc URL --svm_key HEX] [--scheme exact|upto] [--network N]
    [--transfer eip3009|permit2] [--sync] [--body JSON | --model M --prompt P --max_tokens N --stream]
"""

import asyncio

import httpx
import requests
from x402.http import decode_payment_response_header
from x402.http.clients import wrapRequestsWithPayment, x402_httpx_transport

from common import chat_body, error_line, interesting, once, options
from x402_wallet import wallet


def seen(result, ok, status, headers, raw):
    result.update(ok=ok, status=status, headers=interesting(headers), raw=raw)
    receipt = headers.get("payment-response")
    if receipt:
        # The SDK's own reader must accept the receipt, not only ours.
        try:
            result["receipt"] = decode_payment_response_header(receipt).model_dump(exclude_none=True)
        except Exception as error:  # noqa: BLE001
            result["receipt_error"] = str(error)
    return result


async def over_httpx(o):
    result = {"client": "x402 httpx", "payments": []}
    client, result["payers"] = wallet(o, result["payments"])
    try:
        async with httpx.AsyncClient(timeout=60, transport=x402_httpx_transport(client)) as http:
            async with http.stream("POST", o["url"], json=chat_body(o)) as response:
                raw = (await response.aread()).decode("utf-8", "replace")
    except Exception as error:  # noqa: BLE001
        return {**result, "ok": False, "error": error_line(error)}
    return seen(result, response.is_success, response.status_code, response.headers, raw)


def over_requests(o):
    result = {"client": "x402 requests", "payments": []}
    client, result["payers"] = wallet(o, result["payments"], sync=True)
    try:
        with wrapRequestsWithPayment(requests.Session(), client) as http:
            response = http.post(o["url"], json=chat_body(o), timeout=60)
    except Exception as error:  # noqa: BLE001
        return {**result, "ok": False, "error": error_line(error)}
    return seen(result, response.ok, response.status_code, response.headers, response.text)


def run(o):
    return over_requests(o) if o.get("sync") else asyncio.run(over_httpx(o))


once(lambda: run(options()))
