"""The code blocks of the documentation, and how they are run.

Blocks of a page run in their order, in one folder, the Python ones in one namespace. A comment
before a block says what it needs (``<!-- needs: slurm -->``) or why it is not run
(``<!-- not run: installs packages -->``).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import dask

from ctlab_dask_zarr.demo import synthetic_volume, write_mango_netcdf
from tests.builders import run_here

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for path in ROOT.glob("docs/**/*.md")),
        *ROOT.glob("cluster-configs/*.md"),
    ]
)
_FENCE = re.compile(r"^```(?P<kind>\S*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- (?P<what>needs|not run): (?P<why>[^>]+?) -->\s*\Z")
_RUN = {"python", "console"}


class Block(NamedTuple):
    """A code block: where it stands, its kind, its text, what it needs, and why it is not run."""

    page: Path
    line: int
    kind: str
    text: str
    needs: str | None
    not_run: str | None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        comment = _COMMENT.search(text[: match.start()])
        what, why = (comment["what"], comment["why"]) if comment else (None, None)
        found.append(
            Block(
                page,
                text.count("\n", 0, match.start()) + 2,
                match["kind"],
                match["text"],
                why if what == "needs" else None,
                why if what == "not run" else None,
            )
        )
    return found


def pages_that_need(what: str | None) -> list[Path]:
    def is_wanted(block: Block) -> bool:
        return block.kind in _RUN and block.not_run is None and block.needs == what

    return [page for page in PAGES if any(map(is_wanted, blocks_of(page)))]


def make_sources(folder: Path) -> None:
    """Make the scan and the segmentation that the pages speak of."""
    shutil.copytree(_sources().name, folder, dirs_exist_ok=True)


@cache
def _sources() -> tempfile.TemporaryDirectory[str]:
    """Make them once for all pages; the folder goes with the process."""
    made = tempfile.TemporaryDirectory(prefix="sources-", ignore_cleanup_errors=True)
    folder = Path(made.name)
    # Long enough to have a second level.
    shape = (72, 80, 288)
    scan = synthetic_volume(shape)
    write_mango_netcdf(
        folder / "tomoHiRes_nc", scan, datatype="tomo", slices_per_block=40, voxel_size=(2.5,) * 3
    )
    voxels = scan[slice(0, shape[0])]
    segmented = (voxels > 24_000).astype("uint8")
    segmented[voxels == 65535] = 255
    write_mango_netcdf(
        folder / "segmented_nc",
        segmented,
        datatype="segmented",
        slices_per_block=40,
        voxel_size=(2.5,) * 3,
    )
    return made


def run_page(
    page: Path,
    needs: str | None,
    replaced: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    cluster: str | None = None,
) -> int:
    """Run the blocks of a page that need this, in the current folder; return how many.

    With the address of a cluster, `ctlab-zarr` runs on it and in this process where no shell is
    needed: most of the time of a page would go into starting processes.
    """
    namespace: dict[str, Any] = {"__name__": "documentation"}
    n_run = 0
    for block in blocks_of(page):
        if block.kind not in _RUN or block.not_run is not None or block.needs != needs:
            continue
        text = block.text
        for old, new in (replaced or {}).items():
            text = text.replace(old, new)
        if block.kind == "python":
            # As many lines before it as in the page, so that a traceback shows the right one.
            code = compile("\n" * (block.line - 1) + text, str(page), "exec")
            exec(code, namespace)
        else:
            _run_commands(text, f"{page.name}, line {block.line}", environment, cluster)
        n_run += 1
    return n_run


def _run_commands(
    text: str, where: str, environment: Mapping[str, str] | None, cluster: str | None
) -> None:
    """Run what stands behind the prompts; a server among it until it says where it listens."""
    script: list[str] = []
    for command in _commands(text):
        is_served = command.startswith("ctlab-zarr view")
        is_run_here = (
            cluster and command.startswith("ctlab-zarr") and not set("|&;<>$") & set(command)
        )
        if not (is_served or is_run_here):
            script.append(command)
            continue
        # In their order; what a shell keeps for later, as a variable, stands in one with its use.
        _run_script(script, where, environment)
        script = []
        if is_served:
            _serve_for_a_moment(command, where, environment)
        else:
            _run_here(command, where, cluster)
    _run_script(script, where, environment)


def _run_here(command: str, where: str, cluster: str | None) -> None:
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    with dask.config.set({"ctlab-zarr.cluster": cluster}):
        done = run_here(*words[1:])
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{command}\n{done.stderr}"


def _run_script(commands: list[str], where: str, environment: Mapping[str, str] | None) -> None:
    if not commands:
        return
    script = "\n".join(["set -euo pipefail", *commands])
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{script}\n{done.stderr}"


def _commands(text: str) -> list[str]:
    commands: list[str] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            commands.append(line[2:])
        elif commands and commands[-1].endswith("\\"):
            commands[-1] += "\n" + line
        else:
            raise AssertionError(f"{line!r} is neither a command nor the rest of one")
    return commands


def _serve_for_a_moment(command: str, where: str, environment: Mapping[str, str] | None) -> None:
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            url = server.stdout.readline()
            server.send_signal(signal.SIGINT)
            _, errors = server.communicate(timeout=120)
        finally:
            # Leaving the context waits for it, whatever has happened.
            server.kill()
    assert url.startswith("http://127.0.0.1:"), f"{where}: {url}{errors}"


def with_commands(folder: Path) -> dict[str, str]:
    """Return the environment with the commands of this checkout, which may not be installed."""
    folder.mkdir(exist_ok=True)
    modules = {"ctlab-zarr": "ctlab_dask_zarr.cli", "dask": "dask", "python": ""}
    for name, module in modules.items():
        script = folder / name
        called = f"{sys.executable} -m {module}" if module else sys.executable
        script.write_text(f'#!/bin/sh\nexec {called} "$@"\n')
        script.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "PBS_", "DASK_"))}
    return kept | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
        # The scans of the pages are small: a second worker only takes time to start.
        "DASK_CTLAB_ZARR__WORKERS": "1",
    }
