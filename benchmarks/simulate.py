"""``python -m benchmarks.simulate``: past these machines, on figures measured on this one.

A discrete-event simulation of a write of aligned shards. A task waits for the scheduler, which
serves one at a time; a worker then computes for a while, which varies, and reads and writes through
a file system that all share and the network of its node. A worker may fail: its task is done again
elsewhere, and a new worker comes. Before, the client builds the graph and the scheduler takes it
in; afterwards the commit names every shard.

It is checked against real runs: one and two workers, and 64 workers in one process that do nothing.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import random
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

#: Tasks that are simulated one by one; of more, the steady state of these is taken.
_MOST_TASKS = 40_000


@dataclass(frozen=True)
class Figures:
    """What one task and one machine need; seconds, bytes, bytes a second.

    Attributes
    ----------
    compute_s, spread
        Of one shard on one core, without the file system, and its relative standard deviation.
    read_nbytes, write_nbytes
        Of one shard.
    schedule_s
        Of the scheduler, a task.
    build_s, take_in_s, commit_s
        Of client, scheduler and commit, a task, before and after everything else.
    file_system, node_network
        Bandwidth that all share, and that of one node.
    workers_a_node
        That share its network.
    failures_a_worker_hour, replace_s
        How often a worker is lost, and how long it takes until another is there.
    """

    compute_s: float
    spread: float
    read_nbytes: float
    write_nbytes: float
    schedule_s: float
    build_s: float = 0.065e-3
    take_in_s: float = 0.15e-3
    commit_s: float = 0.02e-3
    file_system: float = 20e9
    node_network: float = 12.5e9
    workers_a_node: int = 48
    failures_a_worker_hour: float = 1e-4
    replace_s: float = 60.0


@dataclass(frozen=True)
class Outcome:
    """Wall time in seconds, share of the workers' time that was work, and what was busiest."""

    wall_s: float
    efficiency: float
    bottleneck: str


def simulate(figures: Figures, n_tasks: int, n_workers: int, seed: int = 0) -> Outcome:
    """Run `n_tasks` shards on `n_workers` cores.

    Examples
    --------
    >>> busy = Figures(1.0, 0.0, 0, 0, schedule_s=0.1)
    >>> simulate(busy, 100, 1).bottleneck, simulate(busy, 1000, 100).bottleneck
    ('workers', 'scheduler')
    """
    rng = random.Random(seed)
    n_simulated = min(n_tasks, max(_MOST_TASKS, 8 * n_workers))
    sigma = math.sqrt(math.log1p(figures.spread**2))
    nbytes = figures.read_nbytes + figures.write_nbytes
    n_nodes = max(1, math.ceil(n_workers / figures.workers_a_node))
    rates = {"file system": figures.file_system, "network": figures.node_network * n_nodes}
    shared_s = {name: nbytes / rate for name, rate in rates.items()}
    hazard = figures.failures_a_worker_hour / 3600
    scheduler_free_s = 0.0
    shared_free_s = dict.fromkeys(rates, 0.0)
    busy = dict.fromkeys(("workers", "scheduler", *rates), 0.0)
    free = [(0.0, worker) for worker in range(n_workers)]
    heapq.heapify(free)
    end_s = 0.0
    n_left = n_simulated
    while n_left:
        now_s, worker = heapq.heappop(free)
        start_s = max(now_s, scheduler_free_s) + figures.schedule_s
        scheduler_free_s = start_s
        busy["scheduler"] += figures.schedule_s
        compute_s = figures.compute_s * rng.lognormvariate(-(sigma**2) / 2, sigma)
        done_s = start_s + compute_s
        # Each shared resource is a queue: what it serves, it serves at its full rate.
        for name, seconds in shared_s.items():
            begun_s = max(shared_free_s[name], start_s)
            shared_free_s[name] = begun_s + seconds
            busy[name] += seconds
            done_s = max(done_s, begun_s + seconds + compute_s)
        if hazard and rng.random() < -math.expm1(-hazard * (done_s - start_s)):
            lost_s = rng.uniform(start_s, done_s)
            heapq.heappush(free, (lost_s + figures.replace_s, worker))
            continue
        busy["workers"] += compute_s
        end_s = max(end_s, done_s)
        n_left -= 1
        heapq.heappush(free, (done_s, worker))
    run_s = end_s * n_tasks / n_simulated
    serial_s = n_tasks * (figures.build_s + figures.take_in_s + figures.commit_s)
    wall_s = run_s + serial_s
    utilised = {name: seconds / end_s for name, seconds in busy.items() if name != "workers"}
    utilised["workers"] = busy["workers"] / end_s / n_workers
    bottleneck = max(utilised, key=lambda name: utilised[name])
    if n_tasks < 2 * n_workers:
        bottleneck = "too few shards"
    if serial_s > run_s:
        bottleneck = "client and commit"
    return Outcome(wall_s, n_tasks * figures.compute_s / (wall_s * n_workers), bottleneck)


def measured(folder: str, size: int) -> tuple[Figures, dict[str, Any]]:
    """Measure the figures on this machine, and what the simulation is checked against."""
    from benchmarks import data
    from benchmarks.measure import run_one

    data.make_raw(folder, size)
    edge = size // 4
    n_shards = 64
    task = {"folder": folder, "size": size, "work": "aligned", "scheduler": "cluster",
            "who": "ours", "edge": edge, "warm": True}  # fmt: skip
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for number in range(5):
        for n in (1, 2) if number % 2 == 0 else (2, 1):
            seconds[n].append(run_one({**task, "n_workers": n})["seconds"])
    stored = _stored_nbytes(os.path.join(folder, "out.zarr"))
    one, both = (_written_rate(folder, stored // n_shards, n) for n in (1, 2))
    schedule_s, idle = _scheduling()
    t_one = statistics.median(seconds[1]) / n_shards
    write_nbytes = stored / n_shards
    figures = Figures(
        compute_s=t_one - write_nbytes / one - schedule_s,
        spread=0.1,
        read_nbytes=0,  # The source is mapped memory here: its copy is part of the compute time.
        write_nbytes=write_nbytes,
        schedule_s=schedule_s,
        file_system=both,
        node_network=1e15,
        failures_a_worker_hour=0,
    )
    facts = {"one_s": seconds[1], "two_s": seconds[2], "n_shards": n_shards, "idle": idle,
             "written_by_one": one, "written_by_two": both}  # fmt: skip
    return figures, facts


def _stored_nbytes(root: str) -> int:
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(root)
        for name in names
    )


def _write_files(path: str, nbytes: int, n_files: int) -> None:
    content = os.urandom(1 << 20)
    for number in range(n_files):
        with open(f"{path}-{number}", "wb") as file:
            for _ in range(max(nbytes >> 20, 1)):
                file.write(content)
            os.fsync(file.fileno())
        os.unlink(f"{path}-{number}")


def _written_rate(folder: str, nbytes: int, n_processes: int) -> float:
    """Return bytes a second that so many processes write together."""
    from concurrent.futures import ProcessPoolExecutor

    n_files = 16
    with ProcessPoolExecutor(n_processes) as pool:
        list(pool.map(int, range(n_processes)))
        start = time.perf_counter()
        paths = [os.path.join(folder, f"rate-{n}") for n in range(n_processes)]
        list(pool.map(_write_files, paths, [nbytes] * n_processes, [n_files] * n_processes))
        took = time.perf_counter() - start
    return n_processes * n_files * (max(nbytes >> 20, 1) << 20) / took


def _scheduling(n_tasks: int = 4096) -> tuple[float, dict[str, Any]]:
    """Return the scheduler's time a task, from tasks that do nothing; and such runs to check."""
    import dask.array as da
    import numpy as np
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
            edge = round(n_tasks ** (1 / 3))
            best = []
            for _ in range(3):
                work = da.map_blocks(
                    _nothing, chunks=((1,) * edge,) * 3, dtype="u1",
                    meta=np.empty((0,) * 3, "u1"), name=f"nothing-{time.monotonic_ns()}",
                )  # fmt: skip
                start = time.perf_counter()
                future = client.compute(list(work.to_delayed().ravel()), sync=False)
                client.gather(future)
                best.append((time.perf_counter() - start) / edge**3)
            return min(best[1:])

    few, many = run(4, processes=False), run(64, processes=False)
    apart = run(2, processes=True)
    return apart, {"in_process_4": few, "in_process_64": many, "processes_2": apart}


def _nothing() -> Any:
    import numpy as np

    return np.zeros((1, 1, 1), "u1")


def check(figures: Figures, facts: dict[str, Any]) -> list[str]:
    """Return lines of the table: what was measured beside what is predicted."""
    n_shards = facts["n_shards"]
    lines = ["| run | measured | predicted | predicted / measured |", "| --- | --- | --- | --- |"]

    def line(name: str, seen: float, said: float, unit: str) -> None:
        lines.append(f"| {name} | {seen:.3g} {unit} | {said:.3g} {unit} | {said / seen:.2f} |")

    # Its own times of building are in the measured ones; they are small for 64 shards.
    for n, key in ((1, "one_s"), (2, "two_s")):
        line(f"{n_shards} shards, {n} worker(s)", statistics.median(facts[key]),
             simulate(figures, n_shards, n).wall_s, "s")  # fmt: skip
    idle = facts["idle"]
    few = idle["in_process_4"]
    nothing = replace(figures, compute_s=0.0, write_nbytes=0, schedule_s=few, build_s=0,
                      take_in_s=0, commit_s=0)  # fmt: skip
    said = simulate(nothing, 4096, 64).wall_s / 4096
    line("a task that does nothing, 64 workers in one process (4 measured first)",
         idle["in_process_64"] * 1e3, said * 1e3, "ms")  # fmt: skip
    return lines


def predictions(figures: Figures) -> list[str]:
    """Return lines of the table: wall time and efficiency, past this machine."""
    # Shards of 512^3 uint16 that compress to two thirds; a parallel file system and its network.
    scale = 512**3 * 2 / (figures.write_nbytes / 0.66)
    cluster = replace(
        figures, compute_s=figures.compute_s * scale, read_nbytes=512**3 * 2,
        write_nbytes=0.66 * 512**3 * 2, file_system=20e9, node_network=12.5e9,
        failures_a_worker_hour=1e-4,
    )  # fmt: skip
    lines = ["| volume | shards | " + " | ".join(f"{n:,}" for n in _WORKERS) + " |",
             "| --- " * (len(_WORKERS) + 2) + "|"]  # fmt: skip
    for nbytes, name in _VOLUMES:
        n_tasks = max(1, round(nbytes / (512**3 * 2)))
        cells = []
        for n_workers in _WORKERS:
            found = simulate(cluster, n_tasks, n_workers)
            cells.append(f"{_duration(found.wall_s)}, {found.efficiency:.0%}, {found.bottleneck}")
        lines.append(f"| {name} | {n_tasks:,} | " + " | ".join(cells) + " |")
    return lines


_WORKERS = (1, 2, 16, 64, 256, 1024, 4096)
_VOLUMES = ((100e9, "100 GB"), (1e12, "1 TB"), (10e12, "10 TB"), (100e12, "100 TB"), (1e15, "1 PB"))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__)
    parser.add_argument("--folder", default=None, help="where to write; a RAM disk by default")
    parser.add_argument("--size", type=int, default=1024, help="edge of the volume of the checks")
    options = parser.parse_args()
    parent = options.folder or ("/dev/shm" if os.path.isdir("/dev/shm") else None)
    folder = tempfile.mkdtemp(prefix="ctlab-zarr-bench-", dir=parent)
    try:
        figures, facts = measured(folder, options.size)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("Figures: " + json.dumps({k: round(v, 6) for k, v in asdict(figures).items()}) + "\n")
    print(f"Writing alone: one process {facts['written_by_one'] / 1e9:.2f} GB/s, two together "
          f"{facts['written_by_two'] / 1e9:.2f} GB/s\n")  # fmt: skip
    print("\n".join(check(figures, facts)) + "\n")
    print("\n".join(predictions(figures)))


if __name__ == "__main__":
    main()
