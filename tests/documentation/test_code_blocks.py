"""Every code block of the documentation runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributed import Client

from tests.documentation.blocks import (
    PAGES,
    ROOT,
    blocks_of,
    make_sources,
    pages_that_need,
    run_page,
    with_commands,
)

#: What is not code: pictures of the site's own structure.
_DIRECTIVES = {"{toctree}", "{eval-rst}"}
_KNOWN_NEEDS = {None, "slurm", "s3", "mpi"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page: Path) -> None:
    blocks = blocks_of(page)
    kinds = {block.kind for block in blocks}
    assert kinds <= {"python", "console", "text"} | _DIRECTIVES
    assert {block.needs for block in blocks} <= _KNOWN_NEEDS
    for block in blocks:
        # What is not to be run is a result, or says why.
        assert block.kind != "text" or not block.text.lstrip().startswith(("$", "import", "from"))


def test_few_blocks_are_not_run() -> None:
    """Installations, and what needs a machine that nobody has at hand."""
    left_out = [(b.page.name, b.not_run) for page in PAGES for b in blocks_of(page) if b.not_run]
    assert len(left_out) <= 8, left_out


@pytest.mark.parametrize(
    "page", pages_that_need(None), ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_blocks_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Client
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    make_sources(folder)
    monkeypatch.chdir(folder)
    replaced = {"tcp://scheduler:8786": cluster.scheduler.address}
    environment = with_commands(tmp_path / "commands")
    assert run_page(page, None, replaced, environment, cluster.scheduler.address) > 0
