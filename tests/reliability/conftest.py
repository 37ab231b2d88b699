from __future__ import annotations

from pathlib import Path

import pytest

from ctlab_dask_zarr import dataset_to_zarr
from tests.reliability.faults import LAYOUT, new_dataset


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed write of `new_dataset` leaves; also a source for the command line."""
    path = tmp_path_factory.mktemp("reference") / "new.zarr"
    dataset_to_zarr(new_dataset(), path, **LAYOUT)
    return path
