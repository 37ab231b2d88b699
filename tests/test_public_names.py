"""The public names: one list, which the package exports, types and documents alike."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import ctlab_dask_zarr
from ctlab_dask_zarr import errors

ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there_and_typed_where_it_is_found() -> None:
    tree = ast.parse(Path(ctlab_dask_zarr.__file__).read_text())
    (typing_block,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in typing_block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    homes = {
        name: f"ctlab_dask_zarr.{module}.{name}"
        for module, names in ctlab_dask_zarr._HOMES.items()
        for name in names.split()
    }
    assert typed == homes
    assert list(homes) == list(dict.fromkeys(homes)), "no name twice"
    assert ctlab_dask_zarr.__all__ == sorted(homes)
    for name in homes:
        assert getattr(ctlab_dask_zarr, name) is not None
    assert {name for name in homes if name.endswith("Error")} == set(errors.__all__)


def test_what_is_exported_is_what_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    documented = re.findall(r"^\.\. (?:auto\w+|py:data):: ([\w.]+)$", page, re.MULTILINE)
    names = {name for name in documented if "." not in name}
    assert names | set(errors.__all__) == set(ctlab_dask_zarr.__all__)
    assert "ctlab_dask_zarr.errors" in documented
