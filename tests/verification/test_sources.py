"""What a source says of itself: its damage is found, and only what was checked is said to be."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import zarr
from click.testing import CliRunner, Result
from distributed import Client

from ctlab_dask_zarr import (
    add_levels,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    verify,
)
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.errors import InvalidArgumentError, ShardDecodeError
from tests.builders import make_dataset, with_voxels

VOXELS = np.random.default_rng(0).integers(0, 60000, (16, 16, 32)).astype("uint16")
SMALL: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}
LAYOUT = ("--chunks", "8,8,8", "--shards", "16,16,16", "-q")


@pytest.fixture(autouse=True)
def one_task_at_a_time() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a store of ours; it is not compressed, so that any flipped bit can be read."""
    path = tmp_path / "source.zarr"
    dataset_to_zarr(make_dataset(VOXELS), path, **SMALL, create_array_kwargs={"compressors": None})
    return path


@pytest.fixture
def run(cluster: Client) -> Any:
    """Return a function that runs a command on the cluster of the tests."""

    def invoke(command: str, *arguments: object) -> Result:
        address = cluster.scheduler_info()["address"]
        return CliRunner().invoke(main, [command, *map(str, arguments), "--scheduler", address])

    return invoke


def damage(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


def others_image(path: Path, voxels: np.ndarray = VOXELS, **options: Any) -> Path:
    scale = {"type": "scale", "scale": [3.0, 2.0, 1.5]}
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    datasets = [{"path": "0", "coordinateTransformations": [scale]}]
    multiscales = [{"name": "image", "axes": axes, "datasets": datasets}]
    group = zarr.create_group(
        path, attributes={"ome": {"version": "0.5", "multiscales": multiscales}}
    )
    chunks = {"chunks": (8, 8, 8), "compressors": None, "dimension_names": ["z", "y", "x"]}
    group.create_array("0", data=voxels, **(chunks | options))
    return path


def test_a_damaged_store_is_no_source_that_a_copy_is_equal_to(source: Path, tmp_path: Path) -> None:
    damage(source / "0" / "c.0.0.1")
    dataset_to_zarr(dataset_from_zarr(source), tmp_path / "copy", **SMALL)
    (problem,) = verify(tmp_path / "copy.zarr", source)
    assert (problem.location, problem.kind) == ("0/c.0.0.1", "checksum")
    assert str(problem).startswith("source: 0/c.0.0.1 is not the bytes that were committed")
    # What was computed of it by dask is read from there too.
    opened = dataset_from_zarr(source)
    same = with_voxels(opened, opened.data.map_blocks(np.copy, dtype="uint16"))
    assert [p.location for p in verify(tmp_path / "copy.zarr", same)] == ["0/c.0.0.1"]


def test_commands_find_the_damage_of_a_store_that_they_convert(
    run: Any, source: Path, tmp_path: Path
) -> None:
    damage(source / "0" / "c.0.0.1")
    done = run("convert", source, tmp_path / "a", *LAYOUT, "--check-source")
    assert done.exit_code == 5
    assert "the source is damaged, and nothing was written:\nsource: 0/c.0.0.1" in done.stderr
    assert not (tmp_path / "a.zarr").exists()
    done = run("convert", source, tmp_path / "a", *LAYOUT, "--verify")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "source: 0/c.0.0.1 is not the bytes that were committed" in done.stderr
    done = run("verify", tmp_path / "a.zarr", "--source", source, "-q")
    assert done.exit_code == 3
    assert done.stdout.startswith("source: 0/c.0.0.1 is not the bytes that were committed")


@pytest.mark.parametrize("compressors", [None, "auto"])
def test_no_levels_are_made_of_a_damaged_image(tmp_path: Path, compressors: Any) -> None:
    path = tmp_path / "a.zarr"
    options = {"create_array_kwargs": {"compressors": compressors}}
    dataset_to_zarr(make_dataset(VOXELS), path, **SMALL, **options)
    damage(path / "0" / "c.0.0.1")
    with pytest.raises(ShardDecodeError, match=r"c\.0\.0\.1 is not the bytes that were committed"):
        add_levels(path, levels=2)
    assert len(dataset_from_zarr(path).levels) == 1
    damage(path / "0" / "c.0.0.1")
    add_levels(path, levels=2, resume=True)
    assert verify(path) == []


def test_no_levels_are_made_by_receipts_that_are_damaged(source: Path) -> None:
    (source / "0" / "receipts.json").write_text("{}")
    with pytest.raises(ShardDecodeError, match=r"0/receipts\.json is damaged"):
        add_levels(source, levels=2)


def test_a_dataset_is_not_compared_with_itself(run: Any, source: Path, tmp_path: Path) -> None:
    add_levels(source, levels=2)
    link, linked = tmp_path / "link.zarr", tmp_path / "linked.zarr"
    link.symlink_to(source)
    for folder, _, names in os.walk(source):
        place = linked / Path(folder).relative_to(source)
        place.mkdir()
        for name in names:
            os.link(Path(folder) / name, place / name)
    # A backup that shares files with it, but for the documents.
    backup = tmp_path / "backup.zarr"
    shutil.copytree(source, backup, copy_function=os.link)
    for document in backup.rglob("zarr.json"):
        text = document.read_bytes()
        document.unlink()
        document.write_bytes(text)
    with pytest.raises(InvalidArgumentError, match="was to be compared with itself"):
        verify(source, dataset_from_zarr(backup))
    with pytest.raises(InvalidArgumentError, match="was to be compared with itself"):
        verify(source, dataset_from_zarr(source, level=1))
    for same in (source, link, linked, source / "0"):
        done = run("verify", source, "--source", same, "-q")
        assert done.exit_code == 2, (same, done.output)
        assert "was to be compared with itself" in done.stderr


def test_what_was_computed_from_a_dataset_is_compared_with_it(source: Path) -> None:
    scan = dataset_from_zarr(source)
    assert verify(source, with_voxels(scan, scan.data + 0)) == []
    changed = with_voxels(scan, scan.data.map_blocks(np.flip))
    assert {problem.kind for problem in verify(source, changed)} == {"voxels"}
    assigned = dataset_from_zarr(source)
    assigned.data[3] = 7
    assert {problem.kind for problem in verify(source, assigned)} == {"voxels"}
    with pytest.raises(InvalidArgumentError, match="was to be compared with itself"):
        verify(source, with_voxels(scan, scan.data[:]))


def test_every_byte_is_verified_only_where_checksums_cover_it(
    run: Any, source: Path, tmp_path: Path
) -> None:
    assert run("verify", source, "-q").stdout == f"{source}: every byte verified\n"
    others = others_image(tmp_path / "others.zarr")
    damage(others / "0" / "c" / "0" / "0" / "0")
    done = run("verify", others, "-q")
    assert done.exit_code == 0
    assert done.stdout.startswith(
        f"{others}: every chunk decoded (16 of 16 objects have no checksums"
    )
    # Levels of ours do not make its finest one ours.
    add_levels(others, levels=2)
    done = run("verify", others, "-q")
    assert "every chunk decoded (16 of 20 objects have no checksums" in done.stdout
    done = run("verify", others, "-q", "--quick")
    assert done.stdout == f"{others}: documents and index verified\n"


def test_the_list_of_labels_is_said_to_be_verified_only_where_it_is(run: Any, source: Path) -> None:
    labels_to_zarr((VOXELS > 9).astype("uint8"), source, "phases")
    assert run("verify", source, "-q").stdout == f"{source}: every byte verified\n"
    listing = source / "labels" / "zarr.json"
    document = json.loads(listing.read_text())
    document["attributes"]["comment"] = "of another program"
    listing.write_text(json.dumps(document))
    assert run("verify", source, "-q").stdout == (
        f"{source}: every byte verified except labels/zarr.json, which has no checksum\n"
    )


def test_receipts_that_nothing_refers_to_are_a_problem_and_are_used(source: Path) -> None:
    document = json.loads((source / "zarr.json").read_text())
    del document["attributes"]["ctlab_dask_zarr"]
    (source / "zarr.json").write_text(json.dumps(document))
    (problem,) = verify(source)
    assert (problem.location, problem.kind) == ("0/receipts.json", "receipts")
    damage(source / "0" / "c.0.0.1")
    assert {p.location for p in verify(source)} == {"0/receipts.json", "0/c.0.0.1"}


def test_a_big_endian_source_is_compared_like_any_other(tmp_path: Path) -> None:
    big = VOXELS.astype(">u2")
    dataset = make_dataset(da.from_array(big, chunks=16), datatype="tomo")
    dataset_to_zarr(dataset, tmp_path / "a", **SMALL)
    assert verify(tmp_path / "a.zarr", dataset) == []
    changed = big.copy()
    changed[1, 2, 3] += 1
    other = make_dataset(da.from_array(changed, chunks=16), datatype="tomo")
    (problem,) = verify(tmp_path / "a.zarr", other)
    assert "1 of 4096 differ from the source, the first at (1, 2, 3)" in str(problem)
    # A store may be big-endian too, on either side.
    stored = others_image(tmp_path / "b.zarr", serializer=zarr.codecs.BytesCodec(endian="big"))
    with pytest.warns(UserWarning, match="keeps no checksums of 16 of 16 objects"):
        assert verify(tmp_path / "a.zarr", stored) == []
    problems = verify(stored, tmp_path / "a.zarr")
    assert {problem.message.split()[0] for problem in problems} == {"datatype", "dataset_id"}


def test_objects_of_a_source_that_are_read_as_fill_values_are_told(
    run: Any, tmp_path: Path
) -> None:
    others = others_image(tmp_path / "others.zarr")
    (others / "0" / "c" / "1" / "1" / "1").unlink()
    done = run("convert", others, tmp_path / "copy", *LAYOUT, "--check-source", "--verify")
    assert done.exit_code == 0, done.stderr
    text = f"1 of 16 objects of the source {others} are not there: they are read as fill values"
    assert done.stderr.count(text) == 2
    with (
        pytest.warns(UserWarning, match="keeps no checksums of 16 of 16 objects"),
        pytest.warns(UserWarning, match=re.escape(text)),
    ):
        assert verify(tmp_path / "copy.zarr", others) == []


def test_a_source_without_checksums_is_not_said_to_be_checked(run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "tomoSmall_nc"
    write_mango_netcdf(folder, VOXELS, slices_per_block=4)
    with h5py.File(folder / "block00000001.nc", "r+") as file:
        del file["md5_checksum"]
    done = run("convert", folder, tmp_path / "copy", *LAYOUT, "--check-source")
    assert done.exit_code == 0, done.stderr
    assert f"the source {folder} keeps no checksums of 1 of 4 objects" in done.stderr
