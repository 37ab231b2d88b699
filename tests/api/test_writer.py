"""Volumes that are written slice by slice, as a reconstruction makes them."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import Client
from zarr.codecs import TransposeCodec

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    DestinationExistsError,
    IncompleteDatasetError,
    InvalidArgumentError,
    StagingExistsError,
    WriteFailedError,
    ZarrWriter,
    dataset_from_zarr,
    dataset_to_zarr,
    verify,
    zarr_writer,
)
from ctlab_dask_zarr.store.files import LocalFiles
from tests.builders import make_dataset, random_voxels
from tests.reliability.faults import TIMEOUT_S, environment

VOXELS = random_voxels((42, 33, 40))
#: Layers of 8 slices, of which a row of shards has two.
LAYOUT: dict[str, Any] = {"chunks": (4, 8, 8), "shards": (16, 16, 32), "levels": 2}
UM: dict[str, Any] = {"voxel_size": 1.0, "voxel_unit": "um"}


def make_writer(path: Path, voxels: np.ndarray = VOXELS, **options: Any) -> ZarrWriter:
    given = {"shape": voxels.shape, "dtype": voxels.dtype, **UM, **LAYOUT}
    return zarr_writer(path, **(given | options))


def write_slabs(writer: ZarrWriter, *slabs: tuple[int, int], fails: bool = False) -> None:
    """Write the slices ``first:stop`` of each slab in a block, which may raise at its end."""
    with writer:
        for first, stop in slabs:
            writer.write(first, VOXELS[first:stop])
        if fails:
            raise ZeroDivisionError


def write_missing(writer: ZarrWriter) -> None:
    """Enter the block of a writer, and write what is missing."""
    with writer:
        for run in writer.missing():
            writer.write(run.start, VOXELS[run.start : run.stop])


def assert_written(path: Path, voxels: np.ndarray = VOXELS) -> None:
    np.testing.assert_array_equal(dataset_from_zarr(path).data.compute(), voxels)
    assert list(verify(path, make_dataset(voxels, datatype=None, voxel_size=(1,) * 3))) == []
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def slabs_of(n_slices: int, seed: int) -> list[tuple[int, int]]:
    """Runs of slices of any length, in any order."""
    rng = np.random.default_rng(seed)
    edges = sorted({0, n_slices, *rng.integers(0, n_slices, 10).tolist()})
    slabs = list(itertools.pairwise(edges))
    rng.shuffle(slabs)
    return [(int(first), int(stop)) for first, stop in slabs]


def objects_in(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in store.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((42, 33, 40), {"levels": "auto"}),
        ((42, 33, 40), LAYOUT),
        ((42, 33, 40), {"chunks": (5, 8, 8), "shards": (20, 16, 16), "levels": 3}),
        ((42, 33, 40), {"chunks": (4, 8, 8), "shards": (4, 16, 16), "levels": 2}),
        ((42, 33, 40), {"chunks": (8, 16, 16), "shards": None, "levels": 2, "codec": "gzip:1"}),
        ((42, 33, 40), {"ome_zarr_version": None, "codec": "none"}),
        ((42, 33), {"chunks": (4, 8), "shards": (16, 16), "levels": 2}),
        ((1, 33, 40), {"chunks": (1, 8, 8), "shards": (1, 16, 16), "levels": 2}),
        pytest.param(
            (42, 33, 40),
            {**LAYOUT, "create_array_kwargs": {"filters": [TransposeCodec(order=(2, 1, 0))]}},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_is_written_is_what_dataset_to_zarr_writes(
    shape: tuple[int, ...], options: dict[str, Any], tmp_path: Path
) -> None:
    voxels = random_voxels(shape)
    voxels[: len(voxels) // 3, 5:9] = 65535
    known: dict[str, Any] = {"dataset_id": "20200101_000000_tomo", "identity": "the scan"}
    size = (1.0,) * voxels.ndim
    dataset = make_dataset(voxels, voxel_size=size, **known, history={"a": {"b": "1"}})
    dataset_to_zarr(dataset, tmp_path / "a.zarr", **options, operator="me")
    writer = zarr_writer(
        *(tmp_path / "b",), shape=shape, datatype="tomo", **known, **options, operator="me",
        voxel_size=1, voxel_unit="um", history={"a": {"b": "1"}},
    )  # fmt: skip
    with writer:
        for first, stop in slabs_of(len(voxels), seed=len(options)):
            if stop - first == 1:
                writer.write(first, voxels[first])
            else:
                writer.write(np.int64(first), voxels[first:stop].astype(">u2"))
        assert not (tmp_path / "b.zarr").exists()
    expected, written = objects_in(tmp_path / "a.zarr"), objects_in(tmp_path / "b.zarr")
    assert written.keys() == expected.keys()
    # The chunks of further levels lie in their shards in the order in which tasks have left them.
    differ = {key for key in written if written[key] != expected[key]}
    assert {key.split("/")[0] for key in differ} <= {"zarr.json", "1", "2"}
    assert not any(key.endswith("/zarr.json") for key in differ)
    documents = [json.loads(found["zarr.json"]) for found in (expected, written)]
    for document in documents:
        receipt = document["attributes"]["ctlab_dask_zarr"]
        for name in ("run_id", "staging_id", "wall_s", "committed", "document_crc32c"):
            del receipt[name]
        for level in receipt["levels"][1:]:
            del level["receipts_crc32c"]
        del receipt["nbytes"]
    assert documents[0] == documents[1]
    for level in range(len(dataset_from_zarr(tmp_path / "a.zarr").levels)):
        stores = (tmp_path / "a.zarr", tmp_path / "b.zarr")
        pair = [dataset_from_zarr(store, level=level).data for store in stores]
        np.testing.assert_array_equal(*pair)
    assert list(verify(tmp_path / "b.zarr", dataset)) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


@pytest.mark.parametrize(
    ("z", "slab", "message"),
    [
        (40, VOXELS[:4], "slices 40:44 along z is not inside.*0:42"),
        (-1, VOXELS[:1], "not inside"),
        ("a", VOXELS[:1], "not the number of a slice"),
        (1.0, VOXELS[:1], "not the number of a slice"),
        (0, VOXELS[:0], "one or more"),
        (0, VOXELS[:4, :, :-1], r"shape \(4, 33, 39\): slices are of the shape \(33, 40\)"),
        (0, VOXELS[0, 0], "the shape"),
        (0, VOXELS[:4].astype("int16"), "is of int16.*volume of uint16"),
        (0, VOXELS[:4].astype("float32"), "astype"),
        (0, np.ma.masked_equal(VOXELS[:4], VOXELS[0, 0, 0]), "masked voxels"),
        (0, None, "the shape"),
        # A part of it was written, and no other part is.
        (10, VOXELS[:20], "slices 12:16, 29:30 .* were written before"),
    ],
)
def test_a_slab_that_does_not_fit_is_refused_whole(
    z: Any, slab: Any, message: str, tmp_path: Path
) -> None:
    with make_writer(tmp_path / "a.zarr") as writer:
        writer.write(12, VOXELS[12:16])
        elsewhere = pickle.loads(pickle.dumps(writer))
        elsewhere.write(29, VOXELS[29:42])
        before = writer.missing()
        with pytest.raises(InvalidArgumentError, match=message):
            writer.write(z, slab)
        if "written before" not in message:
            with pytest.raises(InvalidArgumentError, match=message):
                elsewhere.write(z, slab)
        assert writer.missing() == before == [range(12), range(16, 29)]
        for run in before:
            writer.write(run.start, VOXELS[run.start : run.stop])
    assert_written(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (4, 5)[:1]}, "two"),
        ({"shape": (4, 0, 5)}, "without elements"),
        ({"shape": "abc"}, "shape='abc'"),
        ({"dtype": None}, "give dtype"),
        ({"dtype": "nonsense"}, "nonsense"),
        ({"dtype": "complex64"}, "complex64"),
        ({"dtype": "uint8", "datatype": "tomo"}, "uint16"),
        ({"voxel_size": (1, 2)}, "voxel_size"),
        ({"voxel_unit": "ells"}, "ells"),
        ({"dimension_names": np.arange(3)}, "one name for each axis"),
        ({"identity": ""}, "identity"),
        ({"codec": "auto"}, "measuring"),
        ({"codec": "nonsense"}, "nonsense"),
        ({"chunk": (1, 2, 3)}, "did you mean chunks"),
        ({"client": None}, "a parameter of dataset_to_zarr"),
        ({"attributes": {}}, "each field as a keyword"),
        ({"resume": True, "restart": True}, "exclude"),
        ({"shards": (15, 16, 16)}, "do not divide"),
        ({"path": "missing/a.zarr"}, "does not exist"),
    ],
)
def test_wrong_arguments_are_told_before_anything_is_touched(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CTLabError, match=message):
        make_writer(tmp_path / options.pop("path", "a.zarr"), **options)
    assert list(tmp_path.iterdir()) == []


def test_a_codec_of_the_configuration_cannot_be_measured_either(tmp_path: Path) -> None:
    with dask.config.set({"ctlab-zarr.codec": "auto"}):
        with pytest.raises(InvalidArgumentError, match="measuring"):
            make_writer(tmp_path / "a.zarr")
        make_writer(tmp_path / "a.zarr", codec="zstd:1")


def test_a_writer_is_used_within_its_block(tmp_path: Path) -> None:
    writer = make_writer(tmp_path / "a.zarr")
    within: list[Callable[[], Any]] = [
        lambda: writer.write(0, VOXELS),
        lambda: pickle.dumps(writer),
        lambda: writer.missing(),
    ]
    for use in within:
        with pytest.raises(InvalidArgumentError, match="with"):
            use()
    assert list(tmp_path.iterdir()) == []
    with writer:
        assert repr(writer).startswith("<ZarrWriter ")
        writer.write(0, VOXELS)
    with pytest.raises(InvalidArgumentError, match="within the block"):
        writer.write(0, VOXELS)
    with pytest.raises(InvalidArgumentError, match="once"), writer:
        pass
    assert_written(tmp_path / "a.zarr")


def test_missing_slices_are_named_and_nothing_is_committed(tmp_path: Path) -> None:
    message = r"slices 3:20, 30:42 were not.*resume=True"
    with pytest.raises(IncompleteDatasetError, match=message):
        write_slabs(make_writer(tmp_path / "a.zarr"), (20, 30), (0, 3))
    assert not (tmp_path / "a.zarr").exists()
    with make_writer(tmp_path / "a.zarr", resume=True) as writer:
        assert writer.missing() == [range(3, 20), range(30, 42)]
        with pytest.raises(InvalidArgumentError, match="20:21"):
            writer.write(20, VOXELS[20])
        for run in writer.missing():
            writer.write(run.start, VOXELS[run.start : run.stop])
        assert writer.missing() == []
    assert_written(tmp_path / "a.zarr")
    # It is complete, and the same arguments find that out.
    with make_writer(tmp_path / "a.zarr", resume=True) as writer:
        assert writer.missing() == []
    assert_written(tmp_path / "a.zarr")


def test_a_block_that_raises_is_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_slabs(make_writer(tmp_path / "a.zarr"), *((z, z + 1) for z in range(13)), fails=True)
    for options, message in (
        ({}, "another write"),
        ({"resume": True, "identity": "another one"}, "source.name"),
        ({"resume": True, "codec": "none"}, "codec"),
    ):
        with pytest.raises(StagingExistsError, match=message):
            make_writer(tmp_path / "a.zarr", **options)
    with make_writer(tmp_path / "a.zarr", resume=True) as writer:
        assert writer.missing() == [range(13, 42)]
        writer.write(13, VOXELS[13:])
    assert_written(tmp_path / "a.zarr")
    with pytest.raises(DestinationExistsError):
        make_writer(tmp_path / "a.zarr")


def test_a_second_writer_is_refused_and_restart_begins_anew(tmp_path: Path) -> None:
    with make_writer(tmp_path / "a.zarr") as first:
        first.write(0, VOXELS)
        with pytest.raises(StagingExistsError, match="another write"):
            make_writer(tmp_path / "a.zarr")
    with pytest.raises(ZeroDivisionError):
        write_slabs(make_writer(tmp_path / "b.zarr"), (0, 42), fails=True)
    with make_writer(tmp_path / "b.zarr", restart=True) as writer:
        assert writer.missing() == [range(42)]
        writer.write(0, VOXELS)
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "b.zarr").data, VOXELS)


def test_slabs_from_several_threads(tmp_path: Path) -> None:
    def write(z: int) -> None:
        writer.write(z, VOXELS[z : z + 3])

    with make_writer(tmp_path / "a.zarr") as writer, ThreadPoolExecutor(8) as pool:
        list(pool.map(write, np.random.default_rng(0).permutation(14) * 3))
    assert_written(tmp_path / "a.zarr")


def test_slabs_from_several_processes_and_from_this_one(cluster: Client, tmp_path: Path) -> None:
    """Of most layers each process has a part only."""
    path = tmp_path / "a.zarr"

    def write(writer: ZarrWriter, z: int, slab: np.ndarray) -> int:
        writer.write(z, slab)
        return os.getpid()

    with make_writer(path) as writer:
        tasks = [
            cluster.submit(write, writer, z, VOXELS[z : z + 3], pure=False)
            for z in range(0, 36, 3)
            if z != 12
        ]
        writer.write(12, VOXELS[12:15])
        writer.write(36, VOXELS[36:])
        assert os.getpid() not in cluster.gather(tasks)
        repeated = cluster.submit(write, writer, 2, VOXELS[2], pure=False)
        assert isinstance(repeated.exception(), InvalidArgumentError)
    assert_written(path)


@pytest.mark.parametrize("length", [4, 8])
def test_slices_that_two_processes_write_at_once_are_not_committed(
    length: int, tmp_path: Path
) -> None:
    with ExitStack() as block:
        writer = block.enter_context(make_writer(tmp_path / "a.zarr"))
        writer.write(0, VOXELS[:4])
        elsewhere = pickle.loads(pickle.dumps(writer))
        # What waits in the memory of this process, no other one can know.
        elsewhere.write(0, VOXELS[:length])
        writer.write(4, VOXELS[4:])
        message = r"slices 0:8 .*two processes.*restart"
        with pytest.raises(IncompleteDatasetError, match=message):
            block.close()
    assert not (tmp_path / "a.zarr").exists()


def test_slices_whose_process_died_before_it_removed_them_are_no_others(tmp_path: Path) -> None:
    with make_writer(tmp_path / "a.zarr") as writer:
        elsewhere = pickle.loads(pickle.dumps(writer))
        elsewhere.write(0, VOXELS[:3])
        (waiting,) = tmp_path.glob(".a.zarr.staging/pieces-*/slabs/*")
        content = waiting.read_bytes()
        elsewhere.write(3, VOXELS[3:8])
        assert not waiting.exists()
        waiting.write_bytes(content)
        writer.write(8, VOXELS[8:])
    assert_written(tmp_path / "a.zarr")


@pytest.mark.parametrize("is_damaged", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_killed_process_leaves_what_it_had_written(is_damaged: bool, tmp_path: Path) -> None:
    """Slabs of a forked process are in the staging folder when they are written."""
    path = tmp_path / "out" / "a.zarr"
    path.parent.mkdir()
    np.save(tmp_path / "voxels.npy", VOXELS)
    code = f"""
import os, signal
import numpy as np
from ctlab_dask_zarr import zarr_writer
voxels = np.load({str(tmp_path / "voxels.npy")!r})
with zarr_writer({str(path)!r}, shape=voxels.shape, dtype="uint16", **{UM | LAYOUT!r}) as writer:
    child = os.fork()
    if not child:
        writer.write(0, voxels[:28])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    writer.write(28, voxels[28:30])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment(), timeout=TIMEOUT_S)
    assert done.returncode == -signal.SIGKILL
    (pieces,) = path.parent.glob(".a.zarr.staging/pieces-*")
    (waiting,) = [found for found in pieces.glob("slabs/*") if ".done." not in found.name]
    if is_damaged:
        # As a power failure may leave what was not synced: a band, and slices that wait.
        for damaged in (next(pieces.glob("bands-*/*")), waiting):
            damaged.write_bytes(damaged.read_bytes()[:-1])
    with make_writer(path, resume=True) as writer:
        assert writer.missing() == [range(16 if is_damaged else 28, 42)]
        writer.write(30, VOXELS[30:])
        for run in writer.missing():
            writer.write(run.start, VOXELS[run.start : run.stop])
    assert_written(path)


def test_a_full_disk_is_an_error_and_the_write_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = LocalFiles.open_new

    def full(self: LocalFiles, path: str, *arguments: Any) -> Any:
        if "bands-" in path:
            raise OSError(28, "No space left on device", path)
        return opened(self, path, *arguments)

    writer = make_writer(tmp_path / "a.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "open_new", full)
        with pytest.raises(WriteFailedError, match="No space"):
            write_slabs(writer, *((z, z + 1) for z in range(42)))
    write_missing(make_writer(tmp_path / "a.zarr", resume=True))
    assert_written(tmp_path / "a.zarr")


@pytest.mark.slow
def test_slices_in_any_order_take_the_memory_of_a_row_of_shards(tmp_path: Path) -> None:
    voxels = np.zeros((512, 192, 192), "uint16")
    voxels[:] = np.arange(512, dtype="uint16")[:, None, None]
    layout: dict[str, Any] = {"chunks": (16, 32, 32), "shards": (64, 96, 96), "levels": 1}
    row_nbytes = voxels[:64].nbytes
    tracemalloc.start()
    try:
        with make_writer(tmp_path / "a.zarr", voxels, **layout) as writer:
            for z in (*range(0, 512, 16), *range(8, 512, 16)):
                writer.write(z, voxels[z : z + 8])
            peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The encoders have strips of their own.
    assert peak < 2 * row_nbytes == voxels.nbytes / 4
    assert_written(tmp_path / "a.zarr", voxels)


def test_labels_of_classes_keep_what_they_are(tmp_path: Path) -> None:
    classes = random_voxels((20, 33, 40), "uint8") % 5
    with zarr_writer(
        *(tmp_path / "a",), shape=classes.shape, datatype="segmented", voxel_size=(3, 2, 1),
        voxel_unit="mm", levels=2, origin=(1, 2, 3), dataset_id="20200101_000000_segmented",
    ) as writer:  # fmt: skip
        writer.write(0, np.ma.masked_equal(classes, 4))
    found = dataset_from_zarr(tmp_path / "a.zarr")
    assert isinstance(found, Dataset)
    assert (found.is_discrete, str(found.datatype), found.origin) == (True, "segmented", (1, 2, 3))
    assert found.voxel_size == (3.0, 2.0, 1.0)
    mask = found.mask_value
    np.testing.assert_array_equal(found.data, np.where(classes == 4, mask, classes))
