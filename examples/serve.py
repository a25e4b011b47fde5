"""An export over HTTP, in the format of TensorFlow Serving. Needs: pip install "jaxspec[serve]"

    python examples/serve.py EXPORT [PORT]
    curl localhost:8501/v1/models/model:predict -d '{"inputs": {"image": [...]}, "signature_name": "serving_default"}'

Requests that come while the devices are busy run as one batch.
"""

import json
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

import jaxspec as js


def make_app(path):
    """The server of the export at `path`."""
    batchers = {name: js.export.Batcher(signature) for name, signature in js.export.load(path).signatures.items()}

    def answer(body):
        try:
            asked = json.loads(body)
            name = asked.get("signature_name", "serving_default")
            if name not in batchers:
                raise HTTPException(404, f"there is no signature {name!r}; there are {sorted(batchers)}")
            arrays = batchers[name].signature.check(**asked["inputs"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f'{type(error).__name__}: {error}; expected {{"inputs": {{NAME: VALUES}}}} in JSON'
            raise HTTPException(400, reason) from error
        rows, most = len(next(iter(arrays.values()))), batchers[name].max_rows
        if rows > most:
            raise HTTPException(413, f"{rows} rows; send at most {most} at a time")
        return json.dumps({"outputs": {key: x.tolist() for key, x in batchers[name](**arrays).items()}})

    async def predict(request):
        text = await run_in_threadpool(answer, await request.body())
        return Response(text, media_type="application/json")

    return Starlette(routes=[Route("/v1/models/{model}:predict", predict, methods=["POST"])])


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1]), port=int(sys.argv[2]) if len(sys.argv) > 2 else 8501)
