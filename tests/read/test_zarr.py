"""Stores that others wrote, and stores that nobody should have written."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from ctlab_dask_zarr import (
    CTLabError,
    DatasetNotFoundError,
    DataType,
    IncompleteDatasetError,
    MetadataError,
    ShardDecodeError,
    UnsupportedFormatError,
    dataset_from_zarr,
    dataset_to_zarr,
)
from tests.builders import changed, make_dataset, places, random_voxels

VOXELS = random_voxels((10, 12, 14))
LAYOUT = {"chunks": (4, 4, 4), "shards": (8, 8, 8)}
MANGO = {
    "metadata_version_major": 1,
    "metadata_version_minor": 0,
    "basename": "tomo",
    "dataset_id": "20240108_085320_tomoA",
    "history": {"20240108_085320_tomoA": {"parameters": {"a": {"b": "1"}}, "output": "log"}},
    "voxel_size_xyz": [1.5, 2.0, 3.0],
    "voxel_unit": "mm",
}


def edit(document: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(document.read_text())
    change(content)
    document.write_text(json.dumps(content))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a.zarr", **LAYOUT)
    return tmp_path / "a.zarr"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "p.zarr", ome_zarr_version=None, **LAYOUT)
    return tmp_path / "p.zarr"


class TestWrittenByOthers:
    # zarr warns of what others chose.
    @pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"shards": (8, 8, 8)},
            {"compressors": None},
            {"shards": (8, 8, 8), "compressors": None, "fill_value": 7},
            {"chunk_key_encoding": {"name": "v2", "separator": "."}},
            {"chunk_key_encoding": {"name": "default", "separator": "."}, "shards": (8, 8, 8)},
            {"serializer": BytesCodec(endian="big")},
            {
                "shards": None,
                "compressors": None,
                "serializer": ShardingCodec(
                    chunk_shape=(2, 2, 2),
                    codecs=[BytesCodec(), ZstdCodec()],
                    index_location="start",
                ),
            },
            {
                "shards": None,
                "compressors": None,
                "serializer": ShardingCodec(
                    chunk_shape=(2, 2, 2),
                    codecs=[BytesCodec(), ZstdCodec()],
                    index_codecs=[BytesCodec()],
                ),
            },
            {
                "shards": None,
                "compressors": [Crc32cCodec()],
                "serializer": ShardingCodec(chunk_shape=(2, 2, 2), codecs=[BytesCodec()]),
            },
        ],
    )
    def test_a_plain_array_without_any_metadata_of_ours(
        self, options: dict[str, Any], tmp_path: Path
    ) -> None:
        path = tmp_path / "theirs.zarr"
        array = zarr.create_array(path, shape=VOXELS.shape, dtype="u2", chunks=(4, 4, 4), **options)
        array[:8] = VOXELS[:8]
        found = dataset_from_zarr(path)
        expected = np.asarray(array[...])
        np.testing.assert_array_equal(found.data, expected)
        np.testing.assert_array_equal(found.data[3:9, ::2, -5], expected[3:9, ::2, -5])
        assert (found.dimension_names, found.voxel_unit) == (("z", "y", "x"), "voxel")
        assert (found.voxel_size, found.datatype, found.history) == ((1.0,) * 3, None, {})

    def test_a_plain_array_with_a_mango_block(self, tmp_path: Path) -> None:
        zarr.create_array(
            tmp_path / "a.zarr",
            data=VOXELS,
            chunks=(4, 12, 14),
            attributes={"mango": MANGO | {"data_min_max": [0, 99]}},
        )
        found = dataset_from_zarr(tmp_path / "a.zarr")
        assert found.datatype is DataType.TOMO
        assert (found.voxel_size, found.voxel_unit) == ((3.0, 2.0, 1.5), "mm")
        assert (found.dataset_id, found.history) == (MANGO["dataset_id"], MANGO["history"])
        assert found.extra_attrs["data_min_max"] == [0, 99]
        np.testing.assert_array_equal(found.data, VOXELS)

    def test_a_group_as_mango_writes_it(self, tmp_path: Path) -> None:
        group = zarr.create_group(
            tmp_path / "a.zarr",
            attributes={
                # The reference writes z, y, x here: in a group the OME scale is believed.
                "mango": MANGO | {"voxel_size_xyz": [3.0, 2.0, 1.5]},
                "ome": {
                    "version": "0.5",
                    "multiscales": [
                        {
                            "axes": [
                                {"name": n, "type": "space", "unit": "millimeter"} for n in "zyx"
                            ],
                            "datasets": [
                                {
                                    "path": "0",
                                    "coordinateTransformations": [
                                        {"type": "scale", "scale": [1.0, 1.0, 1.0]}
                                    ],
                                }
                            ],
                            "coordinateTransformations": [
                                {"type": "scale", "scale": [3.0, 2.0, 1.5]}
                            ],
                        }
                    ],
                },
            },
        )
        group.create_array(
            "0",
            data=VOXELS,
            chunks=(4, 4, 4),
            shards=(8, 8, 8),
            fill_value=65535,
            dimension_names=["z", "y", "x"],
        )
        found = dataset_from_zarr(tmp_path / "a.zarr")
        assert (found.voxel_size, found.voxel_unit) == ((3.0, 2.0, 1.5), "mm")
        np.testing.assert_array_equal(found.data, VOXELS)

    @pytest.mark.parametrize("fill", ["0x7fc00001", "NaN", "-Infinity", 1.5])
    def test_fill_values_in_every_spelling(self, fill: Any, tmp_path: Path) -> None:
        path = tmp_path / "a.zarr"
        zarr.create_array(path, shape=(4, 4), dtype="f4", chunks=(2, 2))
        edit(path / "zarr.json", lambda document: document.update(fill_value=fill))
        found = dataset_from_zarr(path).data.compute()
        bits = {"0x7fc00001": 0x7FC00001, "NaN": 0x7FC00000, "-Infinity": 0xFF800000}
        expected = bits.get(fill, np.float32(1.5).view("u4"))
        assert (found.view("u4") == expected).all()

    def test_a_missing_shard_is_fill_value_unless_asked(self, tmp_path: Path) -> None:
        path = tmp_path / "a.zarr"
        zarr.create_array(path, shape=(4, 4), dtype="u2", chunks=(2, 2), fill_value=3)
        assert (dataset_from_zarr(path).data.compute() == 3).all()
        with pytest.raises(IncompleteDatasetError, match="missing"):
            dataset_from_zarr(path, strict=True).data.compute()


class TestLazily:
    def test_opening_reads_no_shard(self, store: Path) -> None:
        for shard in (store / "0").glob("c.*"):
            shard.unlink()
        assert dataset_from_zarr(store).shape == VOXELS.shape

    def test_a_block_is_a_shard_and_reads_only_its_own(self, store: Path) -> None:
        data = dataset_from_zarr(store).data
        assert data.chunks == ((8, 2), (8, 4), (8, 6))
        (store / "0" / "c.1.1.1").unlink()
        np.testing.assert_array_equal(data[:8], VOXELS[:8])
        with pytest.raises(IncompleteDatasetError, match=r"0/c\.1\.1\.1"):
            data.compute()

    def test_keywords_reach_the_array(self, store: Path) -> None:
        found = dataset_from_zarr(store, chunks=(3, -1, "auto"), name="mine", lock=True)
        assert found.data.name == "mine"
        assert found.data.chunks[0] == (3, 3, 3, 1)
        np.testing.assert_array_equal(found.data, VOXELS)

    def test_the_same_store_has_the_same_name_and_one_written_anew_another(
        self, store: Path
    ) -> None:
        first = dataset_from_zarr(store)
        assert dataset_from_zarr(store).data.name == first.data.name
        dataset_to_zarr(make_dataset(VOXELS + 1), store, overwrite=True, **LAYOUT)
        assert dataset_from_zarr(store).data.name != first.data.name
        assert dataset_from_zarr(store).source.identity() != first.source.identity()

    def test_it_pickles_small(self, store: Path) -> None:
        import pickle

        data = pickle.dumps(dataset_from_zarr(store).source)
        assert len(data) < 5000
        np.testing.assert_array_equal(pickle.loads(data)[...], VOXELS)

    @pytest.mark.parametrize("options", [LAYOUT, LAYOUT | {"shards": None}], ids=["shards", "none"])
    def test_a_damaged_object_is_named(self, options: dict[str, Any], tmp_path: Path) -> None:
        dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a", **options)
        damaged = tmp_path / "a.zarr" / "0" / "c.1.1.0"
        damaged.write_bytes(damaged.read_bytes()[:-3])
        with pytest.raises(ShardDecodeError, match=r"0/c\.1\.1\.0"):
            dataset_from_zarr(tmp_path / "a.zarr").data.compute()


class TestRefused:
    """Each its own clear error, and reading writes nothing, ever."""

    @pytest.fixture(autouse=True)
    def nothing_is_written(self, tmp_path: Path, snapshot: Any) -> Iterator[dict[str, Any]]:
        # Entered by the test when it has prepared what it reads.
        prepared: dict[str, Any] = {}
        yield prepared
        if prepared:
            assert snapshot(tmp_path) == prepared["before"]

    @pytest.fixture
    def refuse(
        self, tmp_path: Path, snapshot: Any, nothing_is_written: dict[str, Any]
    ) -> Callable[[Path, type[Exception], str], None]:
        def read(path: Path, error: type[Exception], message: str) -> None:
            nothing_is_written["before"] = snapshot(tmp_path)
            with pytest.raises(error, match=message):
                dataset_from_zarr(path).data.compute()

        return read

    def test_nothing_there(self, tmp_path: Path, refuse: Any) -> None:
        refuse(tmp_path / "scan.zar", DatasetNotFoundError, r"scan\.zar does not exist")

    def test_below_a_file(self, tmp_path: Path, refuse: Any) -> None:
        (tmp_path / "file").write_text("x")
        refuse(tmp_path / "file" / "a.zarr", CTLabError, "file")

    def test_a_version_to_come(self, store: Path, refuse: Any) -> None:
        edit(store / "zarr.json", lambda d: d.update(zarr_format=4))
        refuse(store, UnsupportedFormatError, "format 4")

    def test_a_group_of_something_else(self, tmp_path: Path, refuse: Any) -> None:
        zarr.create_group(tmp_path / "a.zarr", zarr_format=3)
        refuse(tmp_path / "a.zarr", UnsupportedFormatError, "without OME metadata")

    def test_an_array_that_the_group_lists_and_lacks(self, store: Path, refuse: Any) -> None:
        (store / "0" / "zarr.json").unlink()
        refuse(store, IncompleteDatasetError, r"0/zarr\.json is missing")

    def test_a_mango_data_type_that_is_not_known(self, store: Path, refuse: Any) -> None:
        edit(store / "zarr.json", lambda d: d["attributes"]["mango"].update(basename="tomography"))
        refuse(store, MetadataError, "tomography")

    def test_a_higher_mango_version(self, plain: Path, refuse: Any) -> None:
        edit(
            plain / "zarr.json",
            lambda d: d["attributes"]["mango"].update(
                metadata_version_major=2, metadata_version_minor=3
            ),
        )
        refuse(plain, UnsupportedFormatError, r"2\.3 is newer")

    def test_a_higher_minor_mango_version_is_read(self, plain: Path) -> None:
        edit(
            plain / "zarr.json",
            lambda d: d["attributes"]["mango"].update(metadata_version_minor=9),
        )
        np.testing.assert_array_equal(dataset_from_zarr(plain).data, VOXELS)

    @pytest.mark.parametrize(
        "data_type", ["uint128", "", "r17", {"name": "mine", "configuration": {}}, 3, None]
    )
    def test_a_zarr_data_type_that_is_not_known(
        self, data_type: Any, plain: Path, refuse: Any
    ) -> None:
        edit(plain / "zarr.json", lambda d: d.update(data_type=data_type))
        refuse(plain, CTLabError, "data.type")

    def test_a_codec_that_is_not_known(self, plain: Path, refuse: Any) -> None:
        inner = {"name": "our-own-codec", "configuration": {}}
        edit(
            plain / "zarr.json",
            lambda d: d["codecs"][0]["configuration"]["codecs"].append(inner),
        )
        refuse(plain, CTLabError, "our-own-codec")

    @pytest.mark.parametrize("codecs", [[], [{}], None, [{"name": "zstd"}]])
    def test_a_chain_of_codecs_that_is_none(self, codecs: Any, plain: Path, refuse: Any) -> None:
        edit(plain / "zarr.json", lambda d: d.update(codecs=codecs))
        refuse(plain, CTLabError, "zarr.json|codec")

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", "\xff", "[" * 100_000])
    def test_a_document_that_is_none(self, text: str, plain: Path, refuse: Any) -> None:
        (plain / "zarr.json").write_bytes(text.encode("latin-1"))
        refuse(plain, MetadataError, "zarr.json")

    @pytest.mark.parametrize("shape", [(5,), (2, 3, 4, 5)])
    def test_another_number_of_axes(
        self, shape: tuple[int, ...], tmp_path: Path, refuse: Any
    ) -> None:
        zarr.create_array(tmp_path / "a.zarr", shape=shape, dtype="u1")
        refuse(tmp_path / "a.zarr", UnsupportedFormatError, f"{len(shape)} axes")

    @pytest.mark.parametrize("path", ["../secret", "..", ".", "0/../../secret", "", "/", "a//b"])
    def test_a_path_out_of_the_store(self, path: str, store: Path, refuse: Any) -> None:
        (store / "0").rename(store.parent / "secret")

        def change(document: dict[str, Any]) -> None:
            document["attributes"]["ome"]["multiscales"][0]["datasets"][0]["path"] = path

        edit(store / "zarr.json", change)
        refuse(store, MetadataError, "leads out of the store")

    def test_sizes_that_would_fill_the_memory(self, plain: Path, refuse: Any) -> None:
        def change(document: dict[str, Any]) -> None:
            document["shape"] = [2**62, 2**62, 2**62]

        edit(plain / "zarr.json", change)
        refuse(plain, MetadataError, "not a possible length")


#: Values that stand where others belong, in documents that somebody edited.
_WRONG: list[Any] = [
    *(None, True, 0, -1, 2**70, 1.5, float("nan"), "", "x", "NaN", "0x00", "0xzz"),
    *([], [[]], [None], [1], [1, 1, 1], {}, {"name": "x"}, {"configuration": {}}),
]


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_an_edited_document_is_read_or_refused_and_nothing_else(
    store: Path, plain: Path, data: Any
) -> None:
    document = data.draw(
        st.sampled_from([store / "zarr.json", store / "0" / "zarr.json", plain / "zarr.json"])
    )
    original = document.read_text()
    content = json.loads(original)
    path = data.draw(st.sampled_from(list(places(content))))
    document.write_text(
        json.dumps(changed(content, path, data.draw(st.sampled_from([..., *_WRONG]))))
    )
    try:
        with dask.config.set(scheduler="sync"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*a unit that is not known")
            found = dataset_from_zarr(document.parent if document.parent.name != "0" else store)
            if found.data.nbytes < 10**7:
                found.data.compute()
    except CTLabError:
        pass
    finally:
        document.write_text(original)


def test_every_single_value_may_be_missing(store: Path, plain: Path) -> None:
    for root, name in itertools.product([store, plain], ["zarr.json", "0/zarr.json"]):
        document = root / name
        if not document.exists():
            continue
        original = document.read_text()
        content = json.loads(original)
        for path in places(content):
            document.write_text(json.dumps(changed(content, path, ...)))
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    warnings.filterwarnings("ignore", ".*a unit that is not known")
                    dataset_from_zarr(root).data.compute(scheduler="sync")
            except CTLabError:
                pass
            except Exception as error:
                raise AssertionError(f"{name} without {path}") from error
            finally:
                document.write_text(original)
