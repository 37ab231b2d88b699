"""The notebooks run from top to bottom, and what they show is seen in a real JupyterLab."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask.utils import key_split
from PIL import Image

from ctlab_dask_zarr import dataset_from_zarr, dataset_to_zarr
from ctlab_dask_zarr.demo import synthetic_volume, write_mango_netcdf
from tests.builders import make_dataset, random_voxels
from tests.documentation.blocks import ROOT, with_commands
from tests.reliability.faults import free_port, listens, wait_until
from tests.views.browser import Browser, find_chromium

NOTEBOOKS = sorted((ROOT / "docs" / "examples").glob("*.ipynb"))
TOKEN = "0f1e2d"
CELLS = [
    "from ctlab_dask_zarr import Dataset, dataset_from_zarr, dataset_to_zarr, plan\n"
    'dataset = Dataset.from_path("tomoHiRes_nc")\n'
    'plan(dataset, "other.zarr", levels=2)',
    'dataset_to_zarr(dataset, "scan.zarr", levels=2)\ndataset_from_zarr("scan.zarr")',
]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "jupyter", "nbconvert", "--to", "notebook", "--execute",
         "--output-dir", str(tmp_path), str(path)],
        env=with_commands(tmp_path / "commands") | {"HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    executed = json.loads((tmp_path / path.name).read_text())
    cells = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    shown = [o for cell in cells for o in cell["outputs"] if "text/html" in o.get("data", {})]
    assert any("field of view" in "".join(o["data"]["text/html"]) for o in shown)


def test_notebooks_are_kept_without_outputs() -> None:
    """They would be those of one machine, and change with every run."""
    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            assert not cell.get("outputs")


@pytest.mark.slow
def test_an_interrupted_cell_leaves_its_shards_and_resume_makes_only_the_others(
    kernel: Any, tmp_path: Path
) -> None:
    manager, client = kernel
    cell = """
from pathlib import Path
from time import sleep
from uuid import uuid4

import dask.array as da
import numpy as np
from ctlab_dask_zarr import Dataset, dataset_from_zarr, dataset_to_zarr

def made(block_info=None):
    place = block_info[None]["chunk-location"]
    Path("-".join(map(str, place)) + f".{uuid4().hex}.made").touch()
    # A few blocks are quick; the others wait for the interruption.
    is_quick = len(list(Path().glob("*.made"))) <= 4
    while not (is_quick or Path("interrupted").exists()):
        sleep(0.05)
    return np.full((32, 32, 32), sum(place), "u2")

data = da.map_blocks(made, chunks=((32,) * 8, (32, 32), (32, 32)), dtype="u2")
dataset = Dataset(data, dimension_names=("z", "y", "x"), voxel_unit="um", voxel_size=(2, 2, 2))
dataset_to_zarr(dataset, "scan.zarr", chunks=(16, 16, 16), shards=(32, 32, 32), resume={resume})
"""
    asked = client.execute(cell.replace("{resume}", "False"))
    staging = tmp_path / ".scan.zarr.staging"

    def shards(place: Path = staging) -> dict[str, int]:
        """When each shard was written, by the name of its block."""
        found = [path for path in place.rglob("c.*.*.*") if path.suffix != ".partial"]
        names = (path.name.removeprefix("c.").replace(".", "-") for path in found)
        return {name: path.stat().st_mtime_ns for name, path in zip(names, found, strict=True)}

    wait_until(shards, "the first shards")
    manager.interrupt_kernel()
    # Replies to what was asked when it started may come before.
    replies = iter(lambda: client.get_shell_msg(timeout=240), None)
    reply = next(r["content"] for r in replies if r["parent_header"]["msg_id"] == asked)
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt"), reply
    assert not (tmp_path / "scan.zarr").exists()
    staged = shards()
    assert 1 <= len(staged) <= 4
    (tmp_path / "interrupted").touch()
    reply = client.execute_interactive(cell.replace("{resume}", "True"), timeout=240)["content"]
    assert reply["status"] == "ok", reply
    times = Counter(path.name.split(".")[0] for path in tmp_path.glob("*.made"))
    assert len(times) == 32
    # What is there is not written again; a sample of it is made again, and compared.
    assert staged.items() <= shards(tmp_path / "scan.zarr").items()
    assert {times[name] for name in staged} <= {1, 2}
    written = dataset_from_zarr(tmp_path / "scan.zarr")
    corners = written.data[16::32, 16::32, 16::32].compute()
    np.testing.assert_array_equal(corners, np.indices((8, 2, 2)).sum(0))


def test_tasks_have_the_names_that_the_page_says(tmp_path: Path) -> None:
    dataset = make_dataset(random_voxels((64, 64, 64)), 32)
    write = dataset_to_zarr(
        dataset, tmp_path / "a.zarr", chunks=16, shards=(32, 32, 32), levels=2, compute=False
    )
    names = {key_split(key) for key in write.__dask_graph__()}
    page = (ROOT / "docs" / "notebooks.md").read_text()
    sentence = page[page.index("On the dashboard") :].split(". ")[0]
    said = set(re.findall("`([^`]+)`", sentence))
    assert {"write-shard", "downsample", "commit"} <= said
    assert said <= names


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a notebook in a JupyterLab of its own."""
    pytest.importorskip("jupyterlab")
    folder = tmp_path / "work"
    folder.mkdir()
    write_mango_netcdf(
        folder / "tomoHiRes_nc",
        synthetic_volume((96, 288, 288)),
        datatype="tomo",
        slices_per_block=40,
        voxel_size=(2.5,) * 3,
        history={"20250101_000000_scan": ("kV 80", ""), "20250102_000000_tomo": ("sigma 1", "")},
    )
    cells = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "execution_count": None,
         "outputs": [], "source": text}
        for n, text in enumerate(CELLS)
    ]  # fmt: skip
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4,
                "nbformat_minor": 5}  # fmt: skip
    (folder / "scan.ipynb").write_text(json.dumps(notebook))
    port = free_port()
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1",
             f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={TOKEN}",
             "--allow-root", "--expose-app-in-browser", "--LabApp.news_url=",
             "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
            cwd=folder, stdout=log, stderr=log,
            env=with_commands(tmp_path / "commands") | {"HOME": str(tmp_path)},
        )  # fmt: skip
    try:
        wait_until(lambda: listens(port), "the start of JupyterLab")
        yield f"http://127.0.0.1:{port}/lab/tree/scan.ipynb?token={TOKEN}"
    finally:
        server.terminate()
        server.wait(240)


@pytest.mark.browser
@pytest.mark.skipif(find_chromium() is None, reason="chromium is not installed")
def test_the_card_and_the_plan_are_seen_in_jupyterlab(lab: str, tmp_path: Path) -> None:
    browser = Browser(str(find_chromium()), tmp_path / "profile", (1280, 960))
    try:
        browser.open(lab)
        is_ready = "!!(window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell'))"
        wait_until(lambda: browser.evaluate(is_ready), "the notebook in the browser")
        browser.evaluate("jupyterapp.shell.collapseLeft(); jupyterapp.shell.collapseRight()")
        idle = "jupyterapp.shell.currentWidget.context.sessionContext.session?.kernel?.status"
        wait_until(lambda: browser.evaluate(idle) == "idle", "the kernel")
        browser.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
        text = "[...document.querySelectorAll('.jp-OutputArea')].map(o => o.innerText).join(' ')"
        wait_until(lambda: "field of view" in browser.evaluate(text), "the card")
        shown = browser.evaluate(text)
        browser.evaluate("document.querySelectorAll('.Toastify').forEach(e => e.remove())")
        drawn = "!!document.querySelector('.jp-OutputArea img')?.naturalWidth"
        wait_until(lambda: browser.evaluate(drawn), "the picture of the card")
        box = browser.evaluate(
            "(() => { const b = document.querySelector('.jp-OutputArea img')"
            ".getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom] })()"
        )
        picture = browser.screenshot()
    finally:
        browser.close()
    Image.fromarray(picture).save(tmp_path / "jupyterlab.png")
    assert "Traceback" not in shown
    # The plan's table, and the card's rows.
    for name in ("destination", "shards", "levels", "voxel", "field of view", "identifier"):
        assert name in shown, shown
    left, top, right, bottom = map(int, box)
    grey = picture[top:bottom, left:right].astype(float)
    assert grey.size > 1000
    # Grains and pores, not one colour.
    assert grey.std() > 20
    assert len(np.unique(grey)) > 30
