"""An export over HTTP, in the format of TensorFlow Serving. Needs: pip install "jaxspec[serve]"

    python examples/serve.py EXPORT [PORT]
    curl localhost:8501/v1/models/model:predict -d '{"inputs": {"image": [...]}, "signature_name": "serving_default"}'

Requests that come while the devices are busy run as one batch. Its rows are filled up to a power of two, so that few
sizes are compiled.
"""

import asyncio
import collections
import functools
import json
import sys

import jax
import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

import jaxspec as js

MOST_REQUESTS, MOST_ROWS = 32, 1024  # in a batch; in a request


class Batcher:
    """Runs a signature on the rows of several requests at once."""

    def __init__(self, signature):
        self.signature, self.waiting, self.busy = signature, collections.deque(), asyncio.Lock()

    async def __call__(self, arrays):
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append((arrays, answer))
        async with self.busy:
            while not answer.done():
                batch = [self.waiting.popleft() for _ in range(min(len(self.waiting), MOST_REQUESTS))]
                try:
                    results = await asyncio.to_thread(self.run, [arrays for arrays, _ in batch])
                except Exception as error:
                    results = [error] * len(batch)
                for (_, waiting), result in zip(batch, results, strict=True):
                    waiting.set_result(result)
        return answer.result()

    def run(self, requests):
        ends = np.cumsum([rows_of(arrays) for arrays in requests])
        joined = {name: np.concatenate([arrays[name] for arrays in requests]) for name in requests[0]}
        filled = {name: np.resize(x, (1 << int(ends[-1] - 1).bit_length(), *x.shape[1:])) for name, x in joined.items()}
        outputs = jax.device_get(self.signature(**filled))
        of_rows = {name for name, form in self.signature.outputs.items() if form["shape"][:1] == ["batch"]}
        return [
            {name: x[end - rows_of(arrays) : end] if name in of_rows else x for name, x in outputs.items()}
            for arrays, end in zip(requests, ends, strict=True)
        ]


def rows_of(arrays):
    return len(next(iter(arrays.values())))


def make_app(path):
    """The server of the export at `path`."""
    signatures = js.export.load(path).signatures
    batcher = functools.cache(lambda name, form: Batcher(signatures[name]))  # those of one form fit into one batch

    async def predict(request):
        try:
            body = json.loads(await request.body())
            inputs, name = body["inputs"], body.get("signature_name", "serving_default")
            arrays = signatures[name].check(**inputs) if name in signatures else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HTTPException(
                400, f'{type(error).__name__}: {error}; expected {{"inputs": {{NAME: VALUES}}}} in JSON'
            ) from error
        if arrays is None:
            raise HTTPException(404, f"there is no signature {name!r}; there are {sorted(signatures)}")
        if rows_of(arrays) > MOST_ROWS:
            raise HTTPException(413, f"{rows_of(arrays)} rows; send at most {MOST_ROWS} at a time")
        result = await batcher(name, tuple((key, x.shape[1:]) for key, x in arrays.items()))(arrays)
        if isinstance(result, Exception):
            raise result
        text = json.dumps({"outputs": {key: x.tolist() for key, x in result.items()}})
        return Response(text, media_type="application/json")

    return Starlette(routes=[Route("/v1/models/{model}:predict", predict, methods=["POST"])])


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1]), port=int(sys.argv[2]) if len(sys.argv) > 2 else 8501)
