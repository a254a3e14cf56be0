"""What the Python client scripts share: options and one line of JSON out."""

import base64
import json
import os
import sys


def options(**defaults):
    """`--name value` from the command line, else PONTAGE_CLIENT_NAME from the environment; a bare flag is True."""
    out = {k: v for k, v in defaults.items() if v is not None}
    argv = sys.argv[1:]
    i = 0
    while i < len(argv):
        if not argv[i].startswith("--"):
            raise SystemExit(f"unexpected argument {argv[i]}")
        name = argv[i][2:].replace("-", "_")
        if i + 1 < len(argv) and not argv[i + 1].startswith("--"):
            out[name] = argv[i + 1]
            i += 2
        else:
            out[name] = True
            i += 1
    for key, value in os.environ.items():
        if key.startswith("PONTAGE_CLIENT_"):
            out.setdefault(key[len("PONTAGE_CLIENT_"):].lower(), value)
    return out


def chat_body(o):
    if isinstance(o.get("body"), str):
        return json.loads(o["body"])
    body = {
        "model": o.get("model", "openai/gpt-oss-120b"),
        "messages": [{"role": "user", "content": o.get("prompt", "one two three")}],
    }
    if "max_tokens" in o:
        body["max_tokens"] = int(o["max_tokens"])
    if o.get("stream"):
        body["stream"] = True
    return body


def b64json(text):
    try:
        return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except ValueError:
        return {"undecodable": text}


KEPT = ("payment-", "pontage-", "x-payment", "x-should-retry", "x-request-id", "retry-after", "www-authenticate", "content-type", "cache-control")


def interesting(headers):
    out = {k.lower(): v for k, v in headers.items() if k.lower().startswith(KEPT)}
    if "payment-receipt" in out:
        out["payment_receipt"] = b64json(out["payment-receipt"])
    for name in ("payment-response", "x-payment-response", "payment-required"):
        if name in out:
            out[name.replace("-", "_")] = b64json(out[name])
    return out


def error_line(error):
    response = getattr(error, "response", None)
    return {
        "name": type(error).__name__,
        "message": str(error),
        "status": getattr(error, "status_code", None),
        "type": getattr(error, "type", None),
        "code": getattr(error, "code", None),
        "body": getattr(error, "body", None),
        "headers": interesting(response.headers) if response is not None else None,
        "response_text": _text(response),
    }


def _text(response):
    try:
        return response.text if response is not None else None
    except Exception:  # a streamed response that was never read
        return None


def once(work):
    """Runs `work`, prints exactly one line of JSON. The exit code says whether the run happened, not whether it was paid."""
    try:
        line = work()
    except Exception as error:  # noqa: BLE001 - the test wants to see it, whatever it is
        line = {"ok": False, "error": error_line(error)}
    print(json.dumps(line, default=str), flush=True)
