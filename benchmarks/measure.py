"""Interleaved runs, and what is said about them."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Row:
    """One line of the report: a ratio, or a number, beside what is asked.

    `at_most` is what is asked of the median of memory: more of it fails the run. Times do not.
    """

    name: str
    asked: str
    values: list[float]
    unit: str = "x"
    note: str = ""
    at_most: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.at_most is not None:
            self.asked = f"at most {self.at_most:g} {self.unit}"

    def is_over(self) -> bool:
        return self.at_most is not None and statistics.median(self.values) > self.at_most

    def text(self) -> str:
        median = statistics.median(self.values)
        spread = f"{min(self.values):.3g} to {max(self.values):.3g}"
        return f"| {self.name} | {self.asked} | {median:.3g} {self.unit} | {spread} | {self.note} |"


def run_one(task: dict[str, Any], timeout_s: float = 600) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    shutil.rmtree(os.path.join(task["folder"], "out.zarr"), ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.one", json.dumps(task)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{task} failed:\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def interleave(
    tasks: dict[str, dict[str, Any]], n_pairs: int, check: Callable[[], None] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Run every task once a round; the order of a round alternates.

    What each has left behind in the last round is held against its source by `check`.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in tasks}
    for number in range(n_pairs):
        names = list(tasks) if number % 2 == 0 else list(tasks)[::-1]
        for name in names:
            results[name].append(run_one(tasks[name]))
            if check is not None and number == n_pairs - 1:
                check()
    return results


def ratios(results: dict[str, list[dict[str, Any]]], other: str) -> list[float]:
    """Return seconds of `other` over seconds of ours, round by round."""
    return [
        b["seconds"] / a["seconds"] for a, b in zip(results["ours"], results[other], strict=True)
    ]
