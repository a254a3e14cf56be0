"""PyPI openai: the list of models, and one of them.

    --base URL/v1 --model NAME
"""

from openai import OpenAI

from common import error_line, once, options


def run():
    o = options()
    client = OpenAI(base_url=o["base"], api_key="unused", max_retries=0)
    result = {"client": "openai-python"}
    try:
        result["list"] = [model.model_dump(exclude_unset=True, exclude={"_request_id"}) for model in client.models.list()]
        result.update(one=client.models.retrieve(o["model"]).model_dump(exclude_unset=True, exclude={"_request_id"}), ok=True)
    except Exception as error:
        result.update(ok=False, error=error_line(error))
    return result


once(run)
