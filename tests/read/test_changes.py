"""A source that changes while it is read: what is read is what was opened, or an error."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr

from ctlab_dask_zarr import (
    Dataset,
    add_levels,
    dataset_from_zarr,
    dataset_to_zarr,
    edit_metadata,
    verify,
)
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.errors import DatasetNotFoundError, IncompleteSourceError
from ctlab_dask_zarr.store.files import LocalFiles
from ctlab_dask_zarr.store.opened import OpenedObject
from tests.builders import make_dataset, with_voxels

SHAPE = (16, 16, 64)
OLD, NEW = np.full(SHAPE, 1, "uint16"), np.full(SHAPE, 2, "uint16")
SMALL: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}


@pytest.fixture(autouse=True)
def one_task_at_a_time() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.zarr"
    dataset_to_zarr(make_dataset(OLD), path, **SMALL)
    return path


def replace_it(path: Path) -> None:
    dataset_to_zarr(make_dataset(NEW), path, overwrite=True, **SMALL)


def written_meanwhile(opened: Dataset, happens: Callable[[], Any], at_block: int) -> Dataset:
    """Return a dataset computed block by block; something happens when one of them is made."""
    n_blocks = 0

    def block(voxels: np.ndarray) -> np.ndarray:
        nonlocal n_blocks
        n_blocks += 1
        if n_blocks == at_block:
            happens()
        return voxels

    data = opened.data.map_blocks(block, dtype=opened.dtype, meta=np.empty((0, 0, 0), opened.dtype))
    return with_voxels(opened, data)


@pytest.mark.parametrize("at_block", [2, 4])
def test_a_store_replaced_while_it_is_converted_gives_no_mixture(
    source: Path, tmp_path: Path, at_block: int
) -> None:
    # At the last block everything has been read: it is the commit that finds it.
    opened = dataset_from_zarr(source)
    dataset = written_meanwhile(opened, lambda: replace_it(source), at_block)
    with pytest.raises(IncompleteSourceError, match=r"source\.zarr changed since"):
        dataset_to_zarr(dataset, tmp_path / "copy", **SMALL)
    assert not (tmp_path / "copy.zarr").exists()


def test_a_store_replaced_after_opening_is_not_taken_for_what_was_opened(
    source: Path, tmp_path: Path
) -> None:
    opened = dataset_from_zarr(source)
    replace_it(source)
    with pytest.raises(IncompleteSourceError, match="another dataset is in its place"):
        dataset_to_zarr(opened, tmp_path / "copy", **SMALL)
    dataset_to_zarr(make_dataset(OLD), tmp_path / "copy", restart=True, **SMALL)
    with pytest.raises(IncompleteSourceError, match="another dataset is in its place"):
        verify(tmp_path / "copy.zarr", opened)
    assert (dataset_from_zarr(source).data.compute() == 2).all()


@pytest.mark.parametrize("options", [{}, {"ome_zarr_version": None}])
def test_new_shards_are_not_read_by_the_old_document(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path, codec = tmp_path / "a.zarr", {"create_array_kwargs": {"compressors": None}}
    dataset_to_zarr(make_dataset(OLD), path, **SMALL, **options, **codec)
    opened = dataset_from_zarr(path)
    floats = np.linspace(0, 1, OLD.size, dtype="float16").reshape(SHAPE)
    dataset_to_zarr(make_dataset(floats), path, overwrite=True, **SMALL, **options, **codec)
    with pytest.raises(IncompleteSourceError, match="changed since it was opened"):
        opened.data[0, 0, 40:44].compute()


@dataclass(frozen=True)
class _SwappingFiles(LocalFiles):
    """Files of a store that is replaced when a shard is open, and its chunks are not yet read."""

    swap: Callable[[], None] = print

    def open_object(self, *arguments: Any) -> OpenedObject:
        opened = super().open_object(*arguments)
        self.swap()
        return opened

    def __hash__(self) -> int:
        return id(self)


def test_a_store_replaced_in_the_middle_of_a_shard_is_an_error(source: Path) -> None:
    volume = dataset_from_zarr(source).source
    files = _SwappingFiles(swap=lambda: replace_it(source))
    volume = replace(volume, store=replace(volume.store, files=files))
    with pytest.raises(IncompleteSourceError, match="another dataset is in its place"):
        volume[:, :, :16]


def test_a_store_that_is_renamed_meanwhile_is_said_to_be_gone(source: Path, tmp_path: Path) -> None:
    opened = dataset_from_zarr(source)
    dataset = written_meanwhile(opened, lambda: source.rename(tmp_path / "moved.zarr"), 4)
    with pytest.raises(DatasetNotFoundError, match="is not there any more"):
        dataset_to_zarr(dataset, tmp_path / "copy", **SMALL)
    assert not (tmp_path / "copy.zarr").exists()


@pytest.mark.parametrize("options", [{}, {"ome_zarr_version": None}])
def test_levels_and_a_corrected_voxel_size_meanwhile_are_no_change(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "a.zarr"
    dataset_to_zarr(make_dataset(OLD), path, **SMALL, **options)

    def touch_up() -> None:
        edit_metadata(path, voxel_size=(5.0, 5.0, 5.0))
        if not options:
            add_levels(path, levels=2)

    dataset = written_meanwhile(dataset_from_zarr(path), touch_up, 2)
    dataset_to_zarr(dataset, tmp_path / "copy", **SMALL)
    assert (dataset_from_zarr(tmp_path / "copy.zarr").data.compute() == OLD).all()
    assert dataset_from_zarr(path).voxel_size == (5.0, 5.0, 5.0)


def test_an_array_of_others_that_is_written_again_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "others.zarr")
    create: dict[str, Any] = {"chunks": (16, 16, 16), "dimension_names": ["z", "y", "x"]}
    zarr.create_array(path, data=OLD, **create)
    opened = dataset_from_zarr(path)
    assert (opened.data.compute() == 1).all()
    zarr.create_array(path, data=NEW, overwrite=True, **create)
    with pytest.raises(IncompleteSourceError, match=r"its zarr\.json was written again"):
        opened.data.compute()
    zarr.create_array(path, data=NEW, attributes={"a": 1}, overwrite=True, **create)
    with pytest.raises(IncompleteSourceError, match=r"its zarr\.json says something else now"):
        opened.data.compute()


def test_attributes_of_anothers_image_may_be_edited_meanwhile(source: Path, tmp_path: Path) -> None:
    document = json.loads((source / "zarr.json").read_text())
    del document["attributes"]["ctlab_dask_zarr"]
    (source / "zarr.json").write_text(json.dumps(document))
    opened = dataset_from_zarr(source)
    document["attributes"]["note"] = "looked at"
    (source / "zarr.json").write_text(json.dumps(document))
    assert (opened.data.compute() == OLD).all()


def test_a_store_in_an_object_store_is_asked_for_too(source: Path) -> None:
    from ctlab_dask_zarr.store.store import Store, files_at

    url = "memory://changes/source.zarr"
    store = Store(url, files_at(url))

    def put(local: Path) -> None:
        for file in sorted(local.rglob("*")):
            if file.is_file():
                store.put(str(file.relative_to(local)), file.read_bytes())

    put(source)
    opened = dataset_from_zarr(url)
    assert (opened.data.compute() == 1).all()
    edit_metadata(source, voxel_size=(5.0, 5.0, 5.0))
    put(source)
    assert (opened.data.compute() == 1).all()
    replace_it(source)
    put(source)
    with pytest.raises(IncompleteSourceError, match="another dataset is in its place"):
        opened.data.compute()


def test_a_block_of_netcdf_written_anew_fails_the_task_or_the_commit(tmp_path: Path) -> None:
    for at_block in (2, 4):
        folder = tmp_path / f"tomo{at_block}_nc"
        write_mango_netcdf(folder, OLD, slices_per_block=4)
        opened = Dataset.from_path(folder)

        def write_anew(folder: Path = folder) -> None:
            other = folder.with_name("other_nc")
            write_mango_netcdf(other, NEW, slices_per_block=4)
            (other / "block00000002.nc").rename(folder / "block00000002.nc")

        dataset = written_meanwhile(opened, write_anew, at_block)
        with pytest.raises(IncompleteSourceError, match=r"block00000002\.nc changed since"):
            dataset_to_zarr(dataset, tmp_path / "copy", restart=True, **SMALL)
        assert not (tmp_path / "copy.zarr").exists()


def test_a_block_of_netcdf_written_to_in_the_middle_of_a_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ctlab_dask_zarr.read import netcdf_storage

    write_mango_netcdf(tmp_path / "tomo_nc", OLD, slices_per_block=16)
    volume = Dataset.from_path(tmp_path / "tomo_nc").source
    path = tmp_path / "tomo_nc" / "block00000000.nc"
    refuse_other = netcdf_storage.refuse_other

    def then_write(*arguments: Any) -> None:
        refuse_other(*arguments)
        monkeypatch.setattr(netcdf_storage, "refuse_other", refuse_other)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
        os.utime(path, (1, 1))

    monkeypatch.setattr(netcdf_storage, "refuse_other", then_write)
    with pytest.raises(IncompleteSourceError, match=r"block00000000\.nc changed since"):
        volume[:]
