"""A sealed store of another program is guarded as our own are, and nothing else changes."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from distributed import Client

from ctlab_dask_zarr import (
    InvalidArgumentError,
    Stop,
    VerificationError,
    WriteFailedError,
    WriteStoppedError,
    dataset_from_zarr,
    dataset_to_zarr,
    push,
    seal,
    verify,
)
from ctlab_dask_zarr.store.files import LocalFiles
from ctlab_dask_zarr.store.opened import LocalObject
from tests.builders import make_dataset, random_voxels, run_here

VOXELS = random_voxels((24, 32, 40))
AXES = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]


@pytest.fixture(autouse=True)
def _serial() -> Any:
    with dask.config.set(scheduler="sync"):
        yield


def write_with_zarr(path: Path, *, sharded: bool = True, empty: bool = False) -> None:
    """Two levels, as zarr-python writes them: the chunks of a shard in Morton order."""
    voxels = VOXELS.copy()
    if empty:
        voxels[:, 16:] = 0
    datasets = [
        {
            "path": f"s{n}",
            "coordinateTransformations": [{"type": "scale", "scale": [2.0**n] * 3}],
        }
        for n in (0, 1)
    ]
    ome = {"version": "0.5", "multiscales": [{"axes": AXES, "datasets": datasets}]}
    group = zarr.open_group(path, mode="w", zarr_format=3, attributes={"ome": ome, "mine": [1]})
    shards = (16, 16, 16) if sharded else None
    for n, level in enumerate((voxels, voxels[::2, ::2, ::2])):
        array = group.create_array(
            f"s{n}", shape=level.shape, dtype="u2", chunks=(8, 8, 8), shards=shards,
            dimension_names=("z", "y", "x"),
        )  # fmt: skip
        array[...] = level


def write_with_ngff_zarr(path: Path) -> None:
    nz = pytest.importorskip("ngff_zarr")
    lengths = dict.fromkeys("zyx", 2.0)
    image = nz.to_ngff_image(
        VOXELS, dims=["z", "y", "x"], scale=lengths, translation=dict.fromkeys("zyx", 0.0),
        axes_units=dict.fromkeys("zyx", "micrometer"),
    )  # fmt: skip
    scales = nz.to_multiscales(image, scale_factors=[2], chunks=8)
    nz.to_ngff_zarr(str(path), scales, version="0.5", chunks_per_shard=2)


def write_with_ome_zarr(path: Path) -> None:
    writer = pytest.importorskip("ome_zarr.writer")
    version = pytest.importorskip("ome_zarr.format").FormatV05()
    group = zarr.open_group(path, mode="w", zarr_format=3)
    how = {"axes": "zyx", "fmt": version, "storage_options": {"chunks": (16, 16, 16)}}
    how |= {"scale_factors": [2], "scaler": None}
    writer.write_image(VOXELS, group, **how)
    writer.write_labels((VOXELS // 50).astype("u1"), group, name="phases", **how)


def write_with_tensorstore(path: Path) -> None:
    ts = pytest.importorskip("tensorstore")
    write_with_zarr(path)
    shutil.rmtree(path / "s0")
    sharding = {
        "chunk_shape": [8, 8, 8],
        "codecs": [{"name": "bytes", "configuration": {"endian": "big"}}, {"name": "gzip"}],
        "index_location": "start",
    }
    grid = {"name": "regular", "configuration": {"chunk_shape": [16, 16, 16]}}
    metadata = {
        "shape": VOXELS.shape,
        "data_type": "uint16",
        "chunk_grid": grid,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": ["z", "y", "x"],
    }
    kvstore = {"driver": "file", "path": str(path / "s0")}
    spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, "create": True}
    ts.open(spec).result()[...] = VOXELS


WRITERS = {
    "zarr": write_with_zarr,
    "zarr, no shards": lambda path: write_with_zarr(path, sharded=False),
    "zarr, chunks left out": lambda path: write_with_zarr(path, empty=True),
    "ngff-zarr": write_with_ngff_zarr,
    "ome-zarr, labels": write_with_ome_zarr,
    "tensorstore, index first": write_with_tensorstore,
}


def files_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def ours(problems: Any) -> list[str]:
    """What is wrong, without the rules that other writers break."""
    return [problem.message for problem in problems if problem.kind != "ome"]


def all_of(path: Path) -> list[np.ndarray]:
    levels = range(len(dataset_from_zarr(path).levels))
    return [dataset_from_zarr(path, level=level).data.compute() for level in levels]


@pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_sealed_store_is_verified_to_the_last_bit_and_is_otherwise_as_it_was(
    writer: str, tmp_path: Path
) -> None:
    path = tmp_path / "scan.zarr"
    WRITERS[writer](path)
    before, voxels, facts = files_of(path), all_of(path), dataset_from_zarr(path)
    result = seal(path)
    after = files_of(path)
    new = {key for key in after if key.endswith("receipts.json")}
    assert after.keys() - before.keys() == new == {f"{a}/receipts.json" for a in result.arrays}
    changed = {key for key, data in before.items() if after[key] != data}
    roots = {"zarr.json", *(k for k in before if k.startswith("labels/") and k.count("/") == 2)}
    assert changed == {key for key in roots if key.endswith("/zarr.json") or key == "zarr.json"}
    for key in changed:
        old, now = json.loads(before[key]), json.loads(after[key])
        assert list(now["attributes"].pop("ctlab_dask_zarr")) == [
            *("version", "levels", "document_crc32c")
        ]
        for copy in (now.get("consolidated_metadata") or {}).get("metadata", {}).values():
            copy["attributes"].pop("ctlab_dask_zarr", None)
        assert now == old
    documents = sum(key.endswith("zarr.json") for key in before)
    assert result.n_objects == len(before) - documents
    assert (result.n_absent > 0) == (writer == "zarr, chunks left out")
    problems = verify(path)
    assert ours(problems) == []
    assert problems.scope.startswith("every byte verified")
    for found, wanted in zip(all_of(path), voxels, strict=True):
        np.testing.assert_array_equal(found, wanted)
    opened = dataset_from_zarr(path)
    assert (opened.voxel_size, opened.voxel_unit) == (facts.voxel_size, facts.voxel_unit)
    assert (
        zarr.open_group(path, mode="r").attrs["ome"]
        == json.loads(before["zarr.json"])["attributes"]["ome"]
    )
    # Again, nothing is read or changed.
    assert seal(path).arrays == ()
    assert files_of(path) == after
    assert push(path, tmp_path / "copy.zarr").n_objects == len(after)
    assert ours(verify(tmp_path / "copy.zarr")) == []


@pytest.mark.parametrize("writer", ["zarr, chunks left out", "ome-zarr, labels"])
def test_of_what_was_sealed_every_flipped_bit_is_found(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"
    WRITERS[writer](path)
    seal(path)
    rng = np.random.default_rng(0)
    arrays = [key for key in sorted(files_of(path)) if not key.endswith("zarr.json")]
    for key in [*arrays[::9], "zarr.json"]:
        whole = (path / key).read_bytes()
        damaged = bytearray(whole)
        bit = int(rng.integers(0, len(damaged) * 8))
        damaged[bit // 8] ^= 1 << bit % 8
        (path / key).write_bytes(damaged)
        assert key in {problem.location for problem in verify(path)}, f"bit {bit} of {key}"
        (path / key).write_bytes(whole)


def test_a_chunk_that_was_absent_stays_absent(tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"
    write_with_zarr(path, empty=True)
    source = make_dataset(all_of(path)[0], 8, voxel_size=(1.0, 1.0, 1.0), datatype=None)
    seal(path)
    assert ours(verify(path, source)) == []
    other = source.data.compute()
    other[0, 20, 0] = 7
    texts = ours(verify(path, make_dataset(other, 8, voxel_size=(1.0, 1.0, 1.0), datatype=None)))
    assert [text for text in texts if "(0, 20, 0)" in text]
    # One that comes back is no voxel that was sealed; one that is lost was one.
    (path / "s0/c/0/1").mkdir(exist_ok=True)
    shutil.copy(path / "s0/c/0/0/0", path / "s0/c/0/1/0")
    os.remove(path / "s0/c/1/0/0")
    found = {(problem.location, problem.kind) for problem in verify(path)}
    assert {("s0/c/0/1/0", "stray"), ("s0/c/1/0/0", "missing")} <= found


def test_each_object_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scan.zarr"
    # No codec, so that objects are larger than the part that is read with an end.
    group = zarr.open_group(path, mode="w", zarr_format=3)
    write_with_zarr(path)
    shutil.rmtree(path / "s0")
    group = zarr.open_group(path, mode="r+")
    array = group.create_array(
        "s0", shape=(48, 64, 64), dtype="u2", chunks=(8, 8, 8), shards=(48, 64, 64),
        compressors=None, dimension_names=("z", "y", "x"),
    )  # fmt: skip
    array[...] = random_voxels((48, 64, 64))
    n_read: Counter[str] = Counter()
    read = LocalObject.read

    def counted(self: Any, start: int, nbytes: int, memory: Any) -> Any:
        n_read[Path(self.path).name] += nbytes
        return read(self, start, nbytes, memory)

    monkeypatch.setattr(LocalObject, "read", counted)
    seal(path)
    shard = path / "s0/c/0/0/0"
    index = (48 * 64 * 64 // 8**3) * 16 + 4
    assert shard.stat().st_size > 300_000
    assert n_read["0"] <= sum(p.stat().st_size for p in path.glob("s*/c/*/*/0")) + 10 * index


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    # A bit amid compressed bytes may decode to other voxels; their beginning does not.
    data[0] ^= 0xFF
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize("damage", [flip, cut])
def test_what_cannot_be_decoded_is_named_and_nothing_is_sealed(
    sharded: bool, damage: Any, tmp_path: Path
) -> None:
    path = tmp_path / "scan.zarr"
    write_with_zarr(path, sharded=sharded)
    damage(path / "s0/c/1/0/1")
    damage(path / "s1/c/0/0/0")
    before = files_of(path)
    with pytest.raises(VerificationError, match=r"s0/c/1/0/1 .*s1/c/0/0/0 ") as caught:
        seal(path)
    assert caught.value.exit_code == 3
    assert files_of(path) == before


def test_a_document_that_is_broken_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scan.zarr"
    write_with_zarr(path)
    (path / "s1/zarr.json").write_text("{")
    with pytest.raises(Exception, match=r"zarr\.json"):
        seal(path)
    shutil.rmtree(path)
    write_with_ome_zarr(path)
    (path / "labels/phases/s0/zarr.json").write_text("{")
    with pytest.raises(VerificationError, match=r"labels/phases/s0/zarr.json cannot be read"):
        seal(path)


def test_a_level_is_not_sealed_by_itself(tmp_path: Path) -> None:
    write_with_zarr(tmp_path / "scan.zarr")
    with pytest.raises(InvalidArgumentError, match="is a level of the image"):
        seal(tmp_path / "scan.zarr/s1")


def test_checksums_that_another_program_dropped_from_the_document_still_count(
    tmp_path: Path,
) -> None:
    path = tmp_path / "scan.zarr"
    dataset_to_zarr(make_dataset(VOXELS, 8), path, chunks=8, shards=(8, 16, 16))
    root = json.loads((path / "zarr.json").read_text())
    del root["attributes"]["ctlab_dask_zarr"]
    (path / "zarr.json").write_text(json.dumps(root))
    assert [problem.kind for problem in verify(path)] == ["receipts"]
    first, second = sorted((path / "0").glob("c.*"))[:2]
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(VerificationError, match=r"0/c.0.0.0 .*CRC-32C|0/c.0.0.0 has"):
        seal(path)
    first.write_bytes(whole)
    os.rename(second, tmp_path / "kept")
    with pytest.raises(VerificationError, match=r"0/c.0.0.1 is missing"):
        seal(path)
    os.rename(tmp_path / "kept", second)
    assert seal(path).arrays == ("0",)
    assert verify(path) == []


@pytest.mark.parametrize(
    "writer", ["zarr", pytest.param("ome-zarr, labels", marks=pytest.mark.slow)]
)
def test_killed_at_any_step_the_store_reads_as_before_and_is_sealed_by_the_next_call(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole.zarr"
    WRITERS[writer](whole)
    voxels, path = all_of(whole), tmp_path / "scan.zarr"
    rename, left = LocalFiles.rename, [0]

    def dying(self: Any, *places: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        rename(self, *places)

    n_steps = 0
    while True:
        shutil.copytree(whole, path)
        left[0] = n_steps
        with monkeypatch.context() as patched:
            patched.setattr(LocalFiles, "rename", dying)
            try:
                seal(path)
            except KeyboardInterrupt:
                is_done = False
            else:
                is_done = True
        for found, wanted in zip(all_of(path), voxels, strict=True):
            np.testing.assert_array_equal(found, wanted)
        seal(path)
        assert [text for text in ours(verify(path)) if ".zarr.json." not in text] == []
        shutil.rmtree(path)
        if is_done:
            break
        n_steps += 1
    assert n_steps > 3


def test_a_store_that_changes_meanwhile_is_not_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "scan.zarr"
    write_with_zarr(path)
    rename = LocalFiles.rename

    def changing(self: Any, *places: str) -> None:
        zarr.open_group(path, mode="r+").attrs["mine"] = 2
        rename(self, *places)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFiles, "rename", changing)
        with pytest.raises(WriteFailedError, match="changed by something else"):
            seal(path)
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    assert attributes["mine"] == 2
    assert "ctlab_dask_zarr" not in attributes


def test_workers_do_it_and_a_stop_leaves_the_store_as_it_was(
    tmp_path: Path, cluster: Client
) -> None:
    path = tmp_path / "scan.zarr"
    write_with_zarr(path)
    before = files_of(path)
    stop = Stop()
    stop.ask("SIGTERM")
    with pytest.raises(WriteStoppedError, match="nothing was changed; give the same command"):
        seal(path, client=cluster, stop=stop)
    assert files_of(path) == before
    told: list[Any] = []
    assert seal(path, client=cluster, progress=told.append).n_objects == 12 + 2
    assert told
    assert verify(path) == []


def test_the_command_tells_what_it_did(tmp_path: Path, cluster: Client) -> None:
    path, where = tmp_path / "scan.zarr", ("-q", "--scheduler", cluster.scheduler.address)
    write_with_zarr(path, empty=True)
    whole = (path / "s0/c/0/0/0").read_bytes()
    cut(path / "s0/c/0/0/0")
    done = run_here("seal", path, *where)
    assert done.returncode == 3
    assert "s0/c/0/0/0" in done.stderr
    (path / "s0/c/0/0/0").write_bytes(whole)
    done = run_here("seal", path, *where, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["arrays"], told["n_absent"] > 0) == (["s0", "s1"], True)
    assert "sealed already" in run_here("seal", path, *where).stdout
