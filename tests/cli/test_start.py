"""When a command starts workers: not for what this process does sooner than they would start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctlab_dask_zarr import Dataset
from ctlab_dask_zarr.cli import options
from ctlab_dask_zarr.demo import write_mango_netcdf
from tests.builders import random_voxels, run_here

VOXELS = random_voxels((40, 64, 64))
#: Runs a command, and tells on the last line of standard error whether distributed was loaded.
TELLING = """
import sys
from ctlab_dask_zarr.cli import main
try:
    main()
finally:
    print("distributed" in sys.modules, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "tomoTiny_nc"
    write_mango_netcdf(path, VOXELS, slices_per_block=9)
    return path


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any) -> Any:
        raise AssertionError("workers were started")

    monkeypatch.setattr(options.CommandClient, "_started", refuse)


def told(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", TELLING, *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DASK_")}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, env=environment | more
    )


def test_a_tiny_scan_is_converted_and_verified_by_the_process_itself(
    source: Path, tmp_path: Path
) -> None:
    done = told("convert", source, tmp_path / "a", "--levels", "2", "--verify")
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
    assert done.stderr.splitlines()[-1] == "False"
    np.testing.assert_array_equal(Dataset.from_path(tmp_path / "a.zarr").data.compute(), VOXELS)


@pytest.mark.parametrize(
    ("chosen", "settings"),
    [
        (("--workers", "1"), {}),
        (("--threads", "2"), {}),
        (("--memory-limit", "1GiB"), {}),
        (("--cluster", "local"), {}),
        ((), {"ctlab-zarr.cluster": "local"}),
        ((), {"ctlab-zarr.workers": 1}),
        ((), {"ctlab-zarr.threads": 2}),
    ],
)
def test_who_says_what_the_workers_are_gets_them(
    chosen: tuple[str, ...],
    settings: dict[str, Any],
    source: Path,
    tmp_path: Path,
    no_workers: None,
) -> None:
    import dask

    with dask.config.set(settings), pytest.raises(AssertionError, match="workers were started"):
        run_here("convert", source, tmp_path / "a", *chosen)


def test_a_larger_scan_gets_workers(
    source: Path, tmp_path: Path, no_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "_FEW_NBYTES", VOXELS.nbytes - 1)
    with pytest.raises(AssertionError, match="workers were started"):
        run_here("convert", source, tmp_path / "a")
    assert not (tmp_path / "a.zarr").exists()


def test_what_is_complete_starts_no_workers_however_large_it_is(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_here("convert", source, tmp_path / "a", "-q").returncode == 0
    monkeypatch.setattr(options, "_FEW_NBYTES", 0)

    def refuse(self: Any) -> Any:
        raise AssertionError("workers were started")

    monkeypatch.setattr(options.CommandClient, "_started", refuse)
    again = ("convert", source, tmp_path / "a", "--resume", "--json", "--workers", "2")
    result = json.loads(run_here(*again).stdout)
    assert (result["n_resumed"], result["n_shards"]) == (1, 1)
    with pytest.raises(AssertionError, match="workers were started"):
        run_here("convert", source, tmp_path / "a", "--overwrite", "--workers", "2")


def test_a_stop_is_heard_without_workers(source: Path, tmp_path: Path) -> None:
    """Between two shards, as with workers; what was written stays for --resume."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING, "convert", str(source), str(tmp_path / "a"), "--shards",
         "4,4,4", "--chunks", "2,2,2"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 75, errors
    assert "SIGTERM" in errors
    assert not (tmp_path / "a.zarr").exists()
    again = run_here("convert", source, tmp_path / "a", "--shards", "4,4,4", "--chunks", "2,2,2",
                     "--resume", "--json")  # fmt: skip
    result = json.loads(again.stdout)
    assert 0 < result["n_resumed"] < result["n_shards"]
    np.testing.assert_array_equal(Dataset.from_path(tmp_path / "a.zarr").data.compute(), VOXELS)


#: A command that is asked to stop once some of its shards are written.
STOPPING = f"""
import os
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.write.staging.staged import StagedWrite

write, numbers = StagedWrite.write, []

def stopping(self, *arguments):
    receipts = write(self, *arguments)
    numbers.append(receipts)
    if len(numbers) == 5:
        os.kill(os.getpid(), {int(signal.SIGTERM)})
    return receipts

StagedWrite.write = stopping
main()
"""
