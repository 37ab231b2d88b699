"""What is never written or read through a store, and which files in it are none of its objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctlab_dask_zarr import MetadataError
from ctlab_dask_zarr.store.objects import ObjectFiles
from ctlab_dask_zarr.store.store import Store, is_temporary


@pytest.mark.parametrize("key", ["0/zarr.json", "0/c/0/0/0"])
def test_nothing_is_written_through_a_link_out_of_the_store(
    key: str, tmp_path: Path, snapshot: Any
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "zarr.json").write_text("theirs")
    (tmp_path / "store" / "0").symlink_to(tmp_path / "theirs")
    before = snapshot(tmp_path / "theirs")
    with pytest.raises(MetadataError, match="leads out of the store"):
        Store(str(tmp_path / "store")).put(key, b"ours")
    assert snapshot(tmp_path / "theirs") == before


@pytest.mark.parametrize("nbytes", [100, 9 << 20])
@pytest.mark.parametrize("is_remote", [False, True])
def test_memory_of_a_piece_may_be_used_again_once_it_is_written(
    is_remote: bool, nbytes: int, tmp_path: Path
) -> None:
    if is_remote:
        pytest.importorskip("obstore")
    store = Store("memory://pieces", ObjectFiles()) if is_remote else Store(str(tmp_path))
    piece = np.zeros(nbytes, np.uint8)
    with store.create("object") as writer:
        for number in range(1, 4):
            piece[:] = number
            writer.write(piece)
        piece[:] = 99
    found = np.frombuffer(store.get("object", 4 * nbytes), np.uint8)
    np.testing.assert_array_equal(found, np.repeat(np.arange(1, 4, dtype=np.uint8), nbytes))


def test_only_the_whole_name_tells_a_file_under_construction() -> None:
    assert is_temporary(f".zarr.json.{'0' * 32}.partial", "zarr.json")
    assert not is_temporary(f".zarr.json.{'0' * 32}.partial", "plan.json")
    for name in ("notes.partial", ".zarr.json.partial", f".{'0' * 32}.partial", ".a.0f.partial"):
        assert not is_temporary(name)
