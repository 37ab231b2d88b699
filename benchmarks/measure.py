"""Interleaved runs in processes of their own, and what is said about them."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEADER = (
    "| work | against | goal | median | range | rounds | met | |\n" + "| --- " * 8 + "|"
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What every row is told.

    Attributes
    ----------
    folder
        Where it may write.
    size
        Edge of the volume, in voxels.
    n_pairs
        Interleaved rounds; `n_long` of whole volumes that take long.
    quick
        Whether only to show that it runs.
    before
        The folder of an older checkout of this package, for the rows that compare with it.
    s3
        A URL ``s3://bucket/prefix`` that may be written; without it moto is started.
    """

    folder: str
    size: int
    n_pairs: int
    quick: bool = False
    before: str | None = None
    s3: str | None = None

    @property
    def n_long(self) -> int:
        return min(self.n_pairs, 3)

    @property
    def large(self) -> int:
        """Edge of a volume for work whose fixed costs should not count."""
        return self.size if self.quick else 2 * self.size


@dataclass
class Row:
    """One line of the report: values, one a round, beside what is asked of their median.

    `fails` says that a run of the benchmarks fails where the median misses: memory does, times do
    not. A row without values was not measured; `note` says why.
    """

    name: str
    values: list[float]
    unit: str = "x"
    against: str = ""
    at_least: float | None = None
    at_most: float | None = None
    fails: bool = False
    note: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def goal(self) -> str:
        parts = (("at least", self.at_least), ("at most", self.at_most))
        return ", ".join(f"{word} {value:g}" for word, value in parts if value is not None)

    def is_met(self) -> bool:
        return not self.values or self._holds(statistics.median(self.values))

    def is_over(self) -> bool:
        return self.fails and not self.is_met()

    def _holds(self, value: float) -> bool:
        return not (
            (self.at_least is not None and value < self.at_least)
            or (self.at_most is not None and value > self.at_most)
        )

    def _verdict(self) -> str:
        if not self.goal or not self.values:
            return ""
        if self.is_met():
            return "yes"
        return "no, some rounds" if any(map(self._holds, self.values)) else "no"

    def text(self) -> str:
        median, spread = "not measured", ""
        if self.values:
            median = f"{statistics.median(self.values):.3g} {self.unit}"
            spread = f"{min(self.values):.3g} to {max(self.values):.3g}"
        cells = (self.name, self.against, self.goal, median, spread, str(len(self.values)),
                 self._verdict(), self.note)  # fmt: skip
        return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


Job = Callable[[Setting], list[Row]]


def run_apart(
    function: str,
    *,
    code: str | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 600,
    **arguments: Any,
) -> Any:
    """Call a ``module:function`` of the benchmarks in a process of its own; return its result.

    `code` is another checkout, whose package is used instead of this one's; the benchmarks are
    those of here either way, so that they may use public names only.
    """
    with tempfile.TemporaryDirectory() as packages:
        if code is not None:
            package = os.path.join(os.path.abspath(code), "ctlab_dask_zarr")
            if not os.path.isdir(package):
                raise FileNotFoundError(f"no package ctlab_dask_zarr in {code}")
            os.symlink(package, os.path.join(packages, "ctlab_dask_zarr"))
        paths = [packages, _HERE, os.environ.get("PYTHONPATH", "")]
        done = subprocess.run(
            # -P: the folder of this checkout may not come before the other one's package.
            [sys.executable, "-P", "-m", "benchmarks.apart", function, json.dumps(arguments)],
            env={**os.environ, **(environment or {}),
                 "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{function} {arguments} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_one(task: dict[str, Any]) -> dict[str, Any]:
    """Run one whole write or read; a task's ``code`` is another checkout of this package."""
    shutil.rmtree(os.path.join(task["folder"], "out.zarr"), ignore_errors=True)
    result: dict[str, Any] = run_apart("benchmarks.one:run", code=task.get("code"), task=task)
    return result


def interleave(
    tasks: dict[str, dict[str, Any]], n_pairs: int, check: Callable[[], None] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Run every task once a round; the order of a round alternates.

    What each has left behind in the last round is held against its source by `check`.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in tasks}
    for number in range(n_pairs):
        for name in in_turn(tasks, number):
            results[name].append(run_one(tasks[name]))
            if check is not None and number == n_pairs - 1:
                check()
    return results


def in_turn(names: Any, number: int) -> list[Any]:
    """Return the names in the order of a round: every second one goes backwards."""
    return list(names) if number % 2 == 0 else list(names)[::-1]


def seconds(results: list[dict[str, Any]]) -> list[float]:
    return [result["seconds"] for result in results]


def ratios(results: dict[str, list[dict[str, Any]]], other: str) -> list[float]:
    """Return seconds of `other` over seconds of ours, round by round."""
    return quotients(seconds(results[other]), seconds(results["ours"]))


def quotients(above: list[float], below: list[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]
