"""Keywords that a function does not take: refused with what was meant, never kept in silence."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import distributed
import h5py
import pytest
import xarray as xr
import zarr
from dask.delayed import delayed

import ctlab_dask_zarr
from ctlab_dask_zarr import (
    Dataset,
    InvalidArgumentError,
    OMEZarrVersion,
    add_levels,
    cluster_from_config,
    commit,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    plan,
    verify,
)
from ctlab_dask_zarr.arguments import ELSEWHERE, INSTEAD
from ctlab_dask_zarr.cli import main
from ctlab_dask_zarr.demo import write_mango_netcdf
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((4, 5, 6))
#: What is written down beside a scan.
OF_SCANS = (
    *("sample", "sample_name", "sample_id", "operator", "instrument", "model", "facility"),
    *("beamline", "detector", "camera", "camera_length", "specimen_length", "filter", "binning"),
    *("energy", "voltage", "voltage_kv", "current", "current_ua", "exposure", "exposure_time"),
    *("projections", "n_projections", "rotation", "angles", "trajectory", "scan_date", "date"),
    *("temperature", "pressure", "fluid", "porosity", "lithology", "material", "depth_m"),
    *("comment", "comments", "notes", "description", "title", "keywords", "project", "proposal"),
    *("author", "institution", "license", "doi", "reference", "software", "software_version"),
    *("computer", "reconstruction", "sigma", "threshold", "magnification", "pixel_size", "owner"),
    *("coord_transform", "data_min_max", "zdim_total", "num_pixels_in_row", "slice", "tags"),
)


def taken_by(function: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name for p in parameters if p.kind not in kinds} - {"self"}


KNOWN = taken_by(dataset_to_zarr)


def meant_elsewhere() -> Iterator[str]:
    """Every name that is a parameter of a neighbour, or an option of a command."""
    public = [getattr(ctlab_dask_zarr, name) for name in ctlab_dask_zarr.__all__ if name.islower()]
    of_zarr = (zarr.create_array, zarr.create_group, zarr.open, zarr.create)
    of_others = (da.to_zarr, xr.DataArray.to_zarr, xr.Dataset.to_zarr)
    of_datasets = (
        *(Dataset, Dataset.from_path, Dataset.from_modified, Dataset.to_path, Dataset.map_masked),
    )
    for function in (*public, *of_datasets, *of_zarr, *of_others):
        yield from taken_by(function)
    yield from options_of_commands()
    yield from INSTEAD


def options_of_commands() -> Iterator[str]:
    """The options of every command, by the names of their values and as they are typed."""
    for command in main.commands.values():
        for parameter in command.params:
            if parameter.param_type_name == "option":
                yield parameter.name or ""
                yield from (
                    text.lstrip("-").replace("-", "_")
                    for text in parameter.opts
                    if text[:2] == "--"
                )
    yield "help"


def test_a_keyword_that_means_something_elsewhere_is_no_metadata(tmp_path: Path) -> None:
    dataset = make_dataset(VOXELS)
    for name in sorted({*meant_elsewhere()} - KNOWN):
        for function in (dataset_to_zarr, plan):
            with pytest.raises(InvalidArgumentError, match=f"^{name}= is not a parameter"):
                function(dataset, tmp_path / "a.zarr", **{name: 1})
    assert list(tmp_path.iterdir()) == []


def test_advice_names_only_what_takes_the_keyword() -> None:
    options = set(options_of_commands())
    of_xarray = taken_by(xr.Dataset.to_zarr) | taken_by(xr.DataArray.to_zarr)
    for owner, names in ELSEWHERE.items():
        if owner.startswith("an option"):
            others = KNOWN | taken_by(Dataset) | set(INSTEAD) | set().union(*ELSEWHERE.values())
            assert names <= options <= others
        elif "xarray" in owner:
            assert of_xarray - KNOWN <= names
        else:
            function = ctlab_dask_zarr
            for part in owner.removeprefix("a parameter of ").split("."):
                function = getattr(function, part)
            assert names <= taken_by(function), owner


def test_what_is_written_down_beside_a_scan_is_metadata(tmp_path: Path) -> None:
    fields: dict[str, Any] = dict.fromkeys(OF_SCANS, "as measured")
    fields |= {"coord_transform": "flip", "coordinate_origin_xyz": [1, 2, 3]}
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a.zarr", **fields)
    found = dataset_from_zarr(tmp_path / "a.zarr").extra_attrs
    del fields["data_min_max"]  # the commit knows it
    assert {key: found[key] for key in fields} == fields


def test_a_field_of_any_name_can_be_written_by_the_way_that_the_error_shows(
    tmp_path: Path,
) -> None:
    dataset = make_dataset(VOXELS, extra_attrs={"sample": "rock"})
    with pytest.raises(InvalidArgumentError, match=r"from_modified\(dataset, extra_attrs=\{'mode'"):
        dataset_to_zarr(dataset, tmp_path / "a.zarr", mode="helical")
    named = Dataset.from_modified(dataset, extra_attrs={"mode": "helical"})
    dataset_to_zarr(named, tmp_path / "a.zarr")
    found = dataset_from_zarr(tmp_path / "a.zarr").extra_attrs
    assert (found["sample"], found["mode"]) == ("rock", "helical")


def _hinted(name: str) -> str:
    with pytest.raises(InvalidArgumentError) as raised:
        plan(make_dataset(VOXELS), "a.zarr", **{name: 1})
    return str(raised.value).partition("mango block: ")[2].partition(" A field of that name")[0]


def test_no_hint_names_a_keyword_that_then_fails() -> None:
    functions = {
        "Client": distributed.Client,
        "Dataset.from_modified": Dataset.from_modified,
        "cluster_from_config": cluster_from_config,
        "dataset_from_zarr": dataset_from_zarr,
        "labels_to_zarr": labels_to_zarr,
        "verify": verify,
        "plan": plan,
    }
    misspelt = ("compresor", "fill_valu", "filterss", "shard_size_mb", "chunk", "overwrit")
    client = taken_by(distributed.Client) | taken_by(distributed.LocalCluster)
    for name in (*INSTEAD, *misspelt, "serializer", "compressors"):
        text = _hinted(name)
        calls = re.findall(r"([\w.]*\w)\(((?:[^()]|\([^()]*\))*)\)", text)
        for called, inside in calls:
            if called in functions:
                known = client if called == "Client" else taken_by(functions[called])
                assert set(re.findall(r"(\w+)=", inside)) <= known, (name, text)
            text = text.replace(f"{called}({inside})", "")
        for asked in re.findall(r"(\w+)=|did you mean (\w+)\?", text):
            assert set(filter(None, asked)) <= KNOWN, (name, text)
        for argument in re.findall(r"create_array_kwargs=\{'(\w+)'", text):
            value = {"fill_value": 0}.get(argument, "auto")
            plan(make_dataset(VOXELS), "a.zarr", create_array_kwargs={argument: value})


def test_plan_takes_what_a_write_takes_and_means_the_same(tmp_path: Path) -> None:
    write, planned = inspect.signature(dataset_to_zarr), inspect.signature(plan)
    assert planned.parameters == write.parameters
    assert planned.return_annotation == "WritePlan"
    dataset = make_dataset(VOXELS, 3)
    options: dict[str, Any] = {
        "compute": False, "resume": True, "storage_options": {"region": "x"}, "levels": 2,
        "ome_zarr_version": OMEZarrVersion.v05, "sample": "rock", "downsample": "max",
    }  # fmt: skip
    made = plan(dataset, tmp_path / "a.zarr", "tomo", "20200101_000000_x", **options)
    assert (made.dataset_id, made.downsample) == ("20200101_000000_x", "max")
    assert len(made.levels) == 2
    assert made.requested["sample"] == "rock"
    wrong: list[dict[str, Any]] = [
        {"resume": True, "restart": True},
        {"storage_options": {"secret_access_key": "x"}},
        {"overwrit": True},
    ]
    for options in wrong:
        messages = []
        for function in (plan, dataset_to_zarr):
            with pytest.raises(InvalidArgumentError) as raised:
                function(dataset, tmp_path / "a.zarr", **options)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]
    for function in (plan, dataset_to_zarr):
        with pytest.warns(UserWarning, match="max_shard_size_mb is ignored") as caught:
            function(dataset, tmp_path / f"{function.__name__}.zarr", max_shard_size_mb=3)
        assert caught[0].filename == __file__, "the line of the user is shown"


def test_history_that_is_given_is_added(tmp_path: Path) -> None:
    dataset = make_dataset(VOXELS, history={"scan": {"kV": 100}, "tomo": 1})
    given: list[dict[str, Any] | None] = [None, {}, {"crop": "x", "tomo": 2}]
    found = []
    for n, history in enumerate(given):
        dataset_to_zarr(dataset, tmp_path / f"{n}.zarr", history=history)
        found.append(dataset_from_zarr(tmp_path / f"{n}.zarr").history)
        assert (verify(tmp_path / f"{n}.zarr", dataset) == []) == (n < 2)
    added = {"scan": {"kV": 100}, "tomo": 2, "crop": "x"}
    assert found == [dataset.history, dataset.history, added]
    (problem,) = verify(tmp_path / "2.zarr", dataset)
    assert problem.message == "history['tomo'] is 2, the source has 1"
    assert dataset.history == {"scan": {"kV": 100}, "tomo": 1}


def test_neighbours_say_what_was_meant(tmp_path: Path) -> None:
    image = tmp_path / "a.zarr"
    dataset_to_zarr(make_dataset(VOXELS), image)
    labels = VOXELS.astype("uint8")
    wrong: list[tuple[Callable[..., Any], tuple[Any, ...], str, str]] = [
        (labels_to_zarr, (labels, image, "x"), "colours", "did you mean colors?"),
        (labels_to_zarr, (labels, image, "x"), "compressor", "{'compressors': ...}"),
        (labels_to_zarr, (labels, image, "x"), "level", "a parameter of dataset_from_zarr"),
        (add_levels, (image,), "level", "did you mean levels?"),
        (add_levels, (image,), "mode", "there are path, levels, downsample"),
        (commit, (image,), "part", "a parameter of dataset_to_zarr"),
        (commit, (image,), "deadline", "an option of the command line"),
        (verify, (image,), "checksum", "did you mean checksums?"),
        (verify, (image,), "dataset", "there are path, source"),
        (dataset_from_zarr, (image,), "levels", "did you mean level?"),
        (dataset_from_zarr, (image,), "inline_arrays", "did you mean inline_array?"),
        (Dataset.from_path, (image,), "engine", "there are path, level"),
    ]
    for function, arguments, name, advice in wrong:
        with pytest.raises(InvalidArgumentError, match=f"^{name}= is not a parameter") as raised:
            function(*arguments, **{name: 1})
        assert advice in str(raised.value)
    assert dataset_from_zarr(image, chunks=2, inline_array=True).data.numblocks == (2, 3, 3)
    write_mango_netcdf(tmp_path / "tomo_nc", VOXELS, slices_per_block=2)
    with pytest.raises(InvalidArgumentError, match="did you mean voxel_size"):
        Dataset.from_path(tmp_path / "tomo_nc", voxel_sizes=(1, 1, 1))


def test_an_array_in_place_of_a_dataset_is_told_the_line_to_write(tmp_path: Path) -> None:
    lazy = da.ones((4, 4, 4), dtype="u2")
    dataset_to_zarr(make_dataset(VOXELS), tmp_path / "a.zarr")
    of_array = r"Dataset.from_array\(array, voxel_size='2.5um'\)"
    array = xr.DataArray(lazy, dims=("z", "y", "x"), name="tomo")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        values: list[tuple[Any, str]] = [
            (array, f"xarray DataArray.*{of_array}"),
            (array.to_dataset(), r"Dataset.from_xarray\(ds\['tomo'\]\)"),
            (lazy, of_array),
            (VOXELS, of_array),
            (file.create_dataset("x", data=VOXELS), of_array),
            (zarr.open(tmp_path / "a.zarr" / "0", mode="r"), of_array),
            (str(tmp_path), r"Dataset.from_path\(path\)"),
            (None, "NoneType.*Dataset.from_path"),
            (delayed(VOXELS.copy)(), r"from_delayed\(value, shape, dtype\)"),
        ]
        for value, line in values:
            with pytest.raises(InvalidArgumentError, match=line):
                dataset_to_zarr(value, tmp_path / "x.zarr")
            with pytest.raises(InvalidArgumentError, match=line):
                plan(value, tmp_path / "x.zarr")
            with pytest.raises(InvalidArgumentError, match=line):
                Dataset.from_modified(value)
            if not isinstance(value, str | None):
                with pytest.raises(InvalidArgumentError, match=f"^source is .*{line}"):
                    verify(tmp_path / "a.zarr", value)
            if not hasattr(value, "dask") and value is not VOXELS:
                with pytest.raises(InvalidArgumentError, match=f"^data is .*{line}"):
                    Dataset(value, dimension_names="zyx", voxel_unit="um", voxel_size=(1, 1, 1))
    with pytest.raises(InvalidArgumentError, match=r"^labels is .*from_xarray\(ds\['tomo'\]\)"):
        labels_to_zarr(array.to_dataset(), tmp_path / "a.zarr", "x")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "a.zarr"]
    # The lines that are shown make datasets that are written.
    size: dict[str, Any] = {"voxel_unit": "um", "voxel_size": (2.5, 2.5, 2.5)}
    dataset_to_zarr(Dataset(lazy, dimension_names=("z", "y", "x"), **size), tmp_path / "b.zarr")
    dataset_to_zarr(Dataset.from_xarray(array), tmp_path / "c.zarr")
