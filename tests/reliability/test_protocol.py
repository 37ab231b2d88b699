"""The protocol of a write, proven on a file system in memory.

A write, a resume, an overwrite, parts and their commit, levels and labels added later are stopped
before every single effect, with losses of every kind that a crash may bring, and two writers are
interleaved. After each such history a reader sees the old dataset whole, the new one whole, or
none, and the next call gets through.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from ctlab_dask_zarr import DestinationExistsError, IncompleteDatasetError
from ctlab_dask_zarr.api.preparing import analysed_source, plan_dataset
from ctlab_dask_zarr.codec.downsample import halve
from ctlab_dask_zarr.codec.region import read_region
from ctlab_dask_zarr.formats.zarr_array import parse_array_document
from ctlab_dask_zarr.planning.plan import WritePlan
from ctlab_dask_zarr.planning.resolve import WriteOptions
from ctlab_dask_zarr.read.zarr import read_store_metadata
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.hierarchy import read_json_object, read_ome
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.write.coarser import write_coarser
from ctlab_dask_zarr.write.extend import images_to_extend, level_request, plan_labels
from ctlab_dask_zarr.write.shards.array import LazyBlock
from ctlab_dask_zarr.write.staging.commit import commit, refuse_missing
from ctlab_dask_zarr.write.staging.remaining import all_tasks, find_remaining, part_of
from ctlab_dask_zarr.write.staging.request import StageRequest
from ctlab_dask_zarr.write.staging.stage import open_staged, stage
from ctlab_dask_zarr.write.staging.staged import StagedWrite
from tests.builders import make_dataset, random_voxels
from tests.reliability.fake_files import Died, FakeFiles, Interleaved

PATH = "/data/a.zarr"
NEW = random_voxels((8, 8, 16))
OLD = NEW + 1000
LABELS = (NEW % 3).astype("uint8")
LABELS_PATH = f"{PATH}/labels/phases"
#: Of losses that are drawn by chance, at every moment.
N_SAMPLED = 4
OPTIONS: dict[str, Any] = {
    "chunks": (8, 8, 8),
    "shards": (8, 8, 8),
    "create_array_kwargs": {"compressors": None},
    "levels": 2,
}


def _plan(voxels: np.ndarray, **changes: Any) -> WritePlan:
    dataset = make_dataset(voxels, 8)
    options = WriteOptions(**(OPTIONS | changes))
    return plan_dataset(dataset, "/nowhere/a.zarr", options, analysed_source(dataset))


def _labels_plan() -> WritePlan:
    return plan_labels(_plan(LABELS, downsample="mode"), PATH, "phases", None)


VOXELS = {"old": OLD, "new": NEW, "one level": NEW, "labels": LABELS}
REQUESTS = {
    name: StageRequest.of(plan)
    for name, plan in (
        ("old", _plan(OLD)),
        ("new", _plan(NEW)),
        ("one level", _plan(NEW, levels=1)),
        ("labels", _labels_plan()),
    )
}
LEVELS = REQUESTS["new"].levels
_runs = iter(range(10**9))


def request(files: FakeFiles, which: str = "new", **changes: Any) -> StageRequest:
    destination = Destination(PATH, files)
    if which == "labels":
        destination = Destination(LABELS_PATH, files, labels_of=PATH)
    return replace(REQUESTS[which], destination=destination, run_id=run_id(), **changes)


def run_id() -> str:
    return f"{next(_runs):032x}"


def write_shards(staged: StagedWrite, tasks: Any, voxels: np.ndarray) -> None:
    for task in tasks:
        if task.level:
            staged.record(write_coarser(staged, task))
            continue
        x = task.coords[2]
        block = voxels[:, :, 8 * x : 8 * x + 8]
        lazy = LazyBlock((0, 0, 8 * x), block.shape, lambda block=block: block)
        staged.record(staged.write(0, [task.coords], [lazy]))


def write_rest(staged: StagedWrite, tasks: Any, voxels: np.ndarray) -> None:
    remaining = find_remaining(staged, tasks)
    staged.record(remaining.found)
    write_shards(staged, remaining.tasks, voxels)


def write(files: FakeFiles, which: str = "new", **changes: Any) -> None:
    """What `dataset_to_zarr` does, without dask."""
    staged = stage(request(files, which, **changes))
    if not staged.is_committed:
        write_rest(staged, all_tasks(staged.request.levels), VOXELS[which])
    commit(staged)


def add_levels(files: FakeFiles, *, resume: bool = False, restart: bool = False) -> None:
    """What `add_levels` does, without dask."""
    metadata = read_store_metadata(PATH, files)
    levels, lacking = images_to_extend(metadata, 2)
    if (resume or restart) and not lacking:
        return
    staged = stage(
        level_request(metadata, levels, None, labels_of=None, resume=resume, restart=restart)
    )
    write_rest(staged, all_tasks(LEVELS, first=1), NEW)
    commit(staged)


def add_levels_anew(files: FakeFiles) -> None:
    """What a user does who does not want to go on, and may be told that there is no way back."""
    with suppress(DestinationExistsError):
        return add_levels(files, restart=True)
    return add_levels(files, resume=True)


def write_part(files: FakeFiles, part: int) -> None:
    staged = stage(request(files, n_parts=2))
    finest = all_tasks(LEVELS[:1])
    mine = [task for task in finest if part_of(task.coords, LEVELS[0].layout, 2) == part]
    write_rest(staged, mine, NEW)


def commit_parts(files: FakeFiles) -> None:
    """What `commit` does."""
    destination = Destination(PATH, files)
    destination.finish_interrupted_replacement()
    if destination.staged_plan() or not destination.committed():
        staged = open_staged(destination)
        refuse_missing(staged, staged.recorded(staged.sizes()), staged.level_keys(0))
        write_rest(staged, all_tasks(LEVELS, first=1), NEW)
        commit(staged)


def whole(store: Store, path: str, document: str) -> np.ndarray:
    array = parse_array_document(document)
    return read_region(store, path, array, tuple(slice(0, n) for n in array.shape), strict=True)


def seen(files: FakeFiles, path: str = PATH) -> str:
    """What a reader sees: none, or the name of the voxels; anything else fails."""
    if files.kind(f"{path}/zarr.json") is None:
        assert files.kind(f"{path}/0/zarr.json") is None, "an array without its store"
        return "none"
    store = Store(path, files)
    paths = [level["path"] for level in read_ome(files, path)["multiscales"][0]["datasets"]]
    voxels = [whole(store, p, store.get(f"{p}/zarr.json").decode()) for p in paths]
    for name, wanted in WANTED.items():
        if len(wanted) == len(voxels) and all(map(np.array_equal, voxels, wanted)):
            return name
    raise AssertionError("a mixture")


WANTED = {
    "old": [OLD, halve(OLD, LEVELS[1].factors, "mean", 65535)],
    "new": [NEW, halve(NEW, LEVELS[1].factors, "mean", 65535)],
    "one level": [NEW],
    "labels": [LABELS, halve(LABELS, LEVELS[1].factors, "mode", None)],
}


def seen_labels(files: FakeFiles) -> str:
    """What a reader sees of the labels: none or all; their image is always there."""
    assert seen(files) == "one level"
    state = seen(files, LABELS_PATH)
    listed = read_json_object(files, f"{PATH}/labels/zarr.json")
    if listed:
        assert listed["attributes"]["ome"]["labels"] == ["phases"]
        assert state == "labels"
    return state


def empty() -> FakeFiles:
    files = FakeFiles()
    files.make_folder("/data")
    files._settle()
    files.n_effects = 0
    return files


def with_old(which: str = "old") -> FakeFiles:
    files = empty()
    write(files, which)
    return _quiet(files)


def interrupted() -> FakeFiles:
    files = empty()
    staged = stage(request(files))
    write_shards(staged, list(all_tasks(LEVELS))[:1], NEW)
    return _quiet(files)


def _quiet(files: FakeFiles) -> FakeFiles:
    files._settle()
    files.n_effects = 0
    return files


def _parts(files: FakeFiles) -> None:
    write_part(files, 1)
    write_part(files, 2)
    commit_parts(files)


class Scenario(NamedTuple):
    """What is there before, what is done, what is done after a crash, and what readers may see.

    The last of these is what they see in the end.
    """

    prepare: Callable[[], FakeFiles]
    act: Callable[[FakeFiles], None]
    go_on: Callable[[FakeFiles], None]
    allowed: tuple[str, ...]
    see: Callable[[FakeFiles], str] = seen


SCENARIOS = {
    "write": Scenario(empty, write, lambda f: write(f, resume=True), ("none", "new")),
    "resume": Scenario(
        interrupted,
        lambda f: write(f, resume=True),
        lambda f: write(f, resume=True),
        ("none", "new"),
    ),
    "overwrite": Scenario(
        with_old,
        lambda f: write(f, overwrite=True),
        lambda f: write(f, overwrite=True, resume=True),
        ("none", "old", "new"),
    ),
    "the same anew": Scenario(
        lambda: with_old("new"),
        lambda f: write(f, overwrite=True),
        lambda f: write(f, overwrite=True, resume=True),
        ("none", "new"),
    ),
    "restart": Scenario(
        interrupted,
        lambda f: write(f, restart=True),
        lambda f: write(f, resume=True),
        ("none", "new"),
    ),
    "parts": Scenario(empty, _parts, _parts, ("none", "new")),
    "levels": Scenario(
        lambda: with_old("one level"),
        add_levels,
        lambda f: add_levels(f, resume=True),
        ("one level", "new"),
    ),
    "levels, then anew": Scenario(
        lambda: with_old("one level"),
        add_levels,
        add_levels_anew,
        ("one level", "new"),
    ),
    "labels": Scenario(
        lambda: with_old("one level"),
        lambda f: write(f, "labels"),
        lambda f: write(f, "labels", resume=True),
        ("none", "labels"),
        seen_labels,
    ),
}


#: Each moment takes minutes, and is for who has them; every seventh is another effect each time.
MOMENTS = pytest.mark.parametrize(
    "step",
    [pytest.param(1, id="each moment", marks=pytest.mark.slow), pytest.param(7, id="some moments")],
)


@MOMENTS
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_whatever_is_lost_at_whatever_moment_no_reader_sees_a_half_and_the_next_call_succeeds(
    scenario: str, step: int
) -> None:
    prepare, act, go_on, allowed, see = SCENARIOS[scenario]
    whole = prepare()
    act(whole)
    n_effects = whole.n_effects
    assert n_effects > 20
    assert see(whole) == allowed[-1]
    n_histories = 0
    moments = range(0, n_effects, step)
    for number in moments:
        files = prepare()
        files.die_at(number)
        with pytest.raises(Died):
            act(files)
        for lost, after in files.crashes(N_SAMPLED):
            place = f"{scenario}, died before effect {number}, lost {lost}"
            state = see(after)
            assert state in allowed, place
            try:
                go_on(after)
            except DestinationExistsError:
                # A part that is written again after the commit.
                assert (scenario, state) == ("parts", "new"), place
            assert see(after) == allowed[-1], place
            if "levels" in scenario and state == "new":
                # Where all levels are there, nothing is left to go on with: the next write tidies.
                write(after, overwrite=True)
            assert [name for name, _ in after.entries("/data")] == ["a.zarr"], place
            # But of the list of labels, which several writers may be putting at this moment.
            left = [n for n in _tree(after, PATH) if n.endswith(".partial")]
            assert not [n for n in left if not n.startswith(f"{PATH}/labels/.zarr.json")], place
            n_histories += 1
    assert n_histories > (3 + N_SAMPLED) * len(moments)


def _tree(files: FakeFiles, folder: str) -> list[str]:
    found = []
    for name, kind in files.entries(folder):
        path = f"{folder}/{name}"
        found += _tree(files, path) if kind == "folder" else [path]
    return found


def test_after_the_commit_nothing_can_be_lost() -> None:
    for name, (prepare, act, _, allowed, see) in SCENARIOS.items():
        files = prepare()
        act(files)
        for lost, after in files.crashes(20):
            assert see(after) == allowed[-1], f"{name}, lost {lost}"


def test_levels_that_another_writer_removes_at_the_moment_of_the_commit_are_not_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the last look at the receipts and the first effect, which no interleaving hits."""
    files = with_old("one level")
    read = FakeFiles.read
    are_receipts_read = False

    def remove_first(self: FakeFiles, path: str, *limit: int) -> bytes:
        nonlocal are_receipts_read
        if are_receipts_read and path == f"{PATH}/zarr.json":
            monkeypatch.undo()
            Destination(PATH, files).discard_staging()
        are_receipts_read |= "/receipts-" in path
        return read(self, path, *limit)

    monkeypatch.setattr(FakeFiles, "read", remove_first)
    with pytest.raises(IncompleteDatasetError, match="removed by another write"):
        add_levels(files)
    assert seen(files) == "one level"
    add_levels(files, resume=True)
    assert seen(files) == "new"


def test_a_shard_that_is_there_whole_is_not_written_again_after_a_kill() -> None:
    whole = empty()
    write(whole)
    for number in range(whole.n_effects):
        files = empty()
        files.die_at(number)
        with pytest.raises(Died):
            write(files)
        after = dict(files.crashes())["nothing"]
        before = _shards(after)
        write(after, resume=True)
        # The very same file, not another with the same bytes.
        assert all(node in _shards(after) for node in before)


def _shards(files: FakeFiles) -> list[Any]:
    found = []
    todo = [files.root]
    while todo:
        for name, node in todo.pop().names.items():
            if node.is_folder:
                todo.append(node)
            elif name.startswith("c.") and name.count(".") == 3:
                found.append(node)
    return found


#: What two writers may do at once: (what is there, one, the other).
PAIRS: dict[str, tuple[Callable[[], FakeFiles], Any, Any]] = {
    "two writes": (empty, write, write),
    "of other voxels": (empty, write, lambda f: write(f, "old")),
    "write and resume": (empty, write, lambda f: write(f, resume=True)),
    "write and restart": (empty, write, lambda f: write(f, "old", restart=True)),
    "two overwrites": (
        with_old,
        lambda f: write(f, overwrite=True),
        lambda f: write(f, overwrite=True),
    ),
    "overwrite and resume": (
        with_old,
        lambda f: write(f, overwrite=True),
        lambda f: write(f, overwrite=True, resume=True),
    ),
    "the same part twice": (empty, lambda f: write_part(f, 1), lambda f: write_part(f, 1)),
    "two resumes": (
        interrupted,
        lambda f: write(f, resume=True),
        lambda f: write(f, resume=True),
    ),
    "levels and resume": (
        lambda: with_old("one level"),
        add_levels,
        lambda f: add_levels(f, resume=True),
    ),
    "levels and restart": (
        lambda: with_old("one level"),
        add_levels,
        lambda f: add_levels(f, restart=True),
    ),
}


@MOMENTS
@pytest.mark.parametrize("pair", PAIRS)
def test_of_two_writers_at_once_nobody_ever_sees_a_mixture(pair: str, step: int) -> None:
    prepare, one, other = PAIRS[pair]
    alone = prepare()
    one(alone)
    n_effects = alone.n_effects
    rng = np.random.default_rng(0)
    switches = [(n,) for n in range(1, n_effects + 1)]
    switches += [tuple(sorted(rng.integers(1, 2 * n_effects, 4))) for _ in range(150)]
    for at in switches[::step]:
        files = prepare()
        errors = Interleaved(files, at).run((one, other))
        place = f"{pair}, switched at {at}: {errors}"
        assert not [e for e in errors if isinstance(e, AssertionError)], place
        state = seen(files)
        if "part" in pair:
            assert errors == [None, None], place
            write_part(files, 2)
            commit_parts(files)
            assert seen(files) == "new", place
            continue
        # Whoever was told that it wrote has; and where both failed, the next one gets through.
        assert None in errors or state in ("none", "old", "one level"), place
        if None in errors and pair not in ("of other voxels", "write and restart"):
            assert state == "new", place
        write(files, restart=True, overwrite=True)
        assert seen(files) == "new", place
        assert [name for name, _ in files.entries("/data")] == ["a.zarr"], place
