from __future__ import annotations

import os
from pathlib import Path

import pytest

from ctlab_dask_zarr.store.files import LOCAL_FILES


def test_a_read_that_comes_back_short_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one above 2 GiB does on Linux, and any on a network file system may."""
    content = os.urandom(5000)
    path = tmp_path / "shard"
    path.write_bytes(content)
    pread = os.pread
    monkeypatch.setattr(
        os, "pread", lambda file, nbytes, start: pread(file, min(nbytes, 999), start)
    )
    assert LOCAL_FILES.read_range(str(path), 10, 4500) == content[10:4510]
    assert LOCAL_FILES.read_range(str(path), 4000, 9000) == content[4000:]
    assert LOCAL_FILES.read_range(str(path), 6000, 10) == b""
    assert LOCAL_FILES.read_range(str(path), 10, 0) == b""
