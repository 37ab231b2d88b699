"""A discrete-event simulation of a write: tasks, and the queues that they stand in.

A task waits for the scheduler, which serves one after the other; a worker then computes for a
while, which varies, and reads and writes through a file system that all share, its server of
metadata, and the network. A worker may fail: its task is done again elsewhere, and a new worker
comes. Before, the client builds the graph and the scheduler takes it in; afterwards the commit
names every shard.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

#: Of more groups, the steady state is taken of so many that there are at least as many tasks, and
#: first tasks for each worker. Of more tasks of a stage in a group, several are simulated as one.
_LEAST_TASKS, _LEAST_A_WORKER, _MOST_IN_A_GROUP = 10_000, 16, 512
#: What is busy for less than this part of the time is not what the others wait for.
_BUSY = 0.5


@dataclass(frozen=True)
class Machine:
    """What tasks share; bytes a second, seconds.

    Attributes
    ----------
    schedule_s
        Of the scheduler, a task.
    build_s, take_in_s, commit_s
        Of client, scheduler and commit, a task, before and after everything else.
    file_system, node_network
        Bandwidth that all share, and that of one node.
    call_s, answer_s
        How long the server of metadata is busy with a call, and how long the answer takes.
    workers_a_node
        That share its network.
    spread
        Of the time that tasks compute: relative standard deviation.
    failures_a_worker_hour, replace_s
        How often a worker is lost, and how long it takes until another is there.
    """

    schedule_s: float
    build_s: float = 0.065e-3
    take_in_s: float = 0.15e-3
    commit_s: float = 0.02e-3
    file_system: float = 20e9
    node_network: float = 12.5e9
    call_s: float = 50e-6
    answer_s: float = 1e-3
    workers_a_node: int = 48
    spread: float = 0.1
    failures_a_worker_hour: float = 1e-4
    replace_s: float = 60.0


@dataclass(frozen=True)
class Stage:
    """Tasks of a kind in a group: how many, and what each needs, in seconds and bytes.

    `n_calls` are to the file system's metadata; `moved_nbytes` go from worker to worker;
    `n_scheduled` is for how many tasks of dask it stands.
    """

    n_tasks: int
    compute_s: float
    file_nbytes: float = 0
    moved_nbytes: float = 0
    n_calls: float = 0
    n_scheduled: float = 1


@dataclass(frozen=True)
class Work:
    """Equal groups of stages; a stage begins when the one before it is done in its group.

    `useful_s` is how long one core computes for what nobody can leave out.
    """

    n_groups: int
    stages: tuple[Stage, ...]
    useful_s: float

    @property
    def n_scheduled(self) -> float:
        return self.n_groups * sum(stage.n_tasks * stage.n_scheduled for stage in self.stages)


@dataclass(frozen=True)
class Outcome:
    """Wall time in seconds, share of the workers' time that was useful, and what was busiest."""

    wall_s: float
    efficiency: float
    busiest: str


def simulate(machine: Machine, work: Work, n_workers: int, seed: int = 0) -> Outcome:
    """Run the work on so many cores.

    Examples
    --------
    >>> slow_scheduler = Machine(schedule_s=0.1, spread=0)
    >>> shards = Work(1000, (Stage(1, compute_s=1.0),), useful_s=1000)
    >>> simulate(slow_scheduler, shards, 1).busiest, simulate(slow_scheduler, shards, 100).busiest
    ('cores', 'scheduler')
    >>> simulate(slow_scheduler, Work(4, shards.stages, 4), 100).busiest
    'too few tasks'
    """
    stages = tuple(map(_bundled, work.stages))
    enough = _LEAST_TASKS / sum(stage.n_tasks for stage in stages)
    enough = max(enough, _LEAST_A_WORKER * n_workers / stages[0].n_tasks)
    n_groups = min(work.n_groups, math.ceil(enough))
    run = _Run(machine, stages, n_groups, n_workers, random.Random(seed))
    end_s = run.until_done()
    run_s = end_s * work.n_groups / n_groups
    serial_s = work.n_scheduled * (machine.build_s + machine.take_in_s + machine.commit_s)
    wall_s = run_s + serial_s
    used = {name: seconds / end_s for name, seconds in run.busy.items()}
    used["cores"] /= n_workers
    busiest = max(used, key=used.__getitem__)
    if used[busiest] < _BUSY:
        busiest = "too few tasks"
    if serial_s > run_s:
        busiest = "client and commit"
    return Outcome(wall_s, work.useful_s / (wall_s * n_workers), busiest)


def _bundled(stage: Stage) -> Stage:
    """Return the stage with several tasks as one, where there are very many of them."""
    size = math.ceil(stage.n_tasks / _MOST_IN_A_GROUP)
    return Stage(
        math.ceil(stage.n_tasks / size), stage.compute_s * size, stage.file_nbytes * size,
        stage.moved_nbytes * size, stage.n_calls * size, stage.n_scheduled * size,
    )  # fmt: skip


class _Run:
    """The queues of one simulation; each serves at its full rate, one after the other."""

    def __init__(
        self,
        machine: Machine,
        stages: Sequence[Stage],
        n_groups: int,
        n_workers: int,
        rng: random.Random,
    ) -> None:
        self.machine, self.stages, self.rng = machine, stages, rng
        n_nodes = max(1, math.ceil(n_workers / machine.workers_a_node))
        self.network = machine.node_network * n_nodes
        self.free_s = dict.fromkeys(("scheduler", "file system", "network", "metadata"), 0.0)
        self.busy = dict.fromkeys(("cores", *self.free_s), 0.0)
        self.workers = [(0.0, worker) for worker in range(n_workers)]
        order = count()
        #: (begins, order, stage, group): stages of groups that may begin.
        self.ready = [(0.0, next(order), 0, group) for group in range(n_groups)]
        self.order = order
        self.sigma = math.sqrt(math.log1p(machine.spread**2))

    def until_done(self) -> float:
        #: Tasks of the stage of a group that are left, and when the last of the others ends.
        left: dict[tuple[int, int], list[float]] = {}
        end_s = 0.0
        # What was begun first ends first, as dask orders tasks: later stages before new groups.
        later: list[tuple[float, int, int, int]] = []
        while self.ready or later:
            now_s, worker = heapq.heappop(self.workers)
            is_new = not later or (bool(self.ready) and later[0][0] > now_s)
            queue = self.ready if is_new else later
            begins_s, order, stage, group = queue[0]
            if begins_s > now_s:
                heapq.heappush(self.workers, (begins_s, worker))
                continue
            done_s = self._done_s(self.stages[stage], now_s)
            if done_s is None:
                lost_s = now_s + self.machine.replace_s
                heapq.heappush(self.workers, (lost_s, worker))
                continue
            heapq.heappush(self.workers, (done_s, worker))
            end_s = max(end_s, done_s)
            state = left.setdefault((stage, group), [self.stages[stage].n_tasks, 0.0])
            state[0] -= 1
            state[1] = max(state[1], done_s)
            if not state[0]:
                del left[stage, group]
                heapq.heappop(queue)
                if stage + 1 < len(self.stages):
                    heapq.heappush(later, (state[1], order, stage + 1, group))
        return end_s

    def _done_s(self, stage: Stage, now_s: float) -> float | None:
        """Return when a task that is begun now is done; None if its worker is lost before."""
        machine = self.machine
        start_s = self._served("scheduler", now_s, stage.n_scheduled * machine.schedule_s)
        sigma = self.sigma
        compute_s = stage.compute_s * self.rng.lognormvariate(-(sigma**2) / 2, sigma)
        done_s = start_s + compute_s + stage.n_calls * machine.answer_s
        # Every worker reads, computes and writes in turn, as others do meanwhile: a task is done
        # when it has had the time for all of it, and what was asked for so far has been served.
        for name, seconds in (
            ("file system", stage.file_nbytes / machine.file_system),
            ("network", (stage.file_nbytes + stage.moved_nbytes) / self.network),
            ("metadata", stage.n_calls * machine.call_s),
        ):
            done_s = max(done_s + seconds, self._served(name, start_s, seconds))
        hazard = machine.failures_a_worker_hour / 3600
        if hazard and self.rng.random() < -math.expm1(-hazard * (done_s - start_s)):
            return None
        self.busy["cores"] += compute_s
        return done_s

    def _served(self, name: str, from_s: float, seconds: float) -> float:
        self.free_s[name] = max(self.free_s[name], from_s) + seconds
        self.busy[name] += seconds
        return self.free_s[name]
