"""``python -m benchmarks.simulate``: past these machines, on figures measured on this one.

The main job is mango netCDF: slabs of whole slices become shards. The planner of this package says
into which tasks it is cut, for any volume and any number of workers, with shards that are put
together from bands and without; `benchmarks.queues` says how long these take. What a byte costs,
the scheduler and the disk are measured here, and the simulation is checked against real runs.

One slice of a store is read over HTTP, for real, from a server that answers as late as object
stores do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, replace
from typing import Any

from benchmarks import data, sleep
from benchmarks.jobs import ITEMSIZE, Costs, aligned_work, planned, scan, slab_work
from benchmarks.measure import in_turn, run_apart, run_one
from benchmarks.queues import Machine, Outcome, Stage, Work, simulate
from benchmarks.slow_http import served
from ctlab_dask_zarr.planning.layout import Layout, resolve_layout

_WORKERS = (1, 16, 64, 256, 1024, 4096)
_VOLUMES = ((80e9, "80 GB"), (1e12, "1 TB"), (10e12, "10 TB"), (100e12, "100 TB"), (1e15, "1 PB"))
#: A thread that needs more than this has to have a node with less others.
_THREAD_NBYTES = 8e9
#: Slices of a slab of the volume that is measured, and how late an object store answers.
_SLAB, _DELAYS_S = 64, (0.005, 0.02, 0.1)


def measured(
    folder: str, size: int, n_rounds: int, before: str | None
) -> tuple[Machine, Costs, list[str]]:
    """Measure what work costs on this machine; return it, and lines of what it is checked by."""
    data.make_netcdf(folder, size)
    task = {"folder": folder, "size": size, "scheduler": "cluster", "who": "ours", "warm": True}
    edge = size // 4
    runs = {
        "aligned": {**task, "work": "aligned", "edge": edge},
        "netcdf": {**task, "work": "netcdf", "edge": edge},
        "levels": {**task, "work": "netcdf", "edge": edge, "levels": 3},
    }
    found: dict[tuple[str, int], list[float]] = {(w, n): [] for w in runs for n in (1, 2)}
    stored = {}
    for number in range(n_rounds):
        for work, n in in_turn(found, number):
            found[work, n].append(run_one({**runs[work], "n_workers": n})["seconds"])
            stored[work] = _stored_nbytes(os.path.join(folder, "out.zarr"))
    took = {key: statistics.median(values) for key, values in found.items()}
    nbytes = ITEMSIZE * size**3
    one, both = (_written_rate(folder, n) for n in (1, 2))
    schedule_s, idle = _scheduling()
    # Everything of a run that is not writing, or the scheduler's, is the core's.
    shards_s = took["aligned", 1] - stored["aligned"] / one - schedule_s * (size // edge) ** 3
    costs = Costs(
        make_s=max(took["netcdf", 1] - took["aligned", 1], 0) / nbytes,
        encode_s=shards_s / nbytes,
        level_s=max(took["levels", 1] - took["netcdf", 1], 0) / nbytes,
        merge_s=1 / one,
        move_s=_moving(),
        read_ratio=0,  # The source is in memory here: its copy is part of what computing takes.
        stored_ratio=stored["aligned"] / nbytes,
    )
    # A seventh of the voxels are encoded again; what is beyond that is making them.
    costs = replace(costs, level_s=max(costs.level_s - costs.encode_s / 7, 0))
    machine = Machine(schedule_s, file_system=both, node_network=1e15, call_s=0, answer_s=0,
                      failures_a_worker_hour=0)  # fmt: skip
    layout = resolve_layout((size,) * 3, (32,) * 3, (edge,) * 3)
    lines = ["| run | measured | predicted | predicted / measured |", "| --- | --- | --- | --- |"]
    for work in runs:
        for n in (1, 2):
            said = _predicted(machine, costs, layout, n, work)
            lines.append(_line(f"{work}, {n} worker(s)", took[work, n], said.wall_s, "s"))
    return (
        machine,
        costs,
        [*lines, _idle_line(machine, idle), *_sleep_lines(folder, machine, costs, before)],
    )


def _predicted(
    machine: Machine, costs: Costs, layout: Layout, n_workers: int, work: str
) -> Outcome:  # fmt: skip
    if work == "aligned":
        made = aligned_work(layout, replace(costs, make_s=0))
    else:
        way = planned(layout, _SLAB, n_workers, None, bands=True)
        made = slab_work(layout, _SLAB, way, costs, levels=work == "levels")
    return simulate(machine, made, n_workers)


def _sleep_lines(
    folder: str, machine: Machine, costs: Costs, before: str | None
) -> list[str]:  # fmt: skip
    """Return lines of slabs that sleep, on workers that are threads of one process."""
    shape, edge, pause_s = sleep.SLABS_SHAPE, sleep.SLABS_EDGE, 1.0
    layout = resolve_layout(shape, (32,) * 3, (edge,) * 3)
    slab_nbytes = sleep.SLAB * shape[1] * shape[2] * ITEMSIZE
    asleep = replace(costs, make_s=pause_s / slab_nbytes)
    # Sleep takes equally long each time.
    steady = replace(machine, spread=0)
    lines = []
    for code in (None, before) if before else (None,):
        for n in sleep.N_WORKERS:
            seen_s = run_apart("benchmarks.sleep:seconds", code=code, folder=folder, shape=shape,
                               edge=edge, pause_s=pause_s, n=n, threads=False)  # fmt: skip
            way = planned(layout, sleep.SLAB, n, None, bands=code is None)
            said = simulate(steady, slab_work(layout, sleep.SLAB, way, asleep), n)
            name = f"slabs that sleep, {n} workers{', before' if code else ''}"
            lines.append(_line(name, seen_s, said.wall_s, "s"))
    return lines


def _line(name: str, seen: float, said: float, unit: str) -> str:
    return f"| {name} | {seen:.3g} {unit} | {said:.3g} {unit} | {said / seen:.2f} |"


def _idle_line(machine: Machine, idle: dict[str, float]) -> str:
    few = replace(machine, schedule_s=idle["few"], build_s=0, take_in_s=0, commit_s=0)
    nothing = Work(4096, (Stage(1, 0.0),), 0.0)
    said = simulate(few, nothing, 64).wall_s / 4096
    name = "a task that does nothing, 64 workers in one process, from what 4 take"
    return _line(name, idle["many"] * 1e3, said * 1e3, "ms")


def _stored_nbytes(root: str) -> int:
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(root)
        for name in names
    )


def _write_files(path: str, n_files: int, nbytes: int = 20 << 20) -> int:
    content = os.urandom(1 << 20)
    for number in range(n_files):
        with open(f"{path}-{number}", "wb") as file:
            for _ in range(nbytes >> 20):
                file.write(content)
            os.fsync(file.fileno())
        os.unlink(f"{path}-{number}")
    return n_files * nbytes


def _written_rate(folder: str, n_processes: int) -> float:
    """Return bytes a second that so many processes write together."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(n_processes) as pool:
        list(pool.map(int, range(n_processes)))
        start = time.perf_counter()
        paths = [os.path.join(folder, f"rate-{n}") for n in range(n_processes)]
        nbytes = sum(pool.map(_write_files, paths, [16] * n_processes))
        return nbytes / (time.perf_counter() - start)


def _scheduling(n_tasks: int = 2048) -> tuple[float, dict[str, float]]:
    """Return the scheduler's time a task, from tasks that do nothing; and such runs to check."""
    from distributed import Client, LocalCluster

    def run(n_workers: int, *, processes: bool) -> float:
        with (
            LocalCluster(n_workers=n_workers, threads_per_worker=1, processes=processes,
                         # Without processes there is no network, and no address.
                         host="127.0.0.1" if processes else None,
                         # 64 workers in one process would each take its memory for their own.
                         memory_limit=0,
                         dashboard_address="127.0.0.1:0") as cluster,
            Client(cluster) as client,
        ):  # fmt: skip
            best = []
            for _ in range(3):
                start = time.perf_counter()
                client.gather(client.map(_nothing, range(n_tasks), pure=False))
                best.append((time.perf_counter() - start) / n_tasks)
            return min(best[1:])

    few, many = run(4, processes=False), run(64, processes=False)
    return run(2, processes=True), {"few": few, "many": many}


def _moving(nbytes: int = 64 << 20) -> float:
    """Return the seconds that a byte takes from one worker to another."""
    import numpy as np
    from distributed import Client, LocalCluster, wait

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1",
                     dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        here, there = client.scheduler_info()["workers"]
        took = []
        for number in range(4):
            made = client.submit(np.full, nbytes, number, "u1", workers=[here])
            wait(made)
            start = time.perf_counter()
            client.submit(len, made, workers=[there]).result()
            took.append(time.perf_counter() - start)
        return min(took[1:]) / nbytes


def _nothing(number: int) -> int:
    return number


def predictions(machine: Machine, costs: Costs) -> list[str]:
    """Return lines of the table: wall time, efficiency and what is busiest, past this machine."""
    # A parallel file system and its network, and sources that gzip has made as small as zstd does.
    machine = Machine(machine.schedule_s)
    costs = replace(costs, read_ratio=0.66, stored_ratio=0.66)
    lines = ["| volume, way | " + " | ".join(f"{n:,}" for n in _WORKERS) + " |",
             "| --- " * (len(_WORKERS) + 1) + "|"]  # fmt: skip
    for nbytes, name in _VOLUMES:
        shape, slab = scan(nbytes)
        layout = resolve_layout(shape)
        for levels in (False, True):
            for bands in (False, True):
                cells = []
                for n in _WORKERS:
                    way = planned(layout, slab, n, None, bands=bands)
                    work = slab_work(layout, slab, way, costs, levels=levels)
                    cells.append(_cell(simulate(machine, work, n), way.peak_nbytes))
                label = f"{name}{', levels' * levels}, {'bands' if bands else 'before'}"
                lines.append(f"| {label} | " + " | ".join(cells) + " |")
        cells = [_cell(simulate(machine, aligned_work(layout, costs), n), 0) for n in _WORKERS]
        lines.append(f"| {name}, if blocks were shards | " + " | ".join(cells) + " |")
    return lines


def _cell(found: Outcome, peak_nbytes: float) -> str:
    needs = f", {peak_nbytes / 1e9:.0f} GB a thread" if peak_nbytes > _THREAD_NBYTES else ""
    return f"{_duration(found.wall_s)}, {found.efficiency:.0%}, {found.busiest}{needs}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def slices(folder: str, edge: int, n_rounds: int) -> list[str]:
    """Return lines of one slice of 5 x 5 shards, read from a server that answers late."""
    grid = [1, 5, 5]
    url = os.path.join(folder, "slices.zarr")
    run_apart("benchmarks.reads:link_store", url=url, grid=grid, edge=edge, chunk=32)
    lines = ["| an answer takes | slice | ours | tensorstore | theirs / ours |", "| --- " * 5 + "|"]
    for delay_s in _DELAYS_S:
        with served(os.path.realpath(folder), delay_s) as root:
            found: dict[str, Any] = run_apart(
                "benchmarks.readers:timed", url=f"{root}/slices.zarr",
                readers=["ours", "tensorstore"], works=["slice z", "slice y", "slice x"],
                shape=[n * edge for n in grid], n_rounds=n_rounds, timeout_s=1800,
            )  # fmt: skip
        for work, seconds in found.items():
            ours, theirs = (statistics.median(seconds[who]) for who in ("ours", "tensorstore"))
            lines.append(f"| {delay_s * 1e3:.0f} ms | {work[-1]} | {ours:.3g} s | {theirs:.3g} s "
                         f"| {theirs / ours:.2f} |")  # fmt: skip
    shutil.rmtree(url)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    parser.add_argument("--folder", default=None, help="where to write; a RAM disk by default")
    parser.add_argument("--size", type=int, default=1024, help="edge of the volume of the checks")
    parser.add_argument("--edge", type=int, default=512, help="edge of the shards of the slices")
    parser.add_argument("--before", default=None, help="an older checkout, to check slabs with")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    parent = options.folder or ("/dev/shm" if os.path.isdir("/dev/shm") else None)
    folder = tempfile.mkdtemp(prefix="ctlab-zarr-bench-", dir=parent)
    try:
        machine, costs, checks = measured(folder, options.size, options.rounds, options.before)
        print("Measured: " + json.dumps(asdict(costs) | asdict(machine)) + "\n")
        print("\n".join(checks) + "\n", flush=True)
        print("\n".join(predictions(machine, costs)) + "\n", flush=True)
        print("\n".join(slices(folder, options.edge, options.rounds)), flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
