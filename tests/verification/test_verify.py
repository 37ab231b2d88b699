"""Verification reports whatever changes what a reader gets, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from distributed import Client

from ctlab_dask_zarr import (
    CTLabError,
    DatasetNotFoundError,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    verify,
)
from ctlab_dask_zarr.demo import write_mango_netcdf
from tests.builders import make_dataset, random_voxels, run_here

VOXELS = random_voxels((20, 24, 28))
LAYOUT = {"chunks": (4, 8, 8), "shards": (8, 16, 16)}


@pytest.fixture(autouse=True)
def _serial() -> Any:
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture
def store(tmp_path: Path) -> Path:
    dataset_to_zarr(make_dataset(VOXELS, 8), tmp_path / "a", **LAYOUT)
    return tmp_path / "a.zarr"


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A store with all that there can be: two levels, and labels with two levels."""
    path = tmp_path / "l.zarr"
    layout = {"chunks": (4, 8, 8), "shards": (16, 16, 32)}
    dataset_to_zarr(make_dataset(VOXELS, 8), path, levels=2, **layout)
    labels_to_zarr((VOXELS // 30).astype("u1"), path, "ph", **layout)
    return path


def found(path: Path, source: Any = None, **options: Any) -> set[tuple[str, str]]:
    return {(problem.location, problem.kind) for problem in verify(path, source, **options)}


@pytest.mark.parametrize(
    "options",
    [
        LAYOUT,
        {**LAYOUT, "ome_zarr_version": None},
        {"chunks": (8, 8, 8), "shards": None},
        {**LAYOUT, "create_array_kwargs": {"compressors": None}},
        {**LAYOUT, "scale_placement": "multiscales"},
        {**LAYOUT, "create_array_kwargs": {"compressors": zarr.codecs.GzipCodec(level=1)}},
    ],
)
def test_what_was_written_has_no_problems(options: Any, tmp_path: Path) -> None:
    dataset = make_dataset(VOXELS, (5, 24, 28), history={"20250101_000000_tomo": {"a": 1.5}})
    dataset_to_zarr(dataset, tmp_path / "a", **options)
    assert verify(tmp_path / "a.zarr", dataset) == []
    assert verify(tmp_path / "a.zarr", dataset, checksums=False) == []


def _what_a_reader_gets(path: Path) -> Any:
    """Everything that can be had of a store, or None where something cannot be read."""
    try:
        labels = zarr.open_group(path / "labels", mode="r", zarr_format=3).attrs["ome"]["labels"]
        images = [path, *(path / "labels" / name for name in labels)]
        return labels, [_what_an_image_gives(image) for image in images]
    except (CTLabError, OSError, ValueError, KeyError, TypeError):
        return None


def _what_an_image_gives(path: Path) -> Any:
    dataset = dataset_from_zarr(path)
    facts = (
        *(dataset.voxel_size, str(dataset.voxel_unit), dataset.dataset_id),
        *(json.dumps(dataset.history), json.dumps(dataset.extra_attrs, sort_keys=True)),
        *(str(dataset.datatype), dataset.dimension_names, str(dataset.dtype), dataset.levels),
    )
    levels = range(len(dataset.levels))
    return facts, [dataset_from_zarr(path, level=n).data.compute().tobytes() for n in levels]


@pytest.mark.parametrize(
    "quarter", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))]
)
def test_of_a_thousand_flipped_bits_every_one_that_a_reader_would_get_is_reported(
    quarter: int, labelled: Path
) -> None:
    rng = np.random.default_rng(quarter)
    files = sorted(path for path in labelled.rglob("*") if path.is_file())
    # Shards, receipts and documents, of the image and its labels, on all levels.
    assert {str(p.parent.relative_to(labelled)) for p in files} == {
        *(".", "0", "1", "labels", "labels/ph", "labels/ph/0", "labels/ph/1")
    }
    original = _what_a_reader_gets(labelled)
    assert original is not None
    n_reported = 0
    for n in range(250 * quarter, 250 * (quarter + 1)):
        path = files[n % len(files)]
        key = str(path.relative_to(labelled))
        whole = path.read_bytes()
        damaged = bytearray(whole)
        bit = int(rng.integers(0, len(damaged) * 8))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        problems = verify(labelled)
        n_reported += bool(problems)
        if not problems:
            assert _what_a_reader_gets(labelled) == original, f"bit {bit} of {key}"
        if path.name != "zarr.json":
            assert key in {problem.location for problem in problems}
        path.write_bytes(whole)
    assert n_reported > 200
    assert verify(labelled) == []


def test_a_truncated_a_missing_and_swapped_shards_and_a_stranger_are_reported_by_name(
    store: Path,
) -> None:
    shards, left = store / "0", f".c.0.0.1.{'0' * 32}.partial"
    truncated = shards / "c.0.0.0"
    truncated.write_bytes(truncated.read_bytes()[:-7])
    (shards / "c.1.0.0").unlink()
    (shards / "c.0.1.0").rename(shards / "x")
    (shards / "c.2.1.0").rename(shards / "c.0.1.0")
    (shards / "x").rename(shards / "c.2.1.0")
    (store / "thesis.txt").write_text("three years")
    (shards / "c.9.9.9").write_bytes(b"")
    (shards / left).write_bytes(b"")
    everything = found(store)
    for checksums in (True, False):
        kinds = dict(found(store, checksums=checksums))
        assert kinds["0/c.1.0.0"] == "missing"
        assert kinds["thesis.txt"] == "stray"
        assert kinds["0/c.9.9.9"] == "stray"
        assert kinds[f"0/{left}"] == "leftover"
    assert {("0/c.0.0.0", "size"), ("0/c.0.0.0", "index")} <= everything
    for swapped in ("0/c.0.1.0", "0/c.2.1.0"):
        assert {kind for place, kind in everything if place == swapped} & {"size", "checksum"}


def test_every_difference_from_the_source_is_named(store: Path) -> None:
    voxels = VOXELS.copy()
    voxels[3, 4, 5] += 1
    voxels[17, 20, 1] += 1
    source = make_dataset(voxels, 8, voxel_size=(3.0, 2.0, 1.0), history={"a": {"b": 1}})
    problems = verify(store, source)
    texts = [str(problem) for problem in problems]
    assert sum("voxels" in text for text in texts) == 2
    assert any("(3, 4, 5)" in text for text in texts)
    assert any(text.startswith("voxel_size") for text in texts)
    assert any(text.startswith("history") for text in texts)
    assert len(problems) == 4


def test_the_same_bits_of_nan_are_equal(tmp_path: Path) -> None:
    voxels = VOXELS.astype("f4")
    voxels[0, 0, :3] = (np.nan, -0.0, np.inf)
    dataset = make_dataset(voxels, 8, datatype="tomo_float")
    dataset_to_zarr(dataset, tmp_path / "a", **LAYOUT)
    assert verify(tmp_path / "a.zarr", dataset) == []
    voxels[0, 0, 1] = 0.0
    assert found(tmp_path / "a.zarr", make_dataset(voxels, 8, datatype="tomo_float"))


def test_damaged_metadata_is_reported_and_never_raised(store: Path) -> None:
    def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    root = store / "zarr.json"
    whole = root.read_bytes()
    for change in (
        lambda d: d["attributes"]["mango"].update(basename="labels"),
        lambda d: d["attributes"]["ome"]["multiscales"][0].pop("axes"),
        lambda d: d["attributes"]["ome"]["multiscales"][0]["axes"][0].update(name="q"),
        lambda d: d["attributes"].pop("ome"),
        lambda d: d["attributes"]["mango"].update(voxel_size_xyz=[1, 1, 1]),
        lambda d: d["attributes"]["ctlab_dask_zarr"].update(n_objects=3),
        lambda d: d["attributes"]["ctlab_dask_zarr"].pop("levels"),
    ):
        edit(root, change)
        assert verify(store)
        root.write_bytes(whole)
    edit(store / "0" / "zarr.json", lambda d: d.update(fill_value=1))
    assert ("0/zarr.json", "checksum") in found(store)


DOCUMENTS = [
    "zarr.json", "0/zarr.json", "1/zarr.json", "labels/zarr.json", "labels/ph/zarr.json",
    "labels/ph/0/zarr.json", "labels/ph/1/zarr.json",
]  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda document: "{",
        lambda document: "[]",
        lambda document: "[" * 200_000,
        lambda document: json.dumps({**document, "zarr_format": 4}),
        # What one flipped bit makes of it; zarr does not open it.
        lambda document: json.dumps({**document, "node_type": document["node_type"][:-1] + "q"}),
        lambda document: json.dumps({**document, "attributes": "none", "shape": -1}),
        lambda document: json.dumps(document).encode("utf-16"),
    ],
    ids=[
        "not JSON",
        "no object",
        "too deep",
        "another version",
        "no node",
        "contradiction",
        "UTF-16",
    ],
)
def test_a_broken_document_is_named_and_hides_nothing(
    damage: Callable[[dict[str, Any]], str | bytes], name: str, labelled: Path
) -> None:
    document = labelled / name
    damaged = damage(json.loads(document.read_text()))
    document.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    missing = [
        key
        for key in ("0/c.0.0.0", "1/c.0.0.0", "labels/ph/0/c.0.0.0", "labels/ph/1/c.0.0.0")
        if not name.startswith(f"{os.path.dirname(key)}/")
    ]
    for key in missing:
        (labelled / key).unlink()
    (labelled / "labels" / "ph" / "1" / "thesis.txt").write_text("three years")
    problems = verify(labelled)
    named = [problem for problem in problems if problem.location == name]
    assert named
    assert str(named[0]).startswith(f"{name} cannot be read")
    kinds = {(problem.location, problem.kind) for problem in problems}
    assert {(key, "missing") for key in missing} <= kinds
    # Shards of an array whose document is broken are nobody's; nobody is told to remove them.
    strays = [location for location, kind in kinds if kind == "stray"]
    assert strays == ([] if name == "labels/ph/1/zarr.json" else ["labels/ph/1/thesis.txt"])


def test_everything_is_told_of_a_store_in_which_much_is_wrong(labelled: Path) -> None:
    (labelled / "0" / "zarr.json").write_text("{")
    (labelled / "1" / "c.0.0.0").unlink()
    (labelled / "labels" / "ph" / "0" / "c.0.0.0").unlink()
    (labelled / "thesis.txt").write_text("three years")
    (labelled / "labels" / "ph" / "1" / "receipts.json").unlink()
    source = make_dataset(VOXELS, 8)
    assert found(labelled, source) == {
        ("0/zarr.json", "unreadable"),
        # Its level 0 is not there for other readers either.
        ("zarr.json", "ome"),
        (str(labelled), "unreadable"),
        ("1/c.0.0.0", "missing"),
        ("labels/ph/0/c.0.0.0", "missing"),
        ("labels/ph/1/receipts.json", "missing"),
        ("thesis.txt", "stray"),
    }


def test_a_document_that_is_gone_hides_nothing(labelled: Path) -> None:
    for name in ("0", "labels/ph"):
        (labelled / name / "zarr.json").unlink()
    (labelled / "labels" / "ph" / "1" / "c.0.0.0").unlink()
    kinds = found(labelled)
    assert {
        ("0/zarr.json", "missing"),
        ("labels/ph", "missing"),
        ("labels/ph/1/c.0.0.0", "missing"),
    } <= kinds
    assert "stray" not in {kind for _, kind in kinds}


def test_a_broken_level_does_not_keep_the_voxels_from_being_compared(labelled: Path) -> None:
    (labelled / "1" / "zarr.json").write_text("{")
    voxels = VOXELS.copy()
    voxels[3, 4, 5] += 1
    kinds = {kind for _, kind in found(labelled, make_dataset(voxels, 8))}
    assert kinds == {"unreadable", "ome", "voxels"}


def test_reading_and_verifying_write_nothing(
    labelled: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    source = tmp_path / "tomoSmall_nc"
    write_mango_netcdf(source, VOXELS, slices_per_block=5)
    for damage in (False, True):
        if damage:
            (labelled / "0" / "c.0.0.0").write_bytes(b"")
            (labelled / "labels" / "zarr.json").write_text("{")
        before = snapshot(tmp_path)
        assert bool(verify(labelled)) == damage
        verify(labelled, source, checksums=False)
        _what_a_reader_gets(labelled)
        _open(source).data.compute()
        assert snapshot(tmp_path) == before


def test_where_nothing_is_there_is_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"nowhere\.zarr does not exist"):
        verify(tmp_path / "nowhere.zarr")
    (tmp_path / "empty.zarr").mkdir()
    assert {kind for _, kind in found(tmp_path / "empty.zarr")} == {"unreadable"}


def test_a_block_of_the_source_with_a_wrong_md5_is_named(tmp_path: Path) -> None:
    source = tmp_path / "tomoSmall_nc"
    write_mango_netcdf(source, VOXELS, slices_per_block=5)
    dataset_to_zarr(_open(source), tmp_path / "a", **LAYOUT)
    import h5py

    with h5py.File(source / "block00000002.nc", "r+") as file:
        file["md5_checksum"][0] = (int(file["md5_checksum"][0]) + 1) % 100
    (problem,) = verify(tmp_path / "a.zarr", source)
    assert (problem.location, problem.kind) == ("block00000002.nc", "md5")
    assert str(problem).startswith("source: block00000002.nc")


def _open(path: Path) -> Any:
    from ctlab_dask_zarr import Dataset

    return Dataset.from_path(path)


def test_the_command_line_tells_every_problem_and_ends_with_3(
    tmp_path: Path, cluster: Client
) -> None:
    source = tmp_path / "tomoSmall_nc"
    write_mango_netcdf(source, VOXELS, slices_per_block=5)
    where = ("--scheduler", cluster.scheduler.address, "-q")
    layout = ("--shards", "8,16,16", "--chunks", "4,8,8", *where)
    done = run_here("convert", source, tmp_path / "a", *layout, "--verify", "--check-source")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("verified")
    store = tmp_path / "a.zarr"
    done = run_here("verify", store, "--source", source, *where)
    assert done.returncode == 0, done.stderr
    (store / "0" / "c.0.0.0").unlink()
    (store / "0" / "c.1.1.1").write_bytes(b"")
    done = run_here("verify", store, *where, "--json")
    assert done.returncode == 3
    assert {p["location"] for p in json.loads(done.stdout)} == {"0/c.0.0.0", "0/c.1.1.1"}
    block = source / "block00000001.nc"
    damaged = bytearray(block.read_bytes())
    import h5py

    with h5py.File(block, "r+") as file:
        file["md5_checksum"][0] = (int(file["md5_checksum"][0]) + 1) % 100
    assert damaged != block.read_bytes()
    done = run_here("convert", source, tmp_path / "b", *layout, "--check-source")
    assert done.returncode == 5
    assert "block00000001.nc" in done.stderr
    assert not (tmp_path / "b.zarr").exists()
    assert not (tmp_path / ".b.zarr.staging").exists()


def test_stores_of_others_are_verified_by_their_own_rules(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "b.zarr", mode="w")
    array = group.create_array("0", shape=VOXELS.shape, dtype="u2", chunks=(8, 8, 8),
                               dimension_names=("z", "y", "x"))  # fmt: skip
    array[...] = VOXELS
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    transform = {"type": "scale", "scale": [3.0, 2.0, 1.5]}
    datasets = [{"path": "0", "coordinateTransformations": [transform]}]
    multiscales = [{"name": "b", "axes": axes, "datasets": datasets}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": multiscales}
    assert verify(tmp_path / "b.zarr") == []
    shutil.rmtree(tmp_path / "b.zarr" / "0" / "c" / "0")
    # An absent chunk is fill value by Zarr's rules, but of a volume it is a hole.
    assert {kind for _, kind in found(tmp_path / "b.zarr")} == {"missing"}
