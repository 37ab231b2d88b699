"""The file server of `ctlab-zarr view`: what it gives, and above all what it does not."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctlab_dask_zarr.views.server import FolderServer, parse_range

SHARD = bytes(range(256)) * 8


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "my scan.zarr"
    (store / "0" / "c").mkdir(parents=True)
    (store / "zarr.json").write_text('{"zarr_format": 3}')
    (store / "0" / "c" / "0").write_bytes(SHARD)
    (store / "empty").write_bytes(b"")
    (store / ".hidden").write_text("secret")
    (store / ".git").mkdir()
    (store / ".git" / "config").write_text("secret")
    (tmp_path / "private.txt").write_text("secret")
    (store / "out").symlink_to(tmp_path / "private.txt")
    (store / "folder-out").symlink_to(tmp_path)
    (store / "inside").symlink_to(store / "0" / "c" / "0")
    (store / "to-hidden").symlink_to(store / ".hidden")
    os.mkfifo(store / "pipe")
    return store


@pytest.fixture
def server(store: Path) -> Iterator[FolderServer]:
    with FolderServer({"my scan.zarr": store}, event_paths=frozenset({"events/page"})) as server:
        yield server


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()


def ask(
    server: FolderServer, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> Answer:
    """Ask for a path below the token, as it stands: nothing is made canonical."""
    token = server.url.split("/")[3]
    return ask_port(server.port, f"/{token}/{path}", method, headers)


def ask_port(
    port: int, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=240)
    try:
        connection.request(method, path, headers=headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def test_files_are_served_whole_with_type_and_length(server: FolderServer) -> None:
    answer = ask(server, "my%20scan.zarr/zarr.json")
    assert (answer.status, answer.body) == (200, b'{"zarr_format": 3}')
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Accept-Ranges"] == "bytes"
    shard = ask(server, "my%20scan.zarr/0/c/0")
    assert (shard.status, shard.body) == (200, SHARD)
    assert shard.headers["Content-Type"] == "application/octet-stream"
    assert ask(server, "my%20scan.zarr/empty").body == b""
    assert server.folder_url("my scan.zarr") == f"{server.url}my%20scan.zarr/"


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-299", 100, 300),
        ("bytes=2000-", 2000, 2048),
        ("bytes=2000-9999", 2000, 2048),
        ("bytes=-16", 2032, 2048),
        ("bytes=-9999", 0, 2048),
        ("bytes=0-2047", 0, 2048),
    ],
)
def test_a_range_is_206_with_exactly_those_bytes(
    server: FolderServer, asked: str, start: int, stop: int
) -> None:
    answer = ask(server, "my%20scan.zarr/0/c/0", headers={"Range": asked})
    assert (answer.status, answer.body) == (206, SHARD[start:stop])
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/2048"
    assert answer.headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize(
    ("path", "asked", "nbytes"),
    [("0/c/0", "bytes=2048-", 2048), ("0/c/0", "bytes=-0", 2048), ("empty", "bytes=-16", 0)],
)
def test_a_range_outside_is_416_and_says_the_size(
    server: FolderServer, path: str, asked: str, nbytes: int
) -> None:
    answer = ask(server, f"my%20scan.zarr/{path}", headers={"Range": asked})
    assert (answer.status, answer.body) == (416, b"")
    assert answer.headers["Content-Range"] == f"bytes */{nbytes}"


@pytest.mark.parametrize(
    "asked",
    ["bytes=0-1,4-5", "items=0-1", "bytes=5-2", "bytes=-", "bytes=a-b", f"bytes={'9' * 5000}-"],
)
def test_what_is_no_single_range_is_answered_with_everything(
    server: FolderServer, asked: str
) -> None:
    answer = ask(server, "my%20scan.zarr/0/c/0", headers={"Range": asked})
    assert (answer.status, answer.body) == (200, SHARD)


def test_a_range_on_condition_of_a_validator_is_answered_with_everything(
    server: FolderServer,
) -> None:
    headers = {"Range": "bytes=0-1", "If-Range": '"some-version"'}
    assert ask(server, "my%20scan.zarr/0/c/0", headers=headers).status == 200


def test_head_says_the_same_without_the_bytes(server: FolderServer) -> None:
    answer = ask(server, "my%20scan.zarr/0/c/0", "HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Length"] == "2048"
    part = ask(server, "my%20scan.zarr/0/c/0", "HEAD", {"Range": "bytes=-16"})
    assert (part.status, part.body) == (206, b"")
    assert part.headers["Content-Range"] == "bytes 2032-2047/2048"


def test_pages_of_other_origins_may_read_what_is_there_and_that_something_is_not(
    server: FolderServer,
) -> None:
    for path in ("my%20scan.zarr/zarr.json", "my%20scan.zarr/0/c/7"):
        answer = ask(server, path, headers={"Origin": "https://viewer.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert "Content-Range" in answer.headers["Access-Control-Expose-Headers"]
    preflight = ask(
        server,
        "my%20scan.zarr/0/c/0",
        "OPTIONS",
        {
            "Origin": "https://viewer.example",
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "range",
            "Access-Control-Request-Private-Network": "true",
        },
    )
    assert (preflight.status, preflight.body) == (204, b"")
    assert "GET" in preflight.headers["Access-Control-Allow-Methods"]
    assert "Range" in preflight.headers["Access-Control-Allow-Headers"]
    assert preflight.headers["Access-Control-Allow-Private-Network"] == "true"


def test_nothing_is_found_without_the_token(server: FolderServer) -> None:
    token = server.url.split("/")[3]
    assert len(token) >= 32
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    for path in (
        *("/", "", "/my%20scan.zarr/zarr.json", "//my%20scan.zarr/zarr.json", f"/{token}"),
        *(f"/{wrong}/my%20scan.zarr/zarr.json", f"/{token[:-1]}/my%20scan.zarr/zarr.json"),
        *(f"/x/{token}/my%20scan.zarr/zarr.json", "/%ff/my%20scan.zarr/zarr.json"),
    ):
        for method in ("GET", "HEAD", "OPTIONS"):
            answer = ask_port(server.port, path or "/", method)
            assert (answer.status, answer.body) == (404, b""), path


def test_two_servers_have_different_tokens(store: Path) -> None:
    with FolderServer({"a": store}) as first, FolderServer({"a": store}) as second:
        assert first.url.split("/")[3] != second.url.split("/")[3]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "private.txt",
        "my%20scan.zarr",
        "my%20scan.zarr/",
        "my%20scan.zarr/0",
        "my%20scan.zarr/0/",
        "my%20scan.zarr/../private.txt",
        "my%20scan.zarr/%2e%2e/private.txt",
        "my%20scan.zarr/..%2fprivate.txt",
        "my%20scan.zarr/0/../../private.txt",
        "my%20scan.zarr/0/%2E%2E/zarr.json",
        "my%20scan.zarr/..%5cprivate.txt",
        "my%20scan.zarr//zarr.json",
        "my%20scan.zarr/%00",
        "my%20scan.zarr/zarr.json%00",
        "my%20scan.zarr/zarr.json/",
        "my%20scan.zarr/.hidden",
        "my%20scan.zarr/%2ehidden",
        "my%20scan.zarr/.git/config",
        "my%20scan.zarr/out",
        "my%20scan.zarr/folder-out/private.txt",
        "my%20scan.zarr/to-hidden",
        "my%20scan.zarr/pipe",
        "my%20scan.zarrr/zarr.json",
        "my%20scan.zar/zarr.json",
    ],
)
def test_nothing_but_plain_files_of_the_store_is_found(server: FolderServer, path: str) -> None:
    answer = ask(server, path)
    assert (answer.status, answer.body) == (404, b"")


def test_an_absolute_path_in_place_of_a_name_is_not_found(
    server: FolderServer, tmp_path: Path
) -> None:
    private = tmp_path / "private.txt"
    for path in (f"my%20scan.zarr/{private}", f"my%20scan.zarr/%2F{str(private)[1:]}"):
        assert ask(server, path).status == 404


def test_a_link_inside_the_store_is_followed(server: FolderServer) -> None:
    assert ask(server, "my%20scan.zarr/inside").body == SHARD


def test_a_query_does_not_matter(server: FolderServer) -> None:
    assert ask(server, "my%20scan.zarr/0/c/0?version=2").body == SHARD


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
def test_nothing_can_be_written(server: FolderServer, store: Path, method: str) -> None:
    before = {path: path.lstat() for path in store.rglob("*")}
    for path in ("my%20scan.zarr/zarr.json", "my%20scan.zarr/new"):
        assert ask(server, path, method).status == 501
    after = {path: path.lstat() for path in store.rglob("*")}
    assert {p: (s.st_mtime_ns, s.st_size) for p, s in before.items()} == {
        p: (s.st_mtime_ns, s.st_size) for p, s in after.items()
    }


def test_the_token_leaves_in_no_referrer_and_the_data_in_no_cache(server: FolderServer) -> None:
    headers = ask(server, "my%20scan.zarr/zarr.json").headers
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"


def test_other_machines_cannot_connect(server: FolderServer) -> None:
    # Any address of 127.0.0.0/8 but the one, and of the network, is served by nobody.
    addresses = {"127.0.0.2"}
    with contextlib.suppress(OSError):
        addresses |= set(socket.gethostbyname_ex(socket.gethostname())[2]) - {"127.0.0.1"}
    for address in addresses:
        with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
            socket.create_connection((address, server.port), timeout=5).close()


def test_a_connection_is_kept_for_further_ranges(server: FolderServer) -> None:
    token = server.url.split("/")[3]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=240)
    try:
        connection.connect()
        first_socket = connection.sock
        for path, status in [("0/c/0", 206), ("0/c/7", 404), ("0/c/0", 206)]:
            connection.request(
                "GET", f"/{token}/my%20scan.zarr/{path}", headers={"Range": "bytes=8-15"}
            )
            answer = Answer(connection.getresponse())
            assert answer.status == status
            assert answer.body == (SHARD[8:16] if status == 206 else b"")
        assert connection.sock is first_socket
    finally:
        connection.close()


def test_redirects_and_event_streams_are_below_the_token_too(server: FolderServer) -> None:
    server.redirects[""] = "http://viewer.example/#!{}"
    answer = ask(server, "")
    assert (answer.status, answer.headers["Location"]) == (302, "http://viewer.example/#!{}")
    assert ask_port(server.port, "/").status == 404
    token = server.url.split("/")[3]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=240)
    try:
        connection.request("GET", f"/{token}/events/page?c=1")
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.read(3) == b":\n\n", "the stream has begun"
        server.close()
        assert response.read() == b"", "and ends when the server does"
    finally:
        connection.close()


def test_the_port_is_free_again_after_closing(store: Path) -> None:
    with FolderServer({"a": store}) as server:
        port = server.port
    with FolderServer({"a": store}, port=port) as again:
        assert again.port == port


@pytest.mark.parametrize("nbytes", [0, 1, 7])
def test_every_range_lies_inside_the_object(nbytes: int) -> None:
    for first in ("", *map(str, range(9))):
        for last in ("", *map(str, range(9))):
            part = parse_range(f"bytes={first}-{last}", nbytes)
            if part is not None and part:
                assert 0 <= part.start < part.stop <= nbytes
