"""Two processes that write to one destination at the same moment."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask.callbacks import Callback

from ctlab_dask_zarr import CTLabError, IncompleteDatasetError, dataset_from_zarr
from tests.reliability.faults import contents, everything, staged_objects, wait_until
from tests.reliability.writer import VOXELS, Job, Outcome, SlowArray, serve

#: How often each pair meets; more often finds more.
N_MEETINGS = 20
#: Of the source, for a block; a write has eight and takes some tens of milliseconds.
LONGEST_DELAY_S = 0.004

Race = Callable[[Path, Job, Job, float, float], tuple[Outcome, Outcome]]


@pytest.fixture(scope="module")
def race() -> Iterator[Race]:
    """Return a function that lets two processes write at the same moment."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    with ExitStack() as stack:
        ends = []
        for _ in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, barrier), daemon=True)
            process.start()
            stack.callback(process.join, 10)
            stack.callback(ours.send, None)
            ends.append(ours)

        def run(destination: Path, first: Job, second: Job, *delays_s: float) -> tuple:
            for end, job, delay_s in zip(ends, (first, second), delays_s, strict=True):
                end.send((job, destination, delay_s))
            for end in ends:
                assert end.poll(240), "a writer hangs"
            return tuple(end.recv() for end in ends)

        yield run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Job], dict[str, bytes]]:
    """Return a function that tells the files of a store which a job writes on its own."""
    folder = tmp_path_factory.mktemp("undisturbed")

    def files(job: Job) -> dict[str, bytes]:
        path = folder / f"{job.voxels}-{job.codec}.zarr"
        if not path.exists():
            job._replace(flags=()).write(path)
        return contents(path)

    return files


def interrupted(destination: Path, job: Job) -> None:
    """Leave the staging folder of a write that failed in its middle."""

    n_left = 5

    def fail_soon(*_: object) -> None:
        nonlocal n_left
        n_left -= 1
        if n_left == 0:
            raise OSError("the disk is on fire")

    with Callback(pretask=fail_soon), pytest.raises(CTLabError):
        job.write(destination)
    assert staged_objects(destination)


PAIRS = {
    "both plain": (Job("a"), Job("b")),
    "both plain, the same": (Job("a"), Job("a")),
    "both plain, other codecs": (Job("a"), Job("a", codec="gzip")),
    "both overwrite": (Job("a", ("overwrite",)), Job("b", ("overwrite",))),
    "both overwrite, the same": (Job("a", ("overwrite",)), Job("a", ("overwrite",))),
    "both overwrite, other codecs": (
        Job("a", ("overwrite",)),
        Job("a", ("overwrite",), codec="gzip"),
    ),
    "one resumes what the other is writing": (Job("a"), Job("a", ("resume",))),
    "one resumes another source": (Job("a"), Job("b", ("resume",))),
    "one resumes with another codec": (Job("a"), Job("a", ("resume",), codec="gzip")),
    "both resume": (Job("a", ("resume",)), Job("a", ("resume",))),
    "one restarts what the other is writing": (Job("a"), Job("a", ("restart",))),
    "one restarts with another source": (Job("a"), Job("b", ("restart",))),
    "both restart": (Job("a", ("restart",)), Job("a", ("restart",))),
    "both restart, other codecs": (Job("a", ("restart",)), Job("a", ("restart",), codec="gzip")),
    "one resumes, one restarts, both overwrite": (
        Job("a", ("overwrite", "resume")),
        Job("a", ("overwrite", "restart")),
    ),
}


def _meetings() -> Iterator[tuple[str, str]]:
    """Every pair, before whatever does not make both of them refuse at once."""
    for pair, jobs in PAIRS.items():
        flags = {flag for job in jobs for flag in job.flags}
        yield pair, "an old dataset" if "overwrite" in flags else "nothing"
        if any("restart" in j.flags or j == Job("a", ("resume",)) for j in jobs):
            yield pair, "an interrupted write"


@pytest.mark.parametrize(("pair", "before"), list(_meetings()))
def test_one_of_two_writers_wins_whole_and_the_other_says_so(
    pair: str,
    before: str,
    race: Race,
    undisturbed: Callable[[Job], dict[str, bytes]],
    tmp_path: Path,
) -> None:
    jobs = PAIRS[pair]
    chance = random.Random(f"{pair}, {before}")
    problems = []
    for meeting in range(N_MEETINGS):
        destination = tmp_path / f"{meeting}" / "scan.zarr"
        destination.parent.mkdir()
        if before == "an old dataset":
            Job("old").write(destination)
        elif before == "an interrupted write":
            interrupted(destination, jobs[0]._replace(flags=()))
        delays_s = [chance.uniform(0, LONGEST_DELAY_S) for _ in jobs]
        outcomes = race(destination, *jobs, *delays_s)
        problems += [
            f"{problem} (meeting {meeting}, {delays_s}, {outcomes})"
            for problem in _problems(destination, jobs, outcomes, undisturbed)
        ]
    assert not problems, f"in {len(problems)} of {N_MEETINGS} meetings: {problems[0]}"


def _problems(
    destination: Path,
    jobs: tuple[Job, Job],
    outcomes: tuple[Outcome, Outcome],
    undisturbed: Callable[[Job], dict[str, bytes]],
) -> Iterator[str]:
    for outcome in outcomes:
        if not outcome.is_expected:
            yield "an error that is not told"
        elif outcome.error and str(destination.parent) not in outcome.error:
            yield "an error that names neither the destination nor its staging folder"
    winners = [job for job, outcome in zip(jobs, outcomes, strict=True) if outcome.error is None]
    if not winners:
        yield "nobody won"
        return
    found = contents(destination)
    expected = [undisturbed(job) for job in winners]
    if found not in expected:
        missing = sorted(expected[0].keys() - found.keys())
        further = sorted(found.keys() - expected[0].keys())
        other = sorted(k for k in found.keys() & expected[0].keys() if found[k] != expected[0][k])
        yield f"not the store of a winner: {missing=}, {further=}, {other=}"
        return
    voxels = dataset_from_zarr(destination).data.compute()
    if not any((voxels == VOXELS[job.voxels]).all() for job in winners):
        yield "the voxels are not those of a winner"
    staging = {f".{destination.name}.staging"} if len(winners) < 2 else set()
    litter = {path.name for path in destination.parent.iterdir()} - {destination.name} - staging
    if litter:
        yield f"left behind: {sorted(litter)}"
    # Whatever the loser left, the next writer finds its way.
    following = Job("b", ("overwrite", "restart"), codec="gzip")
    following.write(destination)
    if contents(destination) != undisturbed(following):
        yield "the next write went wrong"
    if [path.name for path in destination.parent.iterdir()] != [destination.name]:
        yield f"left after the next write: {sorted(everything(destination.parent))}"


def test_a_writer_whose_shards_are_taken_before_the_levels_are_made_says_where(
    tmp_path: Path,
) -> None:
    destination = tmp_path / "scan.zarr"

    def take(key: Any, *_: object) -> None:
        if str(key).startswith("('downsample"):
            for folder in (*tmp_path.glob(".*/store-*/0"), *tmp_path.glob(".*/pieces-*/0")):
                shutil.rmtree(folder)

    with Callback(pretask=take), pytest.raises(IncompleteDatasetError) as error:
        Job("a").write(destination)
    assert str(tmp_path / ".scan.zarr.staging") in str(error.value)
    assert "another write has removed or committed it" in str(error.value)


class GatedArray(SlowArray):
    """Voxels that cannot be read any further, after some blocks, before a gate is opened."""

    def __init__(self, n_blocks: int) -> None:
        super().__init__("a", 0)
        self._n_left = n_blocks
        self.is_waiting = threading.Event()
        self.may_go_on = threading.Event()

    def __getitem__(self, region: Any) -> np.ndarray:
        if self._n_left == 0:
            self.is_waiting.set()
            assert self.may_go_on.wait(240)
        self._n_left -= 1
        return super().__getitem__(region)


@pytest.mark.parametrize("flag", ["restart", "resume"])
@pytest.mark.parametrize("n_blocks", [1, 3, 7])
def test_a_writer_whose_work_another_one_takes_over_commits_nothing_incomplete(
    flag: str, n_blocks: int, undisturbed: Callable[[Job], dict[str, bytes]], tmp_path: Path
) -> None:
    """The first stops after four shards, the second enters, the first goes on to its end."""
    destination = tmp_path / "scan.zarr"
    errors: list[Exception] = []

    def write(job: Job, voxels: GatedArray) -> None:
        try:
            job.write(destination, voxels=voxels)
        except Exception as error:
            errors.append(error)

    writers = []
    for job, voxels in (
        (Job("a"), GatedArray(4)),
        (Job("a", (flag,)), GatedArray(n_blocks)),
    ):
        thread = threading.Thread(target=write, args=(job, voxels))
        thread.start()
        # One that resumes has less to read, and may come to its end at once.
        wait_until(lambda v=voxels, t=thread: v.is_waiting.is_set() or not t.is_alive(), "a gate")
        writers.append((thread, voxels))
    for thread, voxels in writers:
        voxels.may_go_on.set()
        thread.join(240)
    assert len(errors) < 2, errors
    assert [error for error in errors if not isinstance(error, CTLabError)] == []
    assert sorted(contents(destination)) == sorted(undisturbed(Job("a")))
    assert contents(destination) == undisturbed(Job("a"))
    # What is left of the one that lost is no trap for the next one.
    Job("a", ("overwrite", "resume")).write(destination)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.zarr"]
