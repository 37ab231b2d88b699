"""Where no staging folder can be made, that is said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctlab_dask_zarr import WriteFailedError, dataset_to_zarr
from ctlab_dask_zarr.store.files import LocalFiles
from tests.builders import make_dataset, random_voxels


def test_a_file_system_that_takes_no_folders_is_named_at_the_first_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /proc does, which says that the folder is not there."""
    tried: list[str] = []

    def refuse(self: LocalFiles, path: str) -> Any:
        tried.append(path)
        raise FileNotFoundError(2, "No such file or directory", path)

    monkeypatch.setattr(LocalFiles, "make_folder", refuse)
    with pytest.raises(WriteFailedError, match="no folder can be made in it, though it is there"):
        dataset_to_zarr(make_dataset(random_voxels((8, 8, 8)), 8), tmp_path / "a.zarr")
    assert len(tried) == 1
    assert list(tmp_path.iterdir()) == []
