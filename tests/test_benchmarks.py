"""What the benchmarks say is what they measured: goals, older checkouts, late servers, queues."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

import pytest

from benchmarks.__main__ import GROUPS, JOBS
from benchmarks.jobs import Costs, planned, scan, slab_work
from benchmarks.measure import Row, run_apart
from benchmarks.queues import Machine, Stage, Work, simulate
from benchmarks.slow_http import served
from ctlab_dask_zarr.planning.layout import resolve_layout

QUIET = Machine(
    0.0, build_s=0, take_in_s=0, commit_s=0, answer_s=0, call_s=0, spread=0,
    failures_a_worker_hour=0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("values", "said"),
    [([1.3, 1.4, 1.5], "| yes |"), ([1.0, 1.1, 1.3], "| no, some rounds |"), ([0.9], "| no |")],
)
def test_a_row_says_whether_its_median_meets_the_goal(values: list[float], said: str) -> None:
    assert said in Row("work", values, at_least=1.2).text()


def test_a_row_that_was_not_measured_says_why() -> None:
    text = Row("work", [], at_least=1, note="moto is not installed").text()
    assert "not measured" in text
    assert "moto is not installed" in text
    assert "yes" not in text


def test_a_group_names_rows_that_there_are() -> None:
    assert {name for names in GROUPS.values() for name in names} <= set(JOBS)


def test_an_older_checkout_is_measured_with_its_own_package(tmp_path: Path) -> None:
    package = tmp_path / "ctlab_dask_zarr"
    package.mkdir()
    (package / "__init__.py").write_text("")
    # The benchmarks of an older checkout may know less: they are not what runs.
    (tmp_path / "benchmarks").mkdir()
    (package / "probe.py").write_text("def where() -> str:\n    return __file__\n")
    found = run_apart("ctlab_dask_zarr.probe:where", code=str(tmp_path))
    assert found.endswith("/ctlab_dask_zarr/probe.py")
    assert run_apart("benchmarks.jobs:scan", nbytes=83e9)[1] == 42
    with pytest.raises(FileNotFoundError, match="no package"):
        run_apart("benchmarks.jobs:scan", code=str(tmp_path / "nothing"))


def test_the_late_server_answers_ranges_and_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "file").write_bytes(bytes(range(100)))
    (tmp_path / "secret").write_bytes(b"x")

    def get(path: str, wanted: str | None = None) -> bytes:
        headers = {"Range": wanted} if wanted else {}
        with urllib.request.urlopen(urllib.request.Request(root + path, headers=headers)) as answer:
            assert answer.status == (206 if wanted else 200)
            content: bytes = answer.read()
            return content

    with served(str((tmp_path / "served").resolve()), 0.0) as root:
        assert get("/file") == bytes(range(100))
        assert get("/file", "bytes=10-19") == bytes(range(10, 20))
        assert get("/file", "bytes=90-500") == bytes(range(90, 100))
        assert get("/file", "bytes=-4") == bytes(range(96, 100))
        for path in ("/missing", "/../secret"):
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                get(path)
            refused.value.close()


def test_simulated_workers_share_what_there_is_to_do() -> None:
    work = Work(64, (Stage(1, 1.0),), 64.0)
    assert [simulate(QUIET, work, n).wall_s for n in (1, 16, 128)] == [64, 4, 1]


def test_a_simulated_stage_waits_for_the_one_before_it_in_its_group() -> None:
    work = Work(2, (Stage(2, 1.0), Stage(1, 0.5)), 5.0)
    assert simulate(QUIET, work, 4).wall_s == 1.5
    assert simulate(QUIET, work, 1).wall_s == 5.0


@pytest.mark.parametrize("n_workers", [1, 16, 256])
@pytest.mark.parametrize("bands", [False, True])
def test_a_simulated_scan_takes_at_least_what_its_cores_need(n_workers: int, bands: bool) -> None:
    shape, slab = scan(80e9)
    layout = resolve_layout(shape)
    way = planned(layout, slab, n_workers, None, bands=bands)
    found = simulate(QUIET, slab_work(layout, slab, way, Costs(3e-9, 3e-9)), n_workers)
    assert 0 < found.efficiency <= 1.001
