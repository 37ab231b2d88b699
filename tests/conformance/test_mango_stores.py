"""Zarr as mango itself writes it is read here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, ShardingCodec

from ctlab_dask_zarr import Dataset, dataset_from_zarr, dataset_to_zarr

SHAPE, SHARD, INNER_CHUNK = (70, 130, 131), (32, 64, 64), (16, 32, 32)
MASK = 65535
MANGO = {
    "metadata_version_major": 1,
    "metadata_version_minor": 0,
    "basename": "tomo",
    "dataset_id": "20250314_012919_tomoHiRes_SS",
    "history": {"20240108_085320_tomo_RMG": {"parameters": {"scan": {"kV": "80"}}, "output": "x"}},
    "voxel_size_xyz": [1.5, 2.0, 3.0],
    "voxel_unit": "mm",
    "coord_transform": "",
    "intensity_f2i_offset_scale": [0.5, 2.0],
    "offset_to_coordinate_origin_xyz": [1.0, 2.0, 3.0],
    "coordinate_origin_xyz": [4, 5, 6],
}
OME = {
    "version": "0.5",
    "multiscales": [
        {
            "name": "tomoHiRes_SS",
            "axes": [{"name": n, "type": "space", "unit": "millimeter"} for n in "zyx"],
            "datasets": [
                {
                    "path": "0",
                    "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}],
                }
            ],
            "coordinateTransformations": [{"type": "scale", "scale": [3.0, 2.0, 1.5]}],
        }
    ],
}


def make_array_with_zarr(path: str, voxels: npt.NDArray[np.uint16]) -> None:
    blosc = BloscCodec(cname="blosclz", clevel=9, shuffle="shuffle", typesize=2)
    array = zarr.create_array(
        path,
        shape=SHAPE,
        dtype="uint16",
        chunks=SHARD,
        serializer=ShardingCodec(
            chunk_shape=INNER_CHUNK, codecs=[BytesCodec(), blosc], index_codecs=[BytesCodec()]
        ),
        compressors=None,
        filters=None,
        fill_value=MASK,
        chunk_key_encoding={"name": "default", "separator": "/"},
        dimension_names=("z", "y", "x"),
    )
    array[...] = voxels


def make_array_with_tensorstore(path: str, voxels: npt.NDArray[np.uint16]) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    blosc = {"cname": "blosclz", "clevel": 9, "shuffle": "shuffle", "typesize": 2, "blocksize": 0}
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "chunk_shape": INNER_CHUNK,
        "codecs": [little, {"name": "blosc", "configuration": blosc}],
        "index_codecs": [little],
        "index_location": "end",
    }
    metadata = {
        "shape": SHAPE,
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": SHARD}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": MASK,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["z", "y", "x"],
    }
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}, "metadata": metadata}
    tensorstore.open(spec, create=True).result().write(voxels).result()


@pytest.fixture
def voxels() -> npt.NDArray[np.uint16]:
    """Return noise with whole shards, and whole inner chunks of others, of mask."""
    found = np.random.default_rng(3).integers(0, 2**12, SHAPE).astype(np.uint16)
    found[:32, :64, :64] = MASK
    found[40:, 70:, :40] = MASK
    return found


@pytest.fixture(params=[make_array_with_zarr, make_array_with_tensorstore], ids=["zarr", "ts"])
def mango_group(
    request: pytest.FixtureRequest, tmp_path: Path, voxels: npt.NDArray[np.uint16]
) -> str:
    path = str(tmp_path / "tomoHiRes_SS.zarr")
    zarr.create_group(path, attributes={"mango": MANGO, "ome": OME})
    request.param(path + "/0", voxels)
    return path


def test_a_group_of_mango_is_read_whole(mango_group: str, voxels: npt.NDArray[np.uint16]) -> None:
    dataset = dataset_from_zarr(mango_group)
    np.testing.assert_array_equal(dataset.data.compute(), voxels)
    assert dataset.data.chunksize == SHARD


def test_a_group_of_mango_is_described_whole(mango_group: str) -> None:
    dataset = Dataset.from_path(mango_group)
    assert dataset.dimension_names == ("z", "y", "x")
    assert dataset.voxel_size == (3.0, 2.0, 1.5)
    assert dataset.voxel_unit == "mm"
    assert dataset.datatype == "tomo"
    assert dataset.mask_value == MASK
    assert dataset.dataset_id == MANGO["dataset_id"]
    assert dataset.history == MANGO["history"]
    assert dataset.extra_attrs["intensity_f2i_offset_scale"] == [0.5, 2.0]
    assert dataset.extra_attrs["coordinate_origin_xyz"] == [4, 5, 6]


def test_a_shard_that_mango_left_out_is_mask(
    mango_group: str, voxels: npt.NDArray[np.uint16]
) -> None:
    shard = Path(mango_group, "0", "c", "1", "1", "0")
    shard.unlink()
    voxels[32:64, 64:128, :64] = MASK
    dataset = dataset_from_zarr(mango_group)
    np.testing.assert_array_equal(dataset.data.compute(), voxels)


def test_a_part_of_a_group_of_mango_is_read(
    mango_group: str, voxels: npt.NDArray[np.uint16]
) -> None:
    data = dataset_from_zarr(mango_group).data
    part = (slice(20, 69), slice(61, 130), slice(3, 131))
    np.testing.assert_array_equal(data[part].compute(), voxels[part])
    np.testing.assert_array_equal(data[:, 7, ::5].compute(), voxels[:, 7, ::5])


def test_a_group_of_mango_written_anew_keeps_everything(
    mango_group: str, voxels: npt.NDArray[np.uint16], tmp_path: Path
) -> None:
    dataset_to_zarr(dataset_from_zarr(mango_group), tmp_path / "ours.zarr")
    root = zarr.open_group(tmp_path / "ours.zarr", mode="r")
    np.testing.assert_array_equal(root["0"][...], voxels)
    least, largest = int(voxels.min()), int(voxels[voxels != 65535].max())
    assert dict(root.attrs["mango"]) == MANGO | {"data_min_max": [least, largest]}
    assert dataset_from_zarr(tmp_path / "ours.zarr").voxel_size == (3.0, 2.0, 1.5)


def test_a_plain_array_of_mango_equals_its_netcdf(real: Callable[[str], Any]) -> None:
    path, voxels = real("tomoLoRes.zarr")
    dataset = dataset_from_zarr(path)
    np.testing.assert_array_equal(dataset.data.compute(), voxels)
    np.testing.assert_array_equal(
        Dataset.from_path(real("tomoLoRes_SS.nc")[0]).data.compute(), voxels
    )
    assert dataset.dimension_names == ("z", "y", "x")
    assert dataset.voxel_size == (0.03374303877353668,) * 3
    assert (dataset.voxel_unit, dataset.datatype) == ("mm", "tomo")
    assert dataset.dataset_id == "20250313_044643_tomoHiRes_SSby5_SS"
    assert dataset.history == {"20240108_085320_tomo_RMG": {"parameters": {}, "output": ""}}
