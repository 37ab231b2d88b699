"""The code blocks of the documentation that need an object store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.documentation.blocks import ROOT, make_sources, pages_that_need, run_page, with_commands
from tests.stores.conftest import Server


@pytest.fixture
def public(s3: Server, bucket: str) -> Iterator[str]:
    """Address of a bucket that everybody may read by HTTP, without credentials."""
    client = s3.client()

    class Gateway(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            options: dict[str, Any] = {"Bucket": bucket, "Key": self.path.lstrip("/")}
            if "Range" in self.headers:
                options["Range"] = self.headers["Range"]
            try:
                found = client.get_object(**options)
            except client.exceptions.ClientError as error:
                self.send_response(error.response["ResponseMetadata"]["HTTPStatusCode"])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(found["ResponseMetadata"]["HTTPStatusCode"])
            self.send_header("Content-Length", str(found["ContentLength"]))
            self.send_header(
                "Last-Modified", found["ResponseMetadata"]["HTTPHeaders"]["last-modified"]
            )
            if "ContentRange" in found:
                self.send_header("Content-Range", found["ContentRange"])
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(found["Body"].read())

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join(240)


# On moto: what the pages do is tested on every server beside this.
@pytest.mark.parametrize("s3", ["moto"], indirect=True)
@pytest.mark.parametrize(
    "page", pages_that_need("s3"), ids=lambda page: str(page.relative_to(ROOT))
)
def test_blocks_run_on_an_object_store(
    page: Path,
    tmp_path: Path,
    s3: Server,
    bucket: str,
    public: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    make_sources(folder)
    monkeypatch.chdir(folder)
    replaced = {
        "https://s3.example.org": s3.endpoint,
        "https://data.example.org": public,
        "s3://bucket": f"s3://{bucket}",
        "s3://scans": f"s3://{bucket}",
    }
    environment = with_commands(tmp_path / "commands")
    assert run_page(page, "s3", replaced, environment) > 0
