"""``python -m benchmarks.interrupted``: kill a large conversion, go on with it, verify it.

A mango netCDF source of several gigabytes is converted by ``ctlab-zarr convert`` in processes of
their own, all of which get SIGKILL when a part of the shards is there. Nothing may be at the
destination then; ``convert --resume`` has to keep the shards that are whole, and
``verify --source`` to find every voxel equal.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import data

_POLL_S = 0.05
_TIMEOUT_S = 3600


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interrupted", description=__doc__)
    parser.add_argument("--folder", default=None, help="where to write; a temporary one by default")
    parser.add_argument("--size", type=int, default=1344, help="edge of the volume, in voxels")
    parser.add_argument("--edge", type=int, default=256, help="edge of a shard, in voxels")
    parser.add_argument("--part", type=float, default=0.3, help="of the shards, before the kill")
    parser.add_argument("--levels", default="1")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="ctlab-zarr-interrupted-", dir=options.folder)
    try:
        print(json.dumps(interrupt(folder, options), indent=2))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def interrupt(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what was seen; an assertion fails where a promise does not hold."""
    source = data.make_netcdf(folder, options.size)
    os.unlink(data.make_raw(folder, options.size))
    destination = os.path.join(folder, "scan.zarr")
    shards = ",".join([str(options.edge)] * 3)
    convert = ["convert", source, destination, "--chunks", "32,32,32", "--shards", shards,
               "--levels", options.levels, "--json", "-q"]  # fmt: skip
    n_shards = (-(-options.size // options.edge)) ** 3
    begun_s = time.monotonic()
    writer = subprocess.Popen(_command(convert), start_new_session=True, stdout=subprocess.DEVNULL)
    while len(_staged(folder)) < options.part * n_shards:
        assert writer.poll() is None, "it ended before it could be killed"
        assert time.monotonic() - begun_s < _TIMEOUT_S
        time.sleep(_POLL_S)
    os.killpg(writer.pid, signal.SIGKILL)
    writer.wait()
    killed_s = time.monotonic() - begun_s
    before = _staged(folder)
    assert not os.path.exists(destination)
    begun_s = time.monotonic()
    result = json.loads(_run([*convert, "--resume"]))
    resumed_s = time.monotonic() - begun_s
    after = _objects(os.path.join(destination, "0"))
    kept = [key for key, place in before.items() if after[key] == place]
    assert kept == list(before), "a shard that was there was written again"
    begun_s = time.monotonic()
    _run(["verify", destination, "--source", source])
    return {
        "nbytes": 2 * options.size**3,
        "shards": len(after),
        "shards there when it was killed": len(before),
        "of them written again": len(before) - len(kept),
        "killed after s": round(killed_s, 1),
        "resumed in s": round(resumed_s, 1),
        "verified in s": round(time.monotonic() - begun_s, 1),
        "result": result,
    }


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "ctlab_dask_zarr.cli", *arguments]


def _run(arguments: list[str]) -> str:
    done = subprocess.run(
        _command(arguments), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{arguments} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


def _staged(folder: str) -> dict[str, tuple[int, int]]:
    """Return the shards of level 0 in the staging folder: their inodes and times."""
    staging = os.path.join(folder, ".scan.zarr.staging")
    names = os.listdir(staging) if os.path.isdir(staging) else []
    (store,) = [name for name in names if name.startswith("store-")] or [""]
    return _objects(os.path.join(staging, store, "0")) if store else {}


def _objects(root: str) -> dict[str, tuple[int, int]]:
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            if not name.startswith(".") and not name.endswith(".json"):
                path = os.path.join(folder, name)
                stat = os.stat(path)
                found[os.path.relpath(path, root)] = (stat.st_ino, stat.st_mtime_ns)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    main()
