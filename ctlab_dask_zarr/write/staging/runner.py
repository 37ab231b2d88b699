"""Who runs a write, whether it still does, and how to go on where it does not.

``plan.json`` names the process that began or resumed the write. While that process waits for the
shards, it renews the file's time; when it stops, it leaves a note of why. Both are for people: no
write depends on them.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from ctlab_dask_zarr.errors import (
    DestinationExistsError,
    InvalidArgumentError,
    StagingExistsError,
    WriteStoppedError,
)
from ctlab_dask_zarr.formats.json_values import json_object_or_empty
from ctlab_dask_zarr.store.destination import Destination
from ctlab_dask_zarr.store.staging_plan import STAGED_PLAN
from ctlab_dask_zarr.store.store import Store
from ctlab_dask_zarr.text import shown

#: Seconds between two signs of life, and after how many without one a write counts as stopped.
_SIGN_INTERVAL_S = 15.0
_SILENCE_S = 120.0
#: Seconds after its end in which a run may still finish shards that were under way.
_FINISHING_S = 30.0
#: Beside the pieces of the write: why its latest run ended.
_NOTE = "stopped.json"
#: Commands that take --resume.
_RESUMED = ("convert", "pyramid", "add-labels")


@dataclass(frozen=True)
class Runner:
    """The process that runs a write: where it is, and the command that it was given, if any."""

    host: str
    pid: int
    job: str = ""
    folder: str = ""
    command: str = ""

    @classmethod
    def here(cls) -> Runner:
        """Return this process."""
        job = os.environ.get("SLURM_JOB_ID") or os.environ.get("PBS_JOBID") or ""
        try:
            folder = os.getcwd()
        except OSError:
            folder = ""
        return cls(socket.gethostname(), os.getpid(), job, folder, _command(sys.argv))

    @classmethod
    def from_json(cls, kept: Any) -> Runner | None:
        """Return what a plan says; None where it does not say it as this package does."""
        if not isinstance(kept, dict):
            return None
        try:
            found = cls(**{field.name: kept[field.name] for field in fields(cls)})
        except KeyError:
            return None
        texts = (found.host, found.job, found.folder, found.command)
        is_right = isinstance(found.pid, int) and all(isinstance(text, str) for text in texts)
        return found if is_right else None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}{self.job and f' (job {self.job})'}"

    def has_ended(self) -> bool:
        """Whether it is a process of this machine that is there no more."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:
            return False
        return False

    def how_to_go_on(self) -> str:
        """Return the command that goes on with the write, or what to do in Python."""
        if not self.command:
            return "the same call with resume=True"
        words = shlex.split(self.command)
        if words[1] in _RESUMED:
            words = [word for word in words if word not in ("--resume", "--restart")]
            words.append("--resume")
        return f"{shlex.join(words)}{self.folder and f'   (in {self.folder})'}"


def _command(words: list[str]) -> str:
    """Return the command of this process as a shell takes it; empty where it is another program."""
    program = words[0] if words else ""
    if os.path.basename(program) == "dask" and words[1:2] == ["ctlab-zarr"]:
        words = words[1:]
    elif not program.endswith(("ctlab-zarr", os.path.join("cli", "__main__.py"))):
        return ""
    # What a URL signs is left out.
    return shown(shlex.join(["ctlab-zarr", *words[1:]])) if len(words) > 1 else ""


@dataclass(frozen=True)
class RunState:
    """Whether a write is being run: since when, by whom, and why not.

    ``since_s`` is in seconds since the epoch.
    """

    state: Literal["running", "stopped", "unknown"]
    since_s: float | None = None
    why: str = ""
    runner: Runner | None = None


@contextmanager
def signs_of_life(destination: Destination, run_id: str) -> Iterator[None]:
    """Renew the time of the plan while a run goes on, and leave a note of why it has stopped."""
    plan = os.path.join(destination.staging, STAGED_PLAN)
    is_over = threading.Event()

    def renew() -> None:
        while not is_over.wait(_SIGN_INTERVAL_S):
            # The folder is gone once the write is committed; and others may own the file.
            with suppress(OSError):
                os.utime(plan)

    if destination.can_rename:
        threading.Thread(target=renew, name="signs of life", daemon=True).start()
    try:
        yield
    except BaseException as error:
        is_over.set()
        if destination.can_rename:
            # The note is the least that is wrong now.
            with suppress(Exception):
                _leave_note(destination, run_id, error)
        raise
    finally:
        is_over.set()


def _leave_note(destination: Destination, run_id: str, error: BaseException) -> None:
    if isinstance(error, InvalidArgumentError | StagingExistsError | DestinationExistsError):
        # It was refused, and has stopped nothing.
        return
    plan = destination.staged_plan()
    is_mine = plan.get("run_id") == run_id or plan.get("n_parts") is not None
    if not is_mine or destination.is_staging_committed():
        return
    why = "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
    if isinstance(error, WriteStoppedError):
        why = str(error).partition(":")[0]
    elif not isinstance(error, KeyboardInterrupt) and str(error):
        # Not the advice that follows: whoever reads the note gets advice of their own.
        why = f"{why}: {str(error).splitlines()[0].partition('. ')[0]}"
    note = {
        "run_id": plan.get("run_id"),
        "at_s": time.time(),
        "why": shown(why),
        "runner": asdict(Runner.here()),
    }
    _pieces(destination, plan).put(_NOTE, json.dumps(note).encode())


def _pieces(destination: Destination, plan: dict[str, Any]) -> Store:
    return destination.staged("pieces", str(plan["staging_id"]))


def run_state(destination: Destination, latest_s: float | None = None) -> RunState:
    """Return whether the write that is staged for a destination is being run.

    `latest_s` is when its latest shard was finished, in seconds since the epoch.
    """
    try:
        return _run_state(destination, latest_s or 0.0)
    except FileNotFoundError:
        # It was committed or removed meanwhile.
        return RunState("unknown")


def _run_state(destination: Destination, latest_s: float) -> RunState:
    plan = destination.staged_plan()
    runner: Runner | None = Runner.from_json(plan.get("runner"))
    if not plan or runner is None:
        return RunState("unknown")
    note = _note(destination, plan)
    if note is not None:
        at_s = float(note["at_s"])
        if latest_s <= at_s + _FINISHING_S:
            left = Runner.from_json(note.get("runner")) or runner
            return RunState("stopped", at_s, str(note.get("why", "")), left)
        why = "its workers write on, though the process that began it has stopped"
        return RunState("running", latest_s, why, runner)
    if not destination.can_rename:
        # Nobody renews anything in an object store.
        return RunState("unknown", runner=runner)
    sign_s = _sign_s(destination)
    if plan.get("n_parts") is not None:
        # Each job renews the time, and the plan names the one that came first.
        runner = None
    elif runner.has_ended():
        if latest_s > sign_s + _FINISHING_S + _SIGN_INTERVAL_S:
            why = "its workers write on, though the process that began it has ended"
            return RunState("running", latest_s, why, runner)
        return RunState("stopped", max(sign_s, latest_s), "its process has ended", runner)
    sign_s = max(sign_s, latest_s)
    if time.time() - sign_s < _SILENCE_S:
        return RunState("running", sign_s, "", runner)
    return RunState("stopped", sign_s, "no sign of life since", runner)


def _note(destination: Destination, plan: dict[str, Any]) -> dict[str, Any] | None:
    """Return the note of the run that the plan names, if there is one that can be read."""
    if "staging_id" not in plan:
        return None
    try:
        note = json_object_or_empty(_pieces(destination, plan).get(_NOTE).decode())
    except (OSError, ValueError):
        return None
    if note.get("run_id") != plan.get("run_id") or not isinstance(note.get("at_s"), float):
        return None
    # Where jobs share a write, another one may run on.
    is_outlived = plan.get("n_parts") is not None and _sign_s(destination) > note["at_s"]
    return None if is_outlived else note


def _sign_s(destination: Destination) -> float:
    return destination.files.stat(os.path.join(destination.staging, STAGED_PLAN))[1]
