"""The documentation builds, without a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ctlab_dask_zarr
from ctlab_dask_zarr.cli import main
from tests.documentation.blocks import ROOT, with_commands


@pytest.mark.slow
def test_the_documentation_builds(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb")
    result = subprocess.run(
        [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q",
         "-d", str(tmp_path / "doctrees"), str(ROOT / "docs"), str(tmp_path / "site")],
        env=with_commands(tmp_path / "commands"), capture_output=True, text=True, timeout=480,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    site = tmp_path / "site"
    for page in ("index", "quickstart", "how-to/slurm", "examples/convert", "api", "performance"):
        assert (site / f"{page}.html").exists()
    for page in ("convert", "analyse"):
        assert "field of view" in (site / f"examples/{page}.html").read_text(), (
            "it was not executed"
        )
    api = (site / "api.html").read_text()
    for name in ctlab_dask_zarr.__all__:
        places = (f"ctlab_dask_zarr.{name}", f"ctlab_dask_zarr.errors.{name}")
        assert any(f'id="{place}"' in api for place in places), name
    commands = (site / "commands.html").read_text()
    for name in main.commands:
        assert f"Usage: ctlab-zarr {name} " in commands
    assert "--scale-placement" in commands
