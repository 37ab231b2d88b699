"""Every reader sees every voxel of every form of store."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr

PAIRED_FIELDS = ("codec", "datatype", "sharding", "separator", "layout", "shape")


def read_zarr_python(store: Any) -> Any:
    return zarr.open_array(store.array_folder, mode="r", zarr_format=3)[...]


def read_zarr_python_from_the_root(store: Any) -> Any:
    node = zarr.open(store.path, mode="r")
    return (node[store.array_path] if store.array_path else node)[...]


def read_tensorstore(store: Any) -> Any:
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": store.array_folder}}
    return tensorstore.open(spec, open=True, read=True).result().read().result()


def read_zarrs(store: Any) -> Any:
    pytest.importorskip("zarrs")
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        array = zarr.open_array(store.array_folder, mode="r")
        assert "zarrs" in type(array.async_array.codec_pipeline).__module__
        return array[...]


def read_dask(store: Any) -> Any:
    return da.from_zarr(store.path, component=store.array_path or None).compute()


def read_xarray(store: Any) -> Any:
    xarray = pytest.importorskip("xarray")
    with xarray.open_zarr(store.path, consolidated=False) as opened:
        return opened["0"].values


def read_ngff_zarr(store: Any) -> Any:
    ngff_zarr = pytest.importorskip("ngff_zarr")
    return ngff_zarr.from_ngff_zarr(store.path).images[0].data.compute()


def read_ome_zarr(store: Any) -> Any:
    pytest.importorskip("ome_zarr")
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    (node,) = Reader(parse_url(store.path))()
    return node.data[0].compute()


def read_bioio(store: Any) -> Any:
    bioio_ome_zarr = pytest.importorskip("bioio_ome_zarr")
    return bioio_ome_zarr.Reader(store.path).data


def read_bioio_lazily(store: Any) -> Any:
    bioio_ome_zarr = pytest.importorskip("bioio_ome_zarr")
    return bioio_ome_zarr.Reader(store.path).dask_data.compute()


ARRAY_READERS = [
    read_zarr_python,
    read_zarr_python_from_the_root,
    read_tensorstore,
    read_zarrs,
    read_dask,
]
IMAGE_READERS = [read_xarray, read_ngff_zarr, read_ome_zarr, read_bioio, read_bioio_lazily]


def name_of(function: Callable[..., Any]) -> str:
    return function.__name__.removeprefix("read_")


@pytest.mark.parametrize("read", ARRAY_READERS, ids=name_of)
def test_a_reader_of_arrays_sees_every_voxel(read: Callable[[Any], Any], written: Any) -> None:
    written.assert_equal(read(written))


@pytest.mark.parametrize("read", IMAGE_READERS, ids=name_of)
def test_a_reader_of_images_sees_every_voxel(read: Callable[[Any], Any], image: Any) -> None:
    image.assert_equal(read(image))


def test_zarrita_sees_every_voxel(written: Any, zarrita: Callable[[str, str], Any]) -> None:
    said, voxels = zarrita(written.path, written.array_path)
    assert said["kind"] == ("group" if written.array_path else "array")
    assert tuple(said["dimension_names"]) == written.dataset.dimension_names
    written.assert_equal(voxels)


def test_the_stores_are_of_the_form_that_their_case_names(case: Any, written: Any) -> None:
    array = zarr.open_array(written.array_folder, mode="r")
    encoding = array.metadata.chunk_key_encoding
    assert encoding.separator == case.separator
    assert (array.shards is None) == (case.sharding == "unsharded")
    names = [type(codec).__name__.removesuffix("Codec").lower() for codec in array.compressors]
    assert names == ([] if case.codec == "none" else [case.codec])
    documents = ("zarr.json", "receipts.json")
    objects = [key for key in _object_names(written.array_folder) if key not in documents]
    grid = [-(-n // o) for n, o in zip(array.shape, array.shards or array.chunks, strict=True)]
    if array.shards is not None:
        assert len(objects) == np.prod(grid)  # every shard is there, whatever its voxels
    assert all(key.startswith(f"c{case.separator}") for key in objects)


def test_readers_are_told_that_the_mask_value_fills_what_is_left_out(written: Any) -> None:
    array = zarr.open_array(written.array_folder, mode="r")
    assert array.fill_value == written.dataset.mask_value


@pytest.mark.parametrize("read", ARRAY_READERS + IMAGE_READERS, ids=name_of)
def test_a_volume_of_nothing_but_mask_reads_as_mask(
    read: Callable[[Any], Any], masked_image: Any
) -> None:
    masked_image.assert_equal(read(masked_image))


@pytest.mark.parametrize("read", ARRAY_READERS, ids=name_of)
def test_negative_zeros_are_not_taken_for_the_fill_value(
    read: Callable[[Any], Any], negative_zeros: Any
) -> None:
    negative_zeros.assert_equal(read(negative_zeros))


def test_the_cases_cover_every_pair_of_settings(pairwise_cases: list[Any]) -> None:
    for first, second in itertools.combinations(PAIRED_FIELDS, 2):
        met = {(getattr(c, first), getattr(c, second)) for c in pairwise_cases}
        firsts, seconds = ({getattr(c, f) for c in pairwise_cases} for f in (first, second))
        assert met == set(itertools.product(firsts, seconds)), (first, second)


def _object_names(folder: str) -> list[str]:
    root = Path(folder)
    return [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
