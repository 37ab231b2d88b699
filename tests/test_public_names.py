"""Public names and options: each has one list, which exports, documents and commands follow."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

import ctlab_dask_zarr
from ctlab_dask_zarr import errors
from ctlab_dask_zarr.cli.options import RESUME, SOURCE, WRITE
from ctlab_dask_zarr.planning.resolve import WriteOptions

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ctlab_dask_zarr"
ERRORS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.CTLabError)
}


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
    assert {name for name in homes if name.endswith("Error")} == ERRORS


def test_what_is_exported_is_what_is_documented() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    documented = re.findall(r"^\.\. (?:auto\w+|py:data):: ([\w.]+)$", page, re.MULTILINE)
    names = {name for name in documented if "." not in name}
    assert names | ERRORS == set(ctlab_dask_zarr.__all__)
    assert "ctlab_dask_zarr.errors" in documented


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda path: path.name)
def test_a_command_calls_public_functions_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("ctlab_dask_zarr") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            assert node.level == 0
            if module == "ctlab_dask_zarr":
                names = {alias.name for alias in node.names}
                assert names <= {*ctlab_dask_zarr.__all__, "__version__"}
            elif module.startswith("ctlab_dask_zarr."):
                assert module.split(".")[1] in {"cli", "errors", "text"}


def test_options_have_one_table() -> None:
    """The record of a write, its labels and its levels take what `dataset_to_zarr` does."""
    write = inspect.signature(ctlab_dask_zarr.dataset_to_zarr).parameters
    for field in fields(WriteOptions):
        if field.name != "extra_attrs":
            assert field.default == write[field.name].default
            assert field.type == write[field.name].annotation
    of_volumes = {"shape", "voxel_size", "voxel_unit", "dtype", "dimension_names", "origin"}
    of_volumes |= {"is_discrete", "identity"}
    for function, own in (
        (ctlab_dask_zarr.labels_to_zarr, {"labels", "image_path", "name", "colors"}),
        (ctlab_dask_zarr.add_levels, {"levels"}),
        (ctlab_dask_zarr.commit, set()),
        (ctlab_dask_zarr.zarr_writer, of_volumes),
    ):
        parameters = inspect.signature(function).parameters
        for name in parameters.keys() - own:
            assert parameters[name].default == write[name].default
            assert parameters[name].annotation == write[name].annotation
    options = {**WRITE, **RESUME}
    own_words = {*SOURCE, "layout", "ome_version", "drop_labels"}
    assert options.keys() - own_words <= write.keys()
    unasked = {"ome_zarr_version", "history", "dimension_separator_threshold", "extra_attrs"}
    unasked.add("create_array_kwargs")
    assert {field.name for field in fields(WriteOptions)} - options.keys() == unasked
