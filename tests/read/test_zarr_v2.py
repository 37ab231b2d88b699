"""Stores of Zarr v2, as others wrote them for years, and what is made of them."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    IncompleteDatasetError,
    IncompleteSourceError,
    MetadataError,
    ShardDecodeError,
    UnsupportedFormatError,
    add_levels,
    check_readers,
    dataset_from_zarr,
    dataset_to_zarr,
    edit_metadata,
    info,
    labels_to_zarr,
    plan,
    preview,
    push,
    seal,
    verify,
    write_dataset,
)
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.views.server import FolderServer
from tests.builders import changed, places, random_voxels, write_without_commit

#: Of the verification: others keep no checksums.
unchecked = pytest.mark.filterwarnings(
    "ignore:the source .* keeps no checksums|.* are read as fill values"
)

VOXELS = random_voxels((10, 12, 14))
SMALL: dict[str, Any] = {"chunks": (4, 4, 4), "shards": (4, 8, 8)}
SCALE = {"type": "scale", "scale": [3.0, 2.0, 1.5]}


def multiscale(*datasets: dict[str, Any], **more: Any) -> dict[str, Any]:
    axes = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    return {"version": "0.4", "name": "theirs", "axes": axes, "datasets": list(datasets), **more}


def dataset(path: str, *transforms: dict[str, Any]) -> dict[str, Any]:
    return {"path": path, "coordinateTransformations": list(transforms)}


def array(group: Any, path: str, voxels: Any, **more: Any) -> Any:
    usual = {"chunks": (4, 5, 6), "compressors": numcodecs.Blosc(), "zarr_format": 2}
    made = zarr.create_array(
        f"{group}/{path}", shape=voxels.shape, dtype=voxels.dtype, **usual | more
    )
    made[...] = voxels
    return made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An OME-Zarr 0.4 of two levels, with labels, as ome-zarr-py writes it."""
    path = tmp_path / "theirs.zarr"
    nested = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    group = zarr.create_group(path, zarr_format=2)
    array(path, "0", VOXELS, **nested)
    array(path, "1", VOXELS[::2, ::2, ::2], **nested)
    coarser = [
        {"type": "scale", "scale": [6.0, 4.0, 3.0]},
        {"type": "translation", "translation": [11.5, 21.0, 30.75]},
    ]
    shift = {"type": "translation", "translation": [10.0, 20.0, 30.0]}
    group.attrs["multiscales"] = [multiscale(dataset("0", SCALE, shift), dataset("1", *coarser))]
    labels = group.create_group("labels")
    labels.attrs["labels"] = ["cells"]
    cells = labels.create_group("cells")
    array(path, "labels/cells/0", (VOXELS % 3).astype("u1"), **nested)
    cells.attrs["multiscales"] = [multiscale(dataset("0", SCALE, shift))]
    cells.attrs["image-label"] = {"colors": [{"label-value": 2, "rgba": [9, 8, 7, 255]}]}
    return path


def test_an_image_with_levels_labels_and_a_position_is_opened(image: Path) -> None:
    found = Dataset.from_path(image)
    assert (found.voxel_size, found.voxel_unit) == ((3.0, 2.0, 1.5), "mm")
    assert (found.origin, found.dimension_names) == ((10.0, 20.0, 30.0), ("z", "y", "x"))
    assert [(level.path, level.shape) for level in found.levels] == [
        ("0", (10, 12, 14)),
        ("1", (5, 6, 7)),
    ]
    np.testing.assert_array_equal(found.data, VOXELS)
    coarse = dataset_from_zarr(image, level=1)
    assert coarse.origin == (11.5, 21.0, 30.75)
    np.testing.assert_array_equal(coarse.data, VOXELS[::2, ::2, ::2])
    said = info(image)
    assert (said.format, said.codecs, said.labels) == (
        *("Zarr v2, OME-Zarr 0.4", ("blosc",), {"cells": 1}),
    )
    labels = dataset_from_zarr(image / "labels" / "cells")
    assert labels.is_discrete
    np.testing.assert_array_equal(labels.data, VOXELS % 3)
    assert plan(found, image.parent / "new.zarr").levels[0].shape == (10, 12, 14)
    assert preview(image, image.parent / "a.png", labels=["cells"]) is not None


CHAINS: dict[str, tuple[str, dict[str, Any]]] = {
    "blosc, big-endian": (">u2", {"compressors": numcodecs.Blosc("lz4", shuffle=-1)}),
    "zlib, F order": ("<u2", {"compressors": numcodecs.Zlib(), "order": "F"}),
    "zstd, dots": ("<i4", {"compressors": numcodecs.Zstd()}),
    "gzip, F order, big-endian": (">f4", {"compressors": numcodecs.GZip(), "order": "F"}),
    "lz4, slashes": (
        *("<u2", {"compressors": numcodecs.LZ4()}),
    ),
    "bz2, one byte": ("|u1", {"compressors": numcodecs.BZ2()}),
    "none, NaN": ("<f4", {"compressors": None, "fill_value": np.nan}),
    "differences, bytes shuffled": (
        ">u2",
        {
            "filters": [numcodecs.Delta(dtype=">u2"), numcodecs.Shuffle(2)],
            "compressors": numcodecs.Zlib(),
            "order": "F",
        },
    ),
    "bytes kept as integers": (
        "|u1",
        {"filters": [numcodecs.AsType(">i4", "|u1")], "compressors": numcodecs.LZMA()},
    ),
    "kept as others": (
        "<f8",
        {"filters": [numcodecs.AsType(">i4", "<f8")], "compressors": numcodecs.Blosc()},
    ),
}  # fmt: skip


@unchecked
@pytest.mark.parametrize("chain", CHAINS)
def test_every_order_filter_and_compressor_is_read_as_zarr_reads_it(
    chain: str, tmp_path: Path
) -> None:
    dtype, options = CHAINS[chain]
    separator = "/" if "slashes" in chain else "."
    path = tmp_path / "a.zarr"
    options = {"fill_value": 7} | options
    theirs = zarr.create_array(
        path,
        shape=VOXELS.shape,
        dtype=dtype,
        chunks=(4, 5, 6),
        zarr_format=2,
        chunk_key_encoding={"name": "v2", "separator": separator},
        **options,
    )
    # The last chunks along z are not there.
    theirs[:8] = (VOXELS % 200)[:8].astype(dtype)
    found = dataset_from_zarr(path)
    np.testing.assert_array_equal(found.data, theirs[...])
    np.testing.assert_array_equal(found.data[3:9, ::2, -5], theirs[3:9, ::2, -5])
    assert (path / f"1{separator}0{separator}0").is_file()
    if chain == "none, NaN":
        assert np.isnan(found.data[9]).all()
    if chain == "gzip, F order, big-endian":
        dataset_to_zarr(found, tmp_path / "new.zarr")
        assert not verify(tmp_path / "new.zarr", found)


def test_an_array_without_fill_value_names_its_axes_and_has_its_size_given(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    theirs = zarr.create_array(
        path, shape=(4, 4), dtype="u2", chunks=(2, 2), zarr_format=2, fill_value=None
    )
    theirs.attrs["_ARRAY_DIMENSIONS"] = ["row", "column"]
    found = dataset_from_zarr(path, voxel_size=2.5, voxel_unit="um")
    assert (found.dimension_names, found.voxel_size) == (("row", "column"), (2.5, 2.5))
    assert not found.data.any().compute()
    assert info(path).format == "Zarr v2, plain array"


def test_stale_copies_of_the_documents_are_not_believed(image: Path) -> None:
    zarr.consolidate_metadata(str(image), zarr_format=2)
    copies = json.loads((image / ".zmetadata").read_text())
    copies["metadata"][".zattrs"]["multiscales"][0]["name"] = "stale"
    copies["metadata"]["0/.zarray"]["shape"] = [1, 1, 1]
    (image / ".zmetadata").write_text(json.dumps(copies))
    np.testing.assert_array_equal(dataset_from_zarr(image).data, VOXELS)


def test_a_store_that_was_moved_to_v3_with_its_attributes_is_read(image: Path) -> None:
    from zarr.metadata.migrate_v3 import migrate_v2_to_v3

    migrate_v2_to_v3(input_store=str(image))
    found = dataset_from_zarr(image)
    assert (found.voxel_size, found.voxel_unit) == ((3.0, 2.0, 1.5), "mm")
    np.testing.assert_array_equal(found.data, VOXELS)
    with pytest.raises(UnsupportedFormatError, match=r"OME-Zarr 0\.4 in Zarr v3.*convert"):
        add_levels(image, levels=3)


@pytest.mark.parametrize("version", ["0.1", "0.3"])
def test_versions_without_sizes_are_opened_with_a_size_from_the_user(
    version: str, tmp_path: Path
) -> None:
    path = tmp_path / "old.zarr"
    group = zarr.create_group(path, zarr_format=2)
    array(path, "0", VOXELS[None, None], chunks=(1, 1, 4, 5, 6))
    axes = {} if version == "0.1" else {"axes": list("tczyx")}
    group.attrs["multiscales"] = [{"version": version, "datasets": [{"path": "0"}], **axes}]
    with pytest.raises(CTLabError, match="voxel_size="):
        dataset_from_zarr(path)
    found = dataset_from_zarr(path, voxel_size=2.5, voxel_unit="um")
    assert (found.voxel_size, found.dimension_names) == ((2.5, 2.5, 2.5), ("z", "y", "x"))
    np.testing.assert_array_equal(found.data, VOXELS)


def test_a_plate_says_where_an_image_of_it_is(tmp_path: Path) -> None:
    group = zarr.create_group(tmp_path / "plate.zarr", zarr_format=2)
    group.attrs["plate"] = {"version": "0.4", "wells": [{"path": "B/03"}]}
    with pytest.raises(UnsupportedFormatError, match="inside it, as B/03/0"):
        dataset_from_zarr(tmp_path / "plate.zarr")


CHANGES: dict[str, Callable[[Path], Any]] = {
    "levels": lambda path: add_levels(path, levels=3),
    "labels": lambda path: labels_to_zarr((VOXELS % 3).astype("u1"), path, "more"),
    "size": lambda path: edit_metadata(path, voxel_size=2.5, voxel_unit="um"),
    "copy": lambda path: push(path, path.parent / "copy.zarr"),
    "seal": seal,
    "check": check_readers,
}


class TestRefused:
    @pytest.fixture(autouse=True)
    def nothing_is_written(self, image: Path, snapshot: Any) -> Iterator[None]:
        before = snapshot(image)
        yield
        assert snapshot(image) == before

    @pytest.mark.parametrize("change", CHANGES)
    def test_what_needs_version_3_names_the_conversion(self, change: str, image: Path) -> None:
        with pytest.raises(UnsupportedFormatError, match="ctlab-zarr convert"):
            CHANGES[change](image)

    def test_verifying_it_names_the_conversion(self, image: Path) -> None:
        (problem,) = verify(image)
        assert "ctlab-zarr convert" in problem.message


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dtype": "|O"}, UnsupportedFormatError, "elements are '|O'"),
        ({"dtype": [["a", "<i2"]]}, UnsupportedFormatError, "elements are"),
        ({"dtype": "<c8"}, UnsupportedFormatError, "elements are '<c8'"),
        ({"order": "K"}, MetadataError, "'K'"),
        ({"chunks": [4, 5]}, MetadataError, "does not fit"),
        ({"chunks": None}, MetadataError, r"\.zarray"),
        ({"fill_value": "much"}, MetadataError, r"\.zarray"),
        ({"dimension_separator": "-"}, MetadataError, "separator"),
        ({"compressor": {"id": "theirs"}}, CTLabError, "theirs"),
        ({"filters": [{"id": "theirs"}]}, CTLabError, "theirs"),
    ],
)  # fmt: skip
def test_an_array_that_cannot_be_read_is_named(
    change: dict[str, Any], error: type[Exception], message: str, image: Path
) -> None:
    document = image / "0" / ".zarray"
    document.write_text(json.dumps(json.loads(document.read_text()) | change))
    with pytest.raises(error, match=message):
        _ = dataset_from_zarr(image).data.compute()


@pytest.mark.parametrize("name", [".zattrs", "0/.zarray"])
def test_a_document_with_a_part_missing_or_wrong_is_read_or_refused(name: str, image: Path) -> None:
    content = json.loads((image / name).read_text())
    for path in places(content):
        for value in (..., None, "x"):
            (image / name).write_text(json.dumps(changed(content, path, value)))
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", ".*a unit that is not known")
                    dataset_from_zarr(image).data[0, 0].compute(scheduler="sync")
            except CTLabError:
                continue
            except Exception as error:
                raise AssertionError(f"{name} with {path} = {value!r}") from error


def test_a_lost_array_a_damaged_document_and_a_damaged_chunk_are_named(image: Path) -> None:
    found = dataset_from_zarr(image)
    chunk = image / "0" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(ShardDecodeError, match="0/0/0/0"):
        found.data.compute()
    (image / "1" / ".zarray").unlink()
    with pytest.raises(IncompleteDatasetError, match=r"1/\.zarray is missing"):
        dataset_from_zarr(image)
    (image / ".zattrs").write_text("{")
    with pytest.raises(MetadataError, match=r"\.zattrs is not JSON"):
        dataset_from_zarr(image)


@unchecked
def test_a_write_goes_on_with_the_same_store_and_with_no_other(image: Path) -> None:
    store = image.parent / "new.zarr"
    graph = dataset_to_zarr(dataset_from_zarr(image), store, compute=False, **SMALL)
    assert graph is not None
    write_without_commit(graph)
    attributes = (image / ".zattrs").read_text()
    (image / ".zattrs").write_text(attributes.replace("theirs", "others"))
    with pytest.raises(CTLabError, match="source"):
        write_dataset(dataset_from_zarr(image), store, resume=True, **SMALL)
    (image / ".zattrs").write_text(attributes)
    result = write_dataset(dataset_from_zarr(image), store, resume=True, **SMALL)
    assert result.n_resumed == result.n_shards > 1
    assert not verify(store, dataset_from_zarr(image))


def test_a_store_that_is_replaced_while_it_is_read_is_noticed(image: Path) -> None:
    opened = dataset_from_zarr(image)
    document = image / "0" / ".zarray"
    found = document.stat()
    os.utime(document, ns=(found.st_atime_ns, found.st_mtime_ns + 10**9))
    with pytest.raises(IncompleteSourceError, match=r"0/\.zarray was written again"):
        dataset_to_zarr(opened, image.parent / "new.zarr")
    assert not (image.parent / "new.zarr").exists()


@unchecked
def test_a_conversion_keeps_labels_colours_contrast_name_and_position(image: Path) -> None:
    window = {"min": 0, "max": 99, "start": 5, "end": 50}
    group = zarr.open_group(image, mode="r+", zarr_format=2)
    group.attrs["omero"] = {"channels": [{"label": "dry", "color": "00FF00", "window": window}]}
    new = str(image.parent / "new.zarr")
    command = ["convert", str(image), new, "--levels", "2", "--quiet"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "with the labels cells" in done.output
    ome = json.loads(Path(new, "zarr.json").read_text())["attributes"]["ome"]
    assert (ome["version"], ome["multiscales"][0]["name"]) == ("0.5", "theirs")
    channel = ome["omero"]["channels"][0]
    assert (channel["label"], channel["color"], channel["window"]) == ("dry", "00FF00", window)
    labels = json.loads(Path(new, "labels", "cells", "zarr.json").read_text())["attributes"]["ome"]
    assert labels["image-label"]["colors"] == [{"label-value": 2, "rgba": [9, 8, 7, 255]}]
    np.testing.assert_array_equal(dataset_from_zarr(f"{new}/labels/cells").data, VOXELS % 3)
    assert dataset_from_zarr(new).origin == (10.0, 20.0, 30.0)
    assert info(new).labels == {"cells": 2}
    assert not verify(new, image)
    assert CliRunner().invoke(main, [*command, "--resume"]).exit_code == 0
    part = CliRunner().invoke(main, ["convert", str(image), f"{new}2", "--crop", "1:5,:,:"])
    assert (part.exit_code, info(f"{new}2.zarr").labels) == (0, {})


def test_labels_that_do_not_fit_are_left_out_with_a_warning(image: Path) -> None:
    array(image, "labels/cells/0", (VOXELS % 3).astype("u1")[:5], overwrite=True)
    done = CliRunner().invoke(main, ["convert", str(image), str(image.parent / "new.zarr")])
    assert (done.exit_code, "'cells' are not copied" in done.output) == (0, True)
    assert info(image.parent / "new.zarr").labels == {}


@unchecked
def test_what_a_conversion_changed_is_found_by_verification(image: Path) -> None:
    store = image.parent / "new.zarr"
    dataset_to_zarr(dataset_from_zarr(image), store)
    array(image, "0", VOXELS + 1, overwrite=True)
    assert any(problem.kind == "voxels" for problem in verify(store, image))


def test_it_is_read_over_http(image: Path) -> None:
    pytest.importorskip("obstore")
    with FolderServer({"theirs.zarr": str(image)}) as server:
        found = dataset_from_zarr(server.folder_url("theirs.zarr"))
        np.testing.assert_array_equal(found.data, VOXELS)
        assert [level.path for level in found.levels] == ["0", "1"]
