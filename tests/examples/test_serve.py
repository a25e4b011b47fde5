"""examples/serve.py over a real socket."""

import concurrent.futures
import contextlib
import http.client
import json
import pathlib
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
import serve
import uvicorn
from exports import ROWS, predicted, receiver_fn, trained

import jaxspec as js
from jaxspec.export import PredictOutput

PATH = "/v1/models/model:predict"


@contextlib.contextmanager
def served(path):
    """The port of a server of the export."""
    server = uvicorn.Server(uvicorn.Config(serve.make_app(path), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        for _ in range(6000):
            if server.started:
                break
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def outputs(logits, features):
    everything = {"logits": logits, "names": jnp.arange(3)}
    return {"serving_default": PredictOutput({"class": logits.argmax(-1)}), "all": PredictOutput(everything)}


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("model"), outputs=outputs)


@pytest.fixture(scope="module")
def exported(estimator, tmp_path_factory):
    return estimator.export_saved_model(tmp_path_factory.mktemp("exports"), receiver_fn())


@pytest.fixture(scope="module")
def port(exported):
    with served(exported) as port:
        yield port


def ask(port, body, path=PATH, method="POST"):
    """(status, answer)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body if isinstance(body, str) else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_32_clients_at_once_get_what_predict_yields(estimator, port, monkeypatch):
    batches, call = [], js.export.LoadedSignature.__call__
    monkeypatch.setattr(
        js.export.LoadedSignature, "__call__", lambda self, x: batches.append(len(x)) or call(self, x=x)
    )
    together = threading.Barrier(32)
    rows = [np.roll(ROWS, i, axis=0)[: 1 + i % 3] for i in range(32)]

    def client(i):
        together.wait(60)
        return [ask(port, {"inputs": {"x": rows[i].tolist()}}) for _ in range(3)]

    with concurrent.futures.ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(client, range(32)))
    for own, several in zip(rows, answers, strict=True):
        want = predicted(estimator, {"x": own})["class"].tolist()
        assert [(status, json.loads(text)) for status, text in several] == [(200, {"outputs": {"class": want}})] * 3
    assert len(batches) < 96  # some ran together
    assert set(batches) <= {1, 2, 4, 8, 16, 32, 64, 128}


def test_a_signature_by_name(port):
    status, text = ask(port, {"inputs": {"x": ROWS[:3].tolist()}, "signature_name": "all"})
    got = json.loads(text)["outputs"]
    assert status == 200
    assert (np.shape(got["logits"]), got["names"]) == ((3, 3), [0, 1, 2])


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{", 400, "JSONDecodeError"),
        ("[" * 100_000, 400, "RecursionError"),
        ("", 400, "JSONDecodeError"),
        ('{"inputs": {"x": [[1, 2, 3, 1e999, 5]]}}', 400, "'x' must be float32[batch,4], got float32[1,5]"),
        ({"inputs": {"x": []}}, 400, "'x' must be float32[batch,4], got"),
        ({"inputs": {"x": [[1.0, 2.0, 3.0, 4.0], [5.0]]}}, 400, "got list whose lengths differ"),
        ({"inputs": {"x": [[1.0, None, 3.0, 4.0]]}}, 400, "got object[1,4]"),
        ("[1]", 400, 'expected {"inputs": {NAME: VALUES}} in JSON'),
        ({}, 400, "KeyError: 'inputs'"),
        ({"inputs": [[1.0]]}, 400, "must be a mapping"),
        ({"inputs": {"y": [[1.0]]}}, 400, "signature 'serving_default' takes x: float32[batch,4], got y"),
        ({"inputs": {"x": [[1.0, 2.0]]}}, 400, "'x' must be float32[batch,4], got float32[1,2]"),
        ({"inputs": {"x": [["a"] * 4]}}, 400, "parse strings and decode images before"),
        ({"inputs": {"x": [[0.0] * 4] * 1025}}, 413, "1025 rows; send at most 1024 at a time"),
        (
            {"inputs": {"x": [[0.0] * 4]}, "signature_name": "x"},
            404,
            "no signature 'x'; there are ['all', 'serving_default']",
        ),
        ({"inputs": {"x": [[0.0] * 4]}, "signature_name": []}, 400, "unhashable"),
    ],
)
def test_bad_requests_are_told_why(port, body, status, message):
    got, text = ask(port, body)
    assert got == status
    assert message in text
    assert ask(port, {"inputs": {"x": ROWS[:1].tolist()}})[0] == 200


def test_other_paths_and_methods(port):
    assert ask(port, "", "/", "GET")[0] == 404
    assert ask(port, "", PATH, "GET")[0] == 405


def test_an_error_of_the_devices_reaches_all_who_wait(port, monkeypatch):
    def fail(self, **arrays):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(js.export.LoadedSignature, "__call__", fail)
        assert ask(port, {"inputs": {"x": ROWS[:1].tolist()}})[0] == 500
    assert ask(port, {"inputs": {"x": ROWS[:1].tolist()}})[0] == 200


def test_an_export_of_fixed_batch_sizes(estimator, tmp_path):
    with served(estimator.export_saved_model(tmp_path, receiver_fn(), batch_sizes=[2, 8])) as port:
        want = predicted(estimator, {"x": ROWS[:3]})["class"].tolist()
        assert json.loads(ask(port, {"inputs": {"x": ROWS[:3].tolist()}})[1]) == {"outputs": {"class": want}}
        assert ask(port, {"inputs": {"x": ROWS[:9].tolist()}}) == (413, "9 rows; send at most 8 at a time")


@pytest.mark.slow(reason="a server is started in a process of its own")
def test_the_command(exported, tmp_path):
    command = [sys.executable, serve.__file__, exported, "0"]
    env = {"PYTHONPATH": str(pathlib.Path(js.__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        killer = threading.Timer(120, process.kill)
        killer.start()
        try:
            line = next(line for line in process.stderr if "running on http://" in line)
            port = int(line.split("http://127.0.0.1:")[1].split()[0])
            assert ask(port, {"inputs": {"x": ROWS[:1].tolist()}})[0] == 200
        finally:
            process.terminate()
            process.wait(60)
            killer.cancel()
