"""A bucket of Google Cloud Storage and one of S3, served on this machine, behind a proxy that counts requests and fails
them on demand. Child processes reach them, too: their addresses are in the environment."""

import contextlib
import functools
import http.client
import http.server
import logging
import os
import threading
import uuid

import pytest

NO_ACCESS = {
    "gs": (403, b'{"error": {"code": 403, "message": "no access for you"}}'),
    "s3": (403, b"<Error><Code>AccessDenied</Code><Message>no access for you</Message></Error>"),
}
BUSY = {
    "gs": (503, b'{"error": {"code": 503, "message": "busy"}}'),
    "s3": (503, b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>"),
}


class Bucket:
    """A directory of one test in a bucket, and the proxy in front of the server."""

    def __init__(self, scheme):
        self.scheme, self.name = scheme, "bucket"
        self.directory, self.environment = "", {}
        self.requests, self._faults = [], []
        self._action = None

    def start_test(self):
        self.directory = f"{self.scheme}://{self.name}/{uuid.uuid4().hex[:8]}/run"
        self.requests.clear()
        self._faults.clear()
        self._action = None

    def fail(self, answer, times=None, methods=("GET", "HEAD", "POST", "PUT", "DELETE"), path=""):
        """Answers the next requests with (status, body), as many as `times` says; None: all."""
        self._faults.append([answer, times, methods, path])

    def at(self, methods, path, action, number=1):
        """Calls `action()` before the `number`-th request whose path has this part goes on to the server."""
        self._action = [methods, path, action, number]

    def works_again(self):
        self._faults.clear()
        self._action = None

    def fault(self, method, path):
        """The answer to a request that is to fail; None: it goes on to the server."""
        self.requests.append((method, path))
        if self._action and method in self._action[0] and self._action[1] in path:
            self._action[3] -= 1
            if not self._action[3]:
                self._action[2]()
        for fault in self._faults:
            answer, times, methods, part = fault
            if times != 0 and method in methods and part in path:
                fault[1] = None if times is None else times - 1
                return answer
        return None


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # a client of S3 waits for "100 Continue" before it sends

    def __init__(self, bucket, port, *args):
        self.bucket, self.port = bucket, port
        super().__init__(*args)

    def _handle(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.bucket.fault(self.command, self.path)
        headers = []
        if answer is None:
            sent = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            with contextlib.closing(http.client.HTTPConnection("localhost", self.port, timeout=60)) as connection:
                connection.request(self.command, self.path, body, sent)
                response = connection.getresponse()
                answer, headers = (response.status, response.read()), response.getheaders()
        status, data = answer
        self.send_response_only(status)
        is_head = self.command == "HEAD"
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", *(() if is_head else ("content-length",))):
                self.send_header(name, value)
        if not is_head:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(b"" if is_head else data)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def log_message(self, *args):
        pass


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # a connection that finds no place in the queue is tried again after a second

    def handle_error(self, *args):
        """Nothing: the client has gone."""


def _serve(handler):
    """(the port of a server in a thread of its own, a function that ends it)."""
    server = _Server(("localhost", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def stop():
        server.shutdown()
        server.server_close()

    return server.server_address[1], stop


@pytest.fixture(scope="session")
def gs_server():
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)  # an object that is not there is no error
    storage, one_at_a_time = Storage(use_memory_fs=True), threading.Lock()
    storage.create_bucket("bucket", {"id": "bucket", "name": "bucket"})

    class Handler(RequestHandler):
        def handle_one_request(self):
            with one_at_a_time:
                super().handle_one_request()

    port, stop = _serve(functools.partial(Handler, storage))
    bucket = Bucket("gs")
    proxy_port, stop_proxy = _serve(functools.partial(_Proxy, bucket, port))
    address = f"http://localhost:{proxy_port}"
    bucket.environment = {
        "STORAGE_EMULATOR_HOST": address,  # for gcsfs
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask Google what kind of bucket this is
    }
    os.environ.update(bucket.environment)
    yield bucket
    stop_proxy()
    stop()


@pytest.fixture(scope="session")
def s3_server():
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer("localhost", 0, verbose=False)
    server.start()
    bucket = Bucket("s3")
    proxy_port, stop_proxy = _serve(functools.partial(_Proxy, bucket, server.get_host_and_port()[1]))
    bucket.environment = {
        "AWS_ENDPOINT_URL": f"http://localhost:{proxy_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ.update(bucket.environment)
    connection = http.client.HTTPConnection(*server.get_host_and_port(), timeout=60)
    connection.request("PUT", "/bucket")
    assert connection.getresponse().status == 200
    connection.close()
    yield bucket
    stop_proxy()
    server.stop()


@pytest.fixture(params=["gs", "s3"])
def bucket(request):
    """A bucket of each kind, with a directory of this test alone."""
    found = request.getfixturevalue(f"{request.param}_server")
    found.start_test()
    yield found
    found.works_again()
