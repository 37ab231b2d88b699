"""The public API as its users call it: positions, defaults, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from dask.delayed import Delayed

import ctlab_dask_zarr
from ctlab_dask_zarr import (
    CTLabError,
    DatasetNotFoundError,
    IncompleteDatasetError,
    InvalidArgumentError,
    MetadataError,
    OMEZarrVersion,
    UnsupportedFormatError,
    dataset_from_zarr,
    dataset_to_zarr,
    plan,
)
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((40, 65, 97))


def attributes(path: Path) -> dict[str, Any]:
    return json.loads((path / "zarr.json").read_text())["attributes"]


def array_document(path: Path) -> dict[str, Any]:
    return json.loads((path / "0" / "zarr.json").read_text())


def test_every_public_name_is_there() -> None:
    assert all(hasattr(ctlab_dask_zarr, name) for name in ctlab_dask_zarr.__all__)
    assert set(ctlab_dask_zarr.__all__) <= set(dir(ctlab_dask_zarr))
    with pytest.raises(AttributeError):
        _ = ctlab_dask_zarr.nothing


def test_arguments_by_position(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="ignored"):
        result = dataset_to_zarr(
            *(make_dataset(VOXELS), tmp_path / "a", "proju16", "20200101_000000_x"),
            *(OMEZarrVersion.v05, 100.0, {"k": {"v": 1}}, 10.0, (16, 16, 16), (32, 32, 32)),
            *({"fill_value": 5}, 2),
        )
    assert result is None
    block = attributes(tmp_path / "a.zarr")["mango"]
    assert (block["basename"], block["dataset_id"]) == ("proju16", "20200101_000000_x")
    assert block["history"] == {"k": {"v": 1}}
    document = array_document(tmp_path / "a.zarr")
    assert document["chunk_grid"]["configuration"]["chunk_shape"] == [32, 32, 32]
    assert document["fill_value"] == 5
    assert document["chunk_key_encoding"]["configuration"]["separator"] == "/"


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"chunk_size_mb": 1.0}, "chunk_size_mb is ignored"),
        ({"max_shard_size_mb": 1.0}, "max_shard_size_mb is ignored"),
    ],
)
def test_sizes_in_megabytes_are_ignored_with_a_warning(sizes, text: str, tmp_path: Path) -> None:
    expected = f"{text} when writing Zarr. Use chunks/shards or 'auto' instead."
    with pytest.warns(UserWarning, match=re.escape(expected)) as caught:
        dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", **sizes)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", ["a", "a.zarr"])
def test_zarr_is_appended_where_it_is_missing(name: str, tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / name)
    path = tmp_path / (name if name.endswith(".zarr") else f"{name}.zarr")
    assert (path / "zarr.json").exists()


def test_a_file_url_is_a_local_path(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), f"file://{tmp_path}/a%20b.zarr")
    assert (tmp_path / "a b.zarr" / "zarr.json").exists()


@pytest.mark.parametrize(
    ("options", "separator"),
    [
        ({}, "."),
        ({"dimension_separator_threshold": 11}, "/"),
        ({"dimension_separator_threshold": 12}, "."),
        ({"dimension_separator_threshold": None}, "/"),
        ({"create_array_kwargs": {"chunk_key_encoding": {"name": "v2", "separator": "/"}}}, "/"),
    ],
)
def test_the_separator_follows_the_number_of_objects(options, separator, tmp_path: Path) -> None:
    options = {"chunks": (32, 32, 32), "shards": (32, 32, 64), **options}
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", **options)
    encoding = array_document(tmp_path / "a.zarr")["chunk_key_encoding"]
    assert encoding["configuration"]["separator"] == separator
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "a.zarr" / "0", mode="r"), VOXELS)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compresor": 1}, "create_array_kwargs.*compressor"),
        ({"overwrit": True}, "did you mean overwrite"),
        ({"chunk": (1, 2, 3)}, "did you mean chunks"),
        ({"shard": 1}, "did you mean shards"),
        ({"data_type": "tomo"}, "did you mean datatype"),
        ({"basename": "tomo"}, "basename"),
        ({"voxel_size_xyz": [1, 1, 1]}, "voxel_size_xyz"),
        ({"coord_transform": 3}, "coord_transform"),
        ({"coordinate_origin_xyz": [0, 0]}, "coordinate_origin_xyz"),
        ({"sigma": float("nan")}, "sigma is nan"),
        ({"anything": {"deep": [1, np.inf]}}, r"anything\['deep'\]\[1\]"),
        ({"anything": {1: 2}}, "keys have to be text"),
        ({"anything": object()}, "object"),
        ({"history": {"a": {"b": {1, 2}}}}, r"history\['a'\]\['b'\]"),
        ({"datatype": "segmented"}, "uint8"),
        ({"datatype": "nonsense"}, "nonsense"),
        ({"create_array_kwargs": {"shape": (1, 1, 1)}}, "shape"),
        ({"create_array_kwargs": {"compresors": None}}, "zarr does not accept"),
        ({"create_array_kwargs": {"fill_value": 70000}}, "zarr does not accept"),
        ({"ome_zarr_version": "0.4"}, "OMEZarrVersion"),
        ({"scale_placement": "array"}, "scale_placement"),
        ({"dimension_separator_threshold": True}, "threshold"),
        ({"chunks": "auto", "shards": (32, 32, 32)}, "a shape of chunks"),
        ({"resume": True, "restart": True}, "exclude"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_touched(
    options, message: str, tmp_path: Path, snapshot
) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a")
    before = snapshot(tmp_path)
    with pytest.raises((CTLabError, ValueError), match=message):
        dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", **({"overwrite": True} | options))
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("dtype", ["bool", "complex64", "M8[s]"])
def test_data_that_is_no_volume_is_refused(dtype: str, tmp_path: Path) -> None:
    data = da.zeros((4, 4, 4), dtype=dtype)
    with pytest.raises(ValueError, match="dtype"):
        dataset_to_zarr(make_dataset(data), tmp_path / "a")


def test_numpy_metadata_and_other_alphabets_are_kept(tmp_path: Path) -> None:
    history = {"20200101_000000_Prüfung": {"°": np.float32(0.5), "n": np.int64(3), "ok": np.True_}}
    dataset_to_zarr(
        make_dataset(VOXELS, history=history), tmp_path / "a", sample="砂岩", r=np.arange(3)
    )
    block = attributes(tmp_path / "a.zarr")["mango"]
    assert block["history"] == {"20200101_000000_Prüfung": {"°": 0.5, "n": 3, "ok": True}}
    assert (block["sample"], block["r"]) == ("砂岩", [0, 1, 2])
    assert dataset_from_zarr(tmp_path / "a.zarr").extra_attrs["sample"] == "砂岩"


@pytest.mark.parametrize("placement", ["dataset", "multiscales"])
def test_where_the_physical_scale_stands(placement: str, tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", scale_placement=placement)
    (multiscale,) = attributes(tmp_path / "a.zarr")["ome"]["multiscales"]
    (transform,) = multiscale["datasets"][0]["coordinateTransformations"]
    if placement == "dataset":
        assert transform == {"type": "scale", "scale": [3.0, 2.0, 1.5]}
        assert "coordinateTransformations" not in multiscale
    else:
        assert transform["scale"] == [1.0, 1.0, 1.0]
        assert multiscale["coordinateTransformations"][0]["scale"] == [3.0, 2.0, 1.5]
    assert dataset_from_zarr(tmp_path / "a.zarr").voxel_size == (3.0, 2.0, 1.5)


def test_the_mango_block_holds_x_y_z_and_the_ome_scale_z_y_x(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a")
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "b", ome_zarr_version=None)
    for path in (tmp_path / "a.zarr", tmp_path / "b.zarr"):
        assert attributes(path)["mango"]["voxel_size_xyz"] == [1.5, 2.0, 3.0]
        assert dataset_from_zarr(path).voxel_size == (3.0, 2.0, 1.5)


def test_voxels_as_a_unit_are_left_out(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS, voxel_unit="voxel"), tmp_path / "a")
    (multiscale,) = attributes(tmp_path / "a.zarr")["ome"]["multiscales"]
    assert all("unit" not in axis for axis in multiscale["axes"])
    assert dataset_from_zarr(tmp_path / "a.zarr").voxel_unit == "voxel"


@pytest.mark.parametrize("version", [OMEZarrVersion.v05, None])
def test_without_a_data_type_nothing_is_lost(version, tmp_path: Path) -> None:
    dataset = make_dataset(VOXELS.astype("i8"), history={"a": "b"}, dataset_id="20200101_000000_x")
    dataset_to_zarr(dataset, tmp_path / "a", ome_zarr_version=version, operator="Ann")
    assert "mango" not in attributes(tmp_path / "a.zarr"), "the reference wants a basename in it"
    found = dataset_from_zarr(tmp_path / "a.zarr")
    assert (found.history, found.dataset_id) == ({"a": "b"}, "20200101_000000_x")
    assert found.extra_attrs["operator"] == "Ann"
    assert (found.voxel_size, found.voxel_unit) == ((3.0, 2.0, 1.5), "um")


def test_the_fill_value_is_the_mask_value(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a")
    dataset_to_zarr(make_dataset(VOXELS.astype("i8")), tmp_path / "b")
    assert array_document(tmp_path / "a.zarr")["fill_value"] == 65535
    assert array_document(tmp_path / "b.zarr")["fill_value"] == 0


def test_an_identifier_is_made_where_there_is_none(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a")
    assert re.fullmatch(r"\d{8}_\d{6}_tomo", attributes(tmp_path / "a.zarr")["mango"]["dataset_id"])


def test_compute_false_gives_a_delayed_that_does_it_all(tmp_path: Path) -> None:
    write = dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", compute=False)
    assert isinstance(write, Delayed)
    assert list(tmp_path.iterdir()) == []
    write.compute()
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data, VOXELS)


def test_without_sharding_the_plan_warns_of_the_number_of_objects(tmp_path: Path) -> None:
    write_plan = plan(make_dataset(VOXELS), tmp_path / "a", shards=None)
    assert write_plan.levels[0].layout.inner_chunk_shape == (32, 32, 32)
    assert any("24" in note for note in write_plan.notes)
    assert "24" in write_plan.describe()


def test_the_plan_states_memory_that_slabs_of_a_large_volume_take() -> None:
    data = da.zeros((2048, 2520, 2520), chunks=(40, 2520, 2520), dtype="u2")
    rechunk = plan(make_dataset(data), "a").rechunk
    slab, row = 40 * 2520 * 2520 * 2, 32 * 512 * 512 * 2
    assert rechunk.method == "stream"
    assert rechunk.peak_nbytes == 2 * slab + row


class TestReading:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a.zarr", chunks=16, shards=32**3)
        return tmp_path / "a.zarr"

    def test_a_block_is_a_shard_and_chunks_may_be_asked_for(self, store: Path) -> None:
        shards = array_document(store)["chunk_grid"]["configuration"]["chunk_shape"]
        assert [c[0] for c in dataset_from_zarr(store).data.chunks] == shards
        data = dataset_from_zarr(store, chunks=(7, 65, 97)).data
        assert data.chunks[0][0] == 7
        np.testing.assert_array_equal(data, VOXELS)

    def test_a_slice_is_read_without_the_rest(self, store: Path) -> None:
        data = dataset_from_zarr(store).data
        np.testing.assert_array_equal(data[5], VOXELS[5])
        np.testing.assert_array_equal(data[::3, 4, -5:], VOXELS[::3, 4, -5:])

    @pytest.mark.parametrize("method", ["mistyped", "empty", "file"])
    def test_reading_what_is_not_there_makes_nothing(
        self, method: str, tmp_path: Path, snapshot
    ) -> None:
        path = tmp_path / "scan.zarr"
        if method == "empty":
            path.mkdir()
        if method == "file":
            path.write_text("x")
        before = snapshot(tmp_path)
        expected = {
            "mistyped": DatasetNotFoundError,
            "empty": IncompleteDatasetError,
            "file": UnsupportedFormatError,
        }[method]
        with pytest.raises(expected, match=r"scan\.zarr"):
            dataset_from_zarr(path)
        assert snapshot(tmp_path) == before

    def test_a_v2_store_is_told_apart(self, tmp_path: Path) -> None:
        zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
        with pytest.raises(UnsupportedFormatError, match="v2"):
            dataset_from_zarr(tmp_path / "a.zarr")

    def test_a_store_under_way_is_told_apart(self, tmp_path: Path) -> None:
        (tmp_path / ".a.zarr.staging").mkdir()
        with pytest.raises(DatasetNotFoundError, match="under way"):
            dataset_from_zarr(tmp_path / "a.zarr")

    def test_an_array_that_is_missing(self, store: Path) -> None:
        (store / "0" / "zarr.json").unlink()
        with pytest.raises(IncompleteDatasetError, match=r"0/zarr\.json"):
            dataset_from_zarr(store)

    def test_a_missing_shard_is_an_error_and_not_zeros(self, store: Path) -> None:
        shard = next((store / "0").rglob("c*0"))
        shard.unlink()
        with pytest.raises(IncompleteDatasetError, match="missing"):
            dataset_from_zarr(store).data.compute()
        assert (dataset_from_zarr(store, strict=False).data.compute() == 65535).any()

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"mango": {"basename": "nonsense"}}, MetadataError, "nonsense"),
            ({"mango": {"metadata_version_major": 2}}, UnsupportedFormatError, "newer"),
            ({"mango": 3}, MetadataError, "mango"),
            ({"ome": {"version": "0.7"}}, UnsupportedFormatError, "0.7"),
            ({"ome": {"version": "0.5", "plate": {}}}, UnsupportedFormatError, "not an image"),
            ({"ome": None}, MetadataError, "ome"),
        ],
    )
    def test_metadata_that_is_not_known_here(
        self, store: Path, change, error, message: str
    ) -> None:
        document = json.loads((store / "zarr.json").read_text())
        document["attributes"].update(change)
        (store / "zarr.json").write_text(json.dumps(document))
        with pytest.raises(error, match=message):
            dataset_from_zarr(store)

    @pytest.mark.parametrize("path", ["../secret", "/etc", "", "0/../../secret", "a\\b"])
    def test_a_dataset_path_never_leads_out_of_the_store(self, store: Path, path: str) -> None:
        secret = store.parent / "secret"
        (store / "0").rename(secret)
        document = json.loads((store / "zarr.json").read_text())
        document["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = path
        (store / "zarr.json").write_text(json.dumps(document))
        with pytest.raises(MetadataError, match="out of the store"):
            dataset_from_zarr(store)


def test_input_aligned_chunks_make_each_block_a_shard(tmp_path: Path) -> None:
    dataset = make_dataset(VOXELS, (20, 40, 97), datatype="tomo")
    given = (None, None, OMEZarrVersion.v05, None, None, None, "auto", "auto", None, 64)
    with dask.config.set({"ctlab-zarr.shards": [8, 8, 8], "ctlab-zarr.chunks": [8, 8, 8]}):
        # By position, as in the reference: input_aligned_chunks, then compute.
        found = plan(dataset, tmp_path / "a", *given, True)
        graph = dataset_to_zarr(dataset, tmp_path / "a", *given, True, False)
    assert isinstance(graph, Delayed)
    assert (found.rechunk.method, found.rechunk.made) == ("none", 1.0)
    graph.compute()
    array = zarr.open_array(tmp_path / "a.zarr" / "0", mode="r")
    assert (array.shards, array.chunks) == ((20, 40, 97), (20, 40, 97))
    np.testing.assert_array_equal(array, VOXELS)


def test_shards_that_do_not_fit_the_blocks_touch_nothing(tmp_path: Path) -> None:
    dataset = make_dataset(VOXELS, (20, 40, 97))
    for options in ({"shards": (16, 40, 97)}, {"shards": None, "chunks": (20, 30, 97)}):
        with pytest.raises(InvalidArgumentError, match="evenly divide the blocks"):
            dataset_to_zarr(dataset, tmp_path / "a", input_aligned_chunks=True, **options)
    assert list(tmp_path.iterdir()) == []
