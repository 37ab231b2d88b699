from __future__ import annotations

import os
from pathlib import Path

import pytest

from ctlab_dask_zarr.store.files import LOCAL_FILES
from ctlab_dask_zarr.store.opened import LocalObject, new_memory


def test_a_read_that_comes_back_short_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one above 2 GiB does on Linux, and any on a network file system may."""
    content = os.urandom(5000)
    path = tmp_path / "shard"
    path.write_bytes(content)
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, parts, start: preadv(file, [parts[0][:999]], start)
    )
    opened = LocalObject(str(path), None, str)
    assert opened.read(10, 4500, new_memory) == content[10:4510]
    assert opened.read(4000, 9000, new_memory) == content[4000:]
    assert opened.read(6000, 10, new_memory) == b""
    assert opened.read(10, 0, new_memory) == b""
    assert LOCAL_FILES.read(str(path)) == content
