"""``python -m benchmarks.slow_http FOLDER SECONDS``: files over HTTP, each answer late.

Prints its port. Answers GET and HEAD, with ranges, and keeps connections open, as object stores do.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")


async def _answer(
    folder: str, delay_s: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    loop = asyncio.get_running_loop()
    try:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
            method, target, _ = head.split(" ", 2)
            await asyncio.sleep(delay_s)
            path = os.path.normpath(os.path.join(folder, target.partition("?")[0].lstrip("/")))
            if not path.startswith(folder + os.sep) or not os.path.isfile(path):
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                continue
            size = os.path.getsize(path)
            start, stop, status = _wanted(head, size)
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Length: {stop - start}\r\nAccept-Ranges: bytes\r\n"
                f'ETag: "{size}"\r\nLast-Modified: Sat, 01 Jan 2000 00:00:00 GMT\r\n'
                f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n\r\n".encode()
            )
            await writer.drain()
            if method == "GET" and stop > start:
                with open(path, "rb") as file:
                    await loop.sendfile(writer.transport, file, start, stop - start)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def _wanted(head: str, size: int) -> tuple[int, int, str]:
    """Return from where to where, and the status."""
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        match = _RANGE.match(value.strip()) if name.lower() == "range" else None
        if match:
            first, last = match.groups()
            if not first:
                return max(size - int(last), 0), size, "206 Partial Content"
            return int(first), min(int(last) + 1, size) if last else size, "206 Partial Content"
    return 0, size, "200 OK"


async def _serve(folder: str, delay_s: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _answer(folder, delay_s, reader, writer)

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def served(folder: str, delay_s: float) -> Iterator[str]:
    """Serve a folder from a process of its own; yield its URL."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.slow_http", folder, str(delay_s)],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(_serve(os.path.realpath(sys.argv[1]), float(sys.argv[2])))
