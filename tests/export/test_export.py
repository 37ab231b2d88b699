"""An export is there whole or not at all, goes on where it stopped, and replaces only its like."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import pytest
from distributed import Client, LocalCluster

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    DestinationExistsError,
    IncompleteDatasetError,
    IncompleteSourceError,
    InvalidArgumentError,
    StagingExistsError,
    Stop,
    WriteFailedError,
    WriteStoppedError,
    abort,
    dataset_from_netcdf,
    dataset_from_zarr,
    dataset_to_netcdf,
    dataset_to_raw,
    dataset_to_zarr,
    status,
)
from ctlab_dask_zarr.execution.graphs import analyse_source
from ctlab_dask_zarr.export.graph import Blocks
from ctlab_dask_zarr.export.kind import File
from ctlab_dask_zarr.export.run import prepare_export, run_export
from ctlab_dask_zarr.planning.rechunk import Resources
from ctlab_dask_zarr.read.source import in_slabs
from tests.builders import make_dataset, random_voxels, write_without_commit

VOXELS = random_voxels((23, 15, 18))
#: Slabs, thick ones and thin ones; blocks that do not span the slices; and blocks that overlap.
BLOCKS: dict[str, Callable[[], da.Array]] = {
    "slabs": lambda: da.from_array(VOXELS, chunks=(8, 15, 18)),
    "thin": lambda: da.from_array(VOXELS, chunks=(1, 15, 18)),
    "cubes": lambda: da.from_array(VOXELS, chunks=(8, 8, 8)),
    "overlap": lambda: da.from_array(VOXELS, chunks=(8, 8, 18)).map_overlap(
        np.copy, depth=1, boundary="none"
    ),
}


@dataclass(frozen=True)
class Arrays:
    """A folder of files of NumPy, with so many slices each."""

    n_slices: int
    n_all: int = len(VOXELS)
    name = "arrays"
    is_folder = True

    def files(self) -> list[File]:
        step = self.n_slices
        return [
            File(f"a{z:03d}.npy", z, min(z + step, self.n_all)) for z in range(0, self.n_all, step)
        ]

    def settings(self) -> dict[str, Any]:
        return {"n_slices": self.n_slices}

    def is_own(self, name: str) -> bool:
        return name.endswith(".npy")

    def write(self, path: str, file: File, slabs: Iterator[npt.NDArray[Any]]) -> None:
        voxels = np.concatenate(list(slabs))
        assert len(voxels) == file.stop - file.start
        with open(path, "wb") as out:
            np.save(out, voxels)


def export(dataset: Dataset, path: Path, n_slices: int = 5, **options: Any) -> None:
    client = options.pop("client", None)
    prepared = prepare_export(dataset, path, Arrays(n_slices), Resources(2), **options)
    result = run_export(prepared, client)
    assert result.n_files == len(Arrays(n_slices).files())


def read(path: Path) -> np.ndarray:
    if path.suffix == ".raw":
        return np.fromfile(path, "<u2").reshape(VOXELS.shape)
    return np.concatenate([np.load(file) for file in sorted(path.iterdir())])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("n_slices", [1, 5, 100])
def test_files_hold_the_voxels_whatever_the_blocks_are(
    tmp_path: Path, blocks: str, n_slices: int
) -> None:
    export(make_dataset(BLOCKS[blocks]()), tmp_path / "out", n_slices)
    np.testing.assert_array_equal(read(tmp_path / "out"), VOXELS)
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("blocks", BLOCKS)
def test_raw_holds_the_voxels_whatever_the_blocks_are(tmp_path: Path, blocks: str) -> None:
    dataset_to_raw(make_dataset(BLOCKS[blocks]()), tmp_path / "a.raw")
    np.testing.assert_array_equal(read(tmp_path / "a.raw"), VOXELS)
    assert names(tmp_path) == ["a.raw"]


@pytest.mark.parametrize("dtype", ["uint8", ">i4", "float64"])
@pytest.mark.parametrize("shape", [(7, 9), (4, 7, 9)])
def test_raw_is_little_endian_in_the_order_of_c(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    voxels = random_voxels(shape, dtype)
    dataset_to_raw(make_dataset(voxels, (2, *shape[1:])), tmp_path / "a.raw")
    found = np.fromfile(tmp_path / "a.raw", np.dtype(dtype).newbyteorder("<"))
    np.testing.assert_array_equal(found.reshape(shape), voxels)


def test_an_opened_store_is_exported_from_slabs_of_its_chunks(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a.zarr", shards=(16, 8, 8), chunks=(4, 4, 4))
    opened = dataset_from_zarr(tmp_path / "a.zarr")
    export(opened, tmp_path / "out")
    dataset_to_raw(opened, tmp_path / "a.raw")
    for name in ("out", "a.raw"):
        np.testing.assert_array_equal(read(tmp_path / name), VOXELS)


@pytest.mark.parametrize(
    "index", [np.s_[3:21, 2:11, 5:], np.s_[:, 4:, :], np.s_[7, :, 3:], np.s_[:, :, 5], np.s_[22:]]
)
def test_a_part_of_a_store_is_exported_from_slabs_too(tmp_path: Path, index: Any) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a.zarr", shards=(16, 8, 8), chunks=(4, 4, 4))
    part = dataset_from_zarr(tmp_path / "a.zarr")[index]
    assert Blocks.of(part, analyse_source(in_slabs(part).data)).are_slabs
    dataset_to_raw(part, tmp_path / "a.raw")
    found = np.fromfile(tmp_path / "a.raw", "<u2").reshape(part.shape)
    np.testing.assert_array_equal(found, VOXELS[index])


def test_an_export_runs_on_a_cluster(tmp_path: Path, cluster: Client) -> None:
    for blocks in ("slabs", "overlap"):
        export(make_dataset(BLOCKS[blocks]()), tmp_path / blocks, client=cluster)
        dataset_to_raw(make_dataset(BLOCKS[blocks]()), tmp_path / f"{blocks}.raw", client=cluster)
        for name in (blocks, f"{blocks}.raw"):
            np.testing.assert_array_equal(read(tmp_path / name), VOXELS)


def test_a_delayed_export_does_nothing_before_it_is_computed(tmp_path: Path) -> None:
    graph = dataset_to_raw(make_dataset(VOXELS), tmp_path / "a.raw", compute=False)
    assert graph is not None
    assert names(tmp_path) == []
    assert graph.compute().nbytes == VOXELS.nbytes
    np.testing.assert_array_equal(read(tmp_path / "a.raw"), VOXELS)


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("name", ["out", "a.raw"])
def test_an_interrupted_export_goes_on_and_makes_no_block_twice(
    tmp_path: Path, blocks: str, name: str
) -> None:
    """Blocks fail until the second run, which is asked for those that are missing alone."""
    path, made = tmp_path / name, tmp_path / "made"
    made.mkdir()

    def fragile(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        place = block_info[0]["chunk-location"]
        if place[0] == len(block_info[0]["num-chunks"]) - 1 and not (made / "mended").exists():
            raise OSError("no more")
        with open(made / "-".join(map(str, place)), "a") as count:
            count.write(".")
        return block

    data = BLOCKS[blocks]().map_blocks(fragile, dtype="uint16", name=f"fragile-{blocks}-{name}")
    dataset = make_dataset(data)

    def run(**options: Any) -> None:
        with dask.config.set(scheduler="sync"):
            if name == "a.raw":
                dataset_to_raw(dataset, path, **options)
            else:
                export(dataset, path, 2, **options)

    with pytest.raises(WriteFailedError, match=r"no more.*resume=True"):
        run()
    assert names(tmp_path) == [f".{name}.staging", "made"]
    with pytest.raises(StagingExistsError, match="resume=True"):
        run()
    (made / "mended").touch()
    run(resume=True)
    np.testing.assert_array_equal(read(path), VOXELS)
    assert names(tmp_path) == sorted([name, "made"])
    assert {len(p.read_text()) for p in made.iterdir() if p.name != "mended"} <= {1, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: {"dataset": make_dataset(VOXELS + 1, 8)}, "source"),
        (lambda: {"n_slices": 7}, "n_slices was 5 and is now 7"),
    ],
)
def test_another_export_does_not_go_on(
    tmp_path: Path, change: Callable[[], Any], message: str, snapshot: Any
) -> None:
    dataset = make_dataset(VOXELS, 8)
    write_without_commit(prepare_export(dataset, tmp_path / "out", Arrays(5), Resources(2)).graph)
    before = snapshot(tmp_path)
    arguments = {"dataset": dataset, "path": tmp_path / "out"} | change()
    with pytest.raises(StagingExistsError, match=message):
        export(**arguments, resume=True)
    assert snapshot(tmp_path) == before
    export(**arguments, restart=True)
    assert names(tmp_path) == ["out"]


def test_abort_removes_an_interrupted_export(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_without_commit(prepare_export(make_dataset(VOXELS), path, Arrays(5), Resources(2)).graph)
    with pytest.raises(IncompleteDatasetError, match="holds an export"):
        status(path)
    assert abort(path).was_staged
    assert names(tmp_path) == []


def test_a_folder_is_replaced_only_if_it_holds_nothing_else(tmp_path: Path, snapshot: Any) -> None:
    path = tmp_path / "out"
    export(make_dataset(VOXELS), path, 5)
    with pytest.raises(DestinationExistsError, match="exists"):
        export(make_dataset(VOXELS + 1), path, 7)
    export(make_dataset(VOXELS + 1), path, 7, overwrite=True)
    np.testing.assert_array_equal(read(path), VOXELS + 1)
    assert names(tmp_path) == ["out"]
    (path / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(DestinationExistsError, match=r"notes\.txt"):
        export(make_dataset(VOXELS), path, overwrite=True)
    assert snapshot(tmp_path) == before


def test_an_old_folder_is_put_back_where_a_commit_died_between_its_renames(tmp_path: Path) -> None:
    path = tmp_path / "out"
    export(make_dataset(VOXELS), path)
    new = make_dataset(VOXELS + 1)
    write_without_commit(prepare_export(new, path, Arrays(5), Resources(2), overwrite=True).graph)
    (staged,) = (tmp_path / ".out.staging").glob("store-*")
    aside = tmp_path / f".out.replaced.{staged.name.partition('-')[2]}"
    os.rename(path, aside)
    export(new, path, overwrite=True, resume=True)
    np.testing.assert_array_equal(read(path), VOXELS + 1)
    assert names(tmp_path) == ["out"]


def bad_places(folder: Path) -> dict[str, tuple[Path, str]]:
    (folder / "file").write_text("mine")
    (folder / "a.zarr").mkdir()
    (folder / "a.zarr" / "zarr.json").write_text("{}")
    (folder / "link.raw").symlink_to(folder / "file")
    (folder / "dir.raw").mkdir()
    return {
        "no folder": (folder / "none" / "a.raw", "mkdir -p"),
        "in a store": (folder / "a.zarr" / "a.raw", "inside"),
        "a link": (folder / "link.raw", "symbolic link"),
        "a folder": (folder / "dir.raw", "folder"),
        "a URL": (Path("s3://bucket/a.raw"), "URL"),
        "a long name": (folder / f"{'n' * 240}.raw", "too long"),
    }


@pytest.mark.parametrize("case", ["no folder", "in a store", "a link", "a folder", "a long name"])
def test_bad_places_are_refused_and_nothing_is_touched(
    tmp_path: Path, snapshot: Any, case: str
) -> None:
    path, message = bad_places(tmp_path)[case]
    before = snapshot(tmp_path)
    with pytest.raises(CTLabError, match=message):
        dataset_to_raw(make_dataset(VOXELS), path, overwrite=True)
    assert snapshot(tmp_path) == before


def test_a_url_is_refused() -> None:
    with pytest.raises(CTLabError, match="local paths"):
        dataset_to_raw(make_dataset(VOXELS), "s3://bucket/a.raw")


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="Dataset"):
        dataset_to_raw(VOXELS, tmp_path / "a.raw")  # type: ignore[arg-type]


def test_a_source_that_changed_meanwhile_is_not_published(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a.zarr")
    graph = dataset_to_raw(
        dataset_from_zarr(tmp_path / "a.zarr"), tmp_path / "a.raw", compute=False
    )
    assert graph is not None
    write_without_commit(graph)
    dataset_to_zarr(make_dataset(VOXELS + 1), tmp_path / "a.zarr", overwrite=True)
    with pytest.raises(IncompleteSourceError):
        graph.compute()
    assert not (tmp_path / "a.raw").exists()


@pytest.mark.slow
def test_a_killed_export_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the middle of a file, then the same again with resume."""
    script = tmp_path / "export.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            import dask, dask.array as da, numpy as np
            from ctlab_dask_zarr import Dataset, dataset_to_raw

            def last(block, block_info=None):
                if block_info[0]["chunk-location"][0] == 6 and sys.argv[2] == "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                return block

            voxels = np.arange(8 * 40 * 50, dtype="uint16").reshape(8, 40, 50)
            data = da.from_array(voxels, chunks=(1, 40, 50)).map_blocks(
                last, dtype="uint16", name="x"
            )
            dataset = Dataset(data, dimension_names="zyx", voxel_unit="um", voxel_size=(1, 1, 1))
            with dask.config.set(scheduler="sync"):
                dataset_to_raw(dataset, sys.argv[1], resume=sys.argv[2] != "die")
            """
        )
    )
    path = tmp_path / "a.raw"
    died = subprocess.run([sys.executable, script, path, "die"], timeout=240)
    assert died.returncode == -signal.SIGKILL
    assert not path.exists()
    subprocess.run([sys.executable, script, path, "live"], timeout=240, check=True)
    expected = np.arange(8 * 40 * 50, dtype="uint16")
    np.testing.assert_array_equal(np.fromfile(path, "<u2"), expected)
    assert names(tmp_path) == ["a.raw", "export.py"]


@pytest.mark.parametrize("name", ["tomo.nc", "a.raw"])
def test_a_stopped_export_goes_on_and_tells_how_far_it_is(tmp_path: Path, name: str) -> None:
    dataset = make_dataset(BLOCKS["thin"]())
    stop, told = Stop(), list[Any]()

    def tell(progress: Any) -> None:
        told.append(progress)
        if progress.nbytes_done:
            stop.ask("enough")

    write = dataset_to_raw if name == "a.raw" else dataset_to_netcdf
    if name == "a.raw":
        with dask.config.set(scheduler="sync"), pytest.raises(WriteStoppedError, match="enough"):
            write(dataset, tmp_path / name, progress=tell, stop=stop)
        assert names(tmp_path) == [f".{name}.staging"]
    write(dataset, tmp_path / name, resume=True, progress=tell)
    assert names(tmp_path) == [name]
    assert told[-1].nbytes_done == told[-1].nbytes == VOXELS.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tomo_nc", "a.raw"])
def test_an_export_outlives_a_killed_worker(tmp_path: Path, name: str) -> None:
    """The worker is killed in the middle of its task, once."""
    mark = tmp_path / "killed"

    def kill_once(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if block_info[0]["chunk-location"][0] == 5 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    data = BLOCKS["thin"]().map_blocks(kill_once, dtype="uint16")
    workers = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    with workers, Client(workers) as client:
        if name == "a.raw":
            dataset_to_raw(make_dataset(data), tmp_path / name, client=client)
        else:
            five = 5 * VOXELS[0].size
            dataset_to_netcdf(
                make_dataset(data), tmp_path / name, client=client, elements_per_file=five
            )
    assert mark.exists()
    found = read(tmp_path / name) if name == "a.raw" else dataset_from_netcdf(tmp_path / name).data
    np.testing.assert_array_equal(found, VOXELS)
    assert names(tmp_path) == sorted([name, "killed"])
