"""Real object stores: a moto server, and where it is installed a Ceph; and a network in between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctlab_dask_zarr import Dataset
from tests.builders import make_dataset
from tests.reliability.faults import free_port, listens, wait_until

CEPH = Path(__file__).parents[3] / "shared" / "realparts" / "ceph" / "start.sh"
CEPH_PORT = 7480
LAYOUT: dict[str, Any] = {"chunks": (16, 16, 16), "shards": (32, 32, 32), "levels": 2}


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Serve the test's folder by plain HTTP; what is not there is forbidden below ``/secret``."""
    pytest.importorskip("obstore")
    server_module = pytest.importorskip("RangeHTTPServer")

    class Handler(server_module.RangeRequestHandler):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def send_error(self, code: int, *arguments: Any) -> None:
            forbidden = code == 404 and self.path.startswith("/secret")
            super().send_error(403 if forbidden else code, *arguments)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(240)


@dataclass
class Server:
    """An S3 server: where it listens, and for a fault, the process that answers."""

    name: str
    port: int
    variables: dict[str, str] = field(default_factory=dict)
    pid: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> Any:
        session = pytest.importorskip("botocore.session")
        return session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.variables["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.variables["AWS_SECRET_ACCESS_KEY"],
        )

    def new_bucket(self) -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str) -> dict[str, Any]:
        """Return what a bucket holds: its objects' times, by key."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return {
            o["Key"]: (o["LastModified"], o["ETag"]) for p in pages for o in p.get("Contents", ())
        }

    def hang(self, seconds: float) -> None:
        """Stop answering for that long, with all connections open."""
        os.kill(self.pid, signal.SIGSTOP)
        threading.Timer(seconds, os.kill, (self.pid, signal.SIGCONT)).start()

    def n_uploads(self, bucket: str) -> int:
        return len(self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", ()))


def start_moto(folder: Path) -> tuple[Server, subprocess.Popen[bytes]]:
    command = shutil.which("moto_server")
    if command is None:
        pytest.skip("moto_server is not installed: pipx install 'moto[server]'")
    keys = {"AWS_ACCESS_KEY_ID": "not-kept-4711", "AWS_SECRET_ACCESS_KEY": "not-kept-0815"}
    server = Server("moto", free_port(), keys)
    with open(folder / "moto.log", "w") as log:
        process = subprocess.Popen(
            [command, "-H", "127.0.0.1", "-p", str(server.port)], stdout=log, stderr=log
        )
    server.pid = process.pid
    wait_until(lambda: listens(server.port), "the start of moto")
    return server, process


def _start_ceph(folder: Path) -> Server:
    if not CEPH.exists():
        pytest.skip("no ../shared/realparts/ceph/start.sh beside the checkout")
    for command in ("radosgw", "ceph-mon", "ceph-osd", "ceph"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed: radosgw ceph-mon ceph-osd ceph-common")
    if os.geteuid() != 0 or listens(CEPH_PORT):
        pytest.skip(f"Ceph needs root, and port {CEPH_PORT}")
    with open(folder / "start.log", "w") as log:
        subprocess.run(["bash", CEPH, folder], stdout=log, stderr=log, timeout=180, check=False)
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testtest"}
    server = Server("ceph", CEPH_PORT, keys)
    try:
        wait_until(lambda: listens(CEPH_PORT), (folder / "start.log").read_text())
        wait_until(lambda: _lists(server), "Ceph's first answer")
    except BaseException:
        _stop_ceph(folder)
        raise
    server.pid = int((folder / "run" / "client.rgw.pid").read_text())
    return server


def _lists(server: Server) -> bool:
    try:
        server.client().list_buckets()
    except Exception:
        return False
    return True


def _stop_ceph(folder: Path) -> None:
    for name in ("client.rgw", "osd.0", "mon.a"):
        pid_file = folder / "run" / f"{name}.pid"
        if pid_file.exists():
            pid = int(pid_file.read_text())
            for number in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    break
                stop_s = time.monotonic() + 10
                while Path(f"/proc/{pid}").exists() and time.monotonic() < stop_s:
                    time.sleep(0.1)


@pytest.fixture(scope="session", params=["moto", "ceph"])
def s3(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "ceph":
        server = _start_ceph(folder)
        yield server
        _stop_ceph(folder)
        return
    server, process = start_moto(folder)
    yield server
    process.kill()
    process.wait(240)


@pytest.fixture
def bucket(s3: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket of the server, which the environment leads to."""
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return s3.new_bucket()


@pytest.fixture(scope="session")
def voxels() -> np.ndarray:
    voxels = np.random.default_rng(0).integers(0, 4000, (64, 64, 96), dtype="uint16")
    voxels[:4] = 65535
    return voxels


@pytest.fixture
def dataset(voxels: np.ndarray) -> Dataset:
    return make_dataset(voxels, 32, datatype="tomo", voxel_size=(2.0, 2.0, 2.0))


class Network:
    """A proxy before a server, which can fail as networks and servers do."""

    def __init__(self, server: Server) -> None:
        self.n_requests = 0
        self.is_gone = False
        self.answers: list[int] = []
        self.denied: str | None = None
        #: How many answers to a put of a document are lost on the way.
        self.lost = 0
        network = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                if network.is_gone:
                    # Connections that are kept alive end too.
                    self.close_connection = True
                    self.connection.close()
                    return
                network.n_requests += 1
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status = network.answers.pop(0) if network.answers else 0
                if self.command == "GET" and network.denied and network.denied in self.path:
                    status = 403
                if status:
                    code = {403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}[status]
                    content = f"<Error><Code>{code}</Code></Error>".encode()
                    self._answer(status, {"Content-Type": "application/xml"}, content)
                    return
                with closing(HTTPConnection("127.0.0.1", server.port, timeout=240)) as connection:
                    headers = network.forwarded(dict(self.headers))
                    connection.request(self.command, self.path, body, headers)
                    reply = connection.getresponse()
                    if network.lost and self.command == "PUT" and "zarr.json" in self.path:
                        network.lost -= 1
                        self._answer(500, {}, b"")
                        return
                    answered = network.answered(dict(reply.headers))
                    self._answer(reply.status, answered, reply.read())

            def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                is_head = self.command == "HEAD"
                length = headers.get("Content-Length", "0") if is_head else str(len(content))
                self.send_header("Content-Length", length)
                self.end_headers()
                if not is_head:
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

            def log_message(self, *arguments: Any) -> None:
                pass

        self._handler = Handler
        self._port = 0
        self._listen()
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def forwarded(self, headers: dict[str, str]) -> dict[str, str]:
        """Return what the server is told of the headers of a request."""
        return headers

    def answered(self, headers: dict[str, str]) -> dict[str, str]:
        """Return what the client is told of the headers of an answer."""
        return headers

    def _listen(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        self._port = self._server.server_port
        self.is_gone = False
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Be gone: connections are cut, and refused; a second time does nothing."""
        self.is_gone = True
        self._server.shutdown()
        self._server.server_close()

    def close_for(self, seconds: float) -> None:
        """Be gone for that long."""
        self.close()
        threading.Timer(seconds, self._listen).start()


@pytest.fixture
def network(s3: Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    network = Network(s3)
    monkeypatch.setenv("AWS_ENDPOINT_URL", network.endpoint)
    yield network
    network.close()
