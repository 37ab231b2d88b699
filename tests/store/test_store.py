"""What is never written or read through a store, and which files in it are none of its objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctlab_dask_zarr import MetadataError
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


def test_only_the_whole_name_tells_a_file_under_construction() -> None:
    assert is_temporary(f".zarr.json.{'0' * 32}.partial", "zarr.json")
    assert not is_temporary(f".zarr.json.{'0' * 32}.partial", "plan.json")
    for name in ("notes.partial", ".zarr.json.partial", f".{'0' * 32}.partial", ".a.0f.partial"):
        assert not is_temporary(name)
