"""A real kernel: progress below a cell, and cells that are interrupted and run again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster

from ctlab_dask_zarr import dataset_from_zarr, status
from tests.reliability.faults import wait_until

pytestmark = pytest.mark.slow

MAKE = """
from pathlib import Path
from time import sleep
from uuid import uuid4

import dask.array as da
import numpy as np
from ctlab_dask_zarr import Dataset, add_levels, dataset_to_zarr, verify

def made(folder, block_info=None):
    place = block_info[None]["chunk-location"]
    Path(folder, f"{uuid4().hex}.made").touch()
    # A few blocks are quick; the others wait for the interruption.
    is_quick = len(list(Path(folder).glob("*.made"))) <= 3
    while not (is_quick or Path(folder, "interrupted").exists()):
        sleep(0.05)
    return np.full((32, 32, 32), sum(place), "u2")

data = da.map_blocks(
    made, str(Path().absolute()), chunks=((32,) * 8, (32,), (32,)), dtype="u2",
    meta=np.empty((0, 0, 0), "u2"),
)
dataset = Dataset(data, dimension_names=("z", "y", "x"), voxel_unit="um", voxel_size=(2, 2, 2))
layout = {"chunks": (16, 16, 16), "shards": (32, 32, 32)}
"""
WRITE = 'dataset_to_zarr(dataset, "scan.zarr", resume=RESUME, **layout)'


class Notebook:
    """Cells that are run one after another, and what each of them shows."""

    def __init__(self, manager: Any, client: Any, folder: Path) -> None:
        self._manager, self._client, self._folder = manager, client, folder

    def run(self, cell: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Run a cell; return the reply, and the contents of what was shown, in order."""
        shown: list[dict[str, Any]] = []
        reply = self._client.execute_interactive(
            cell, timeout=240, output_hook=lambda message: shown.append(message["content"])
        )
        return reply["content"], shown

    def interrupt(self, cell: str) -> dict[str, Any]:
        """Begin a cell, interrupt it once shards are written, and return the reply."""
        asked = self._client.execute(cell)
        wait_until(lambda: self.shards(), "the first shards")
        self._manager.interrupt_kernel()
        replies = iter(lambda: self._client.get_shell_msg(timeout=240), None)
        reply: dict[str, Any] = next(
            r["content"] for r in replies if r["parent_header"]["msg_id"] == asked
        )
        (self._folder / "interrupted").touch()
        return reply

    def shards(self) -> list[Path]:
        """The shards that are staged."""
        found = (self._folder / ".scan.zarr.staging").rglob("c.*.*.*")
        return [path for path in found if path.suffix != ".partial"]

    def assert_written(self) -> None:
        voxels = dataset_from_zarr(self._folder / "scan.zarr").data[16::32, 0, 0].compute()
        np.testing.assert_array_equal(voxels, np.arange(8))


@pytest.fixture
def notebook(kernel: Any, tmp_path: Path) -> Notebook:
    notebook = Notebook(*kernel, tmp_path)
    assert notebook.run(MAKE)[0]["status"] == "ok"
    return notebook


def html(shown: list[dict[str, Any]]) -> list[str]:
    """What is below a cell, as it changes."""
    found = [content.get("data", {}).get("text/html") for content in shown]
    return [text for text in found if text is not None]


def test_a_cell_shows_a_bar_by_itself_and_needs_no_widgets(
    notebook: Notebook, tmp_path: Path
) -> None:
    (tmp_path / "interrupted").touch()
    for cell, noun in (
        (WRITE.replace("RESUME", "False"), "8 shards"),
        ('add_levels("scan.zarr", 2)', "shard"),
        ('problems = verify("scan.zarr")', "checks"),
    ):
        reply, shown = notebook.run(cell)
        assert reply["status"] == "ok", reply
        bars = html(shown)
        assert "<progress" in bars[0]
        assert "✔ " in bars[-1]
        assert noun in bars[-1]
        assert not [content for content in shown if "text" in content], "nothing is printed"
    reply, shown = notebook.run('verify("scan.zarr", progress=False)')
    assert html(shown) == []
    # The kernel of this test has no widgets; a notebook that has them shows the same.
    reply, _ = notebook.run("import sys; assert 'ipywidgets' not in sys.modules")
    assert reply["status"] == "ok", reply


def test_an_interrupted_local_cluster_is_told_of_and_a_new_client_goes_on(
    notebook: Notebook, tmp_path: Path
) -> None:
    client = (
        "from distributed import Client\n"
        "client = Client(n_workers=1, threads_per_worker=1, dashboard_address='127.0.0.1:0')"
    )
    assert notebook.run(client)[0]["status"] == "ok"
    reply = notebook.interrupt(WRITE.replace("RESUME", "False"))
    assert reply["ename"] == "KeyboardInterrupt", reply
    assert (status(tmp_path / "scan.zarr").state) == "stopped"
    assert status(tmp_path / "scan.zarr").why == "interrupted"
    reply, _ = notebook.run(WRITE.replace("RESUME", "True"))
    assert reply["ename"] == "ClusterError", reply
    assert "make a new Client" in reply["evalue"]
    reply, _ = notebook.run(client + "\n" + WRITE.replace("RESUME", "True"))
    assert reply["status"] == "ok", reply
    notebook.assert_written()


@pytest.fixture
def scheduler() -> Iterator[str]:
    """The address of a scheduler that no interruption of the kernel reaches."""
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:  # fmt: skip
        yield cluster.scheduler_address


def test_an_interrupted_cell_goes_on_with_the_same_remote_scheduler(
    notebook: Notebook, scheduler: str, tmp_path: Path
) -> None:
    client = f"from distributed import Client\nclient = Client({scheduler!r})"
    assert notebook.run(client)[0]["status"] == "ok"
    reply = notebook.interrupt(WRITE.replace("RESUME", "False"))
    assert reply["ename"] == "KeyboardInterrupt", reply
    assert not (tmp_path / "scan.zarr").exists()
    reply, _ = notebook.run(WRITE.replace("RESUME", "True"))
    assert reply["status"] == "ok", reply
    notebook.assert_written()


def test_a_kernel_that_is_killed_is_found_by_status_and_by_the_next_call(
    notebook: Notebook, kernel: Any, scheduler: str, tmp_path: Path
) -> None:
    manager, client = kernel
    notebook.run(f"from distributed import Client\nclient = Client({scheduler!r})")
    client.execute(WRITE.replace("RESUME", "False"))
    wait_until(notebook.shards, "the first shards")
    assert status(tmp_path / "scan.zarr").state == "running"
    manager.shutdown_kernel(now=True)
    wait_until(lambda: status(tmp_path / "scan.zarr").state == "stopped", "the end of the process")
    assert status(tmp_path / "scan.zarr").why == "its process has ended"
    (tmp_path / "interrupted").touch()
