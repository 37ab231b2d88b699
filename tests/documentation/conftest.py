"""A notebook's kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.documentation.blocks import with_commands


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Any]:
    """The manager and the client of a notebook's kernel, in a folder of its own."""
    jupyter_client = pytest.importorskip("jupyter_client")
    manager, client = jupyter_client.manager.start_new_kernel(
        cwd=str(tmp_path), env=with_commands(tmp_path / "commands") | {"HOME": str(tmp_path)}
    )
    try:
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
