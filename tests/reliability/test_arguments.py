"""Whatever the arguments: a store that reads back equal, or a clear error and nothing touched."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctlab_dask_zarr import CTLabError, Dataset, dataset_from_zarr, dataset_to_zarr
from tests.builders import make_dataset, random_voxels

_numbers = st.one_of(
    st.integers(-3, 40), st.floats(), st.sampled_from([np.float32(2.5), np.int64(8), True, 2**70])
)
_junk = st.one_of(
    _numbers,
    st.none(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(_numbers, max_size=4),
    st.dictionaries(st.text(max_size=4), _numbers, max_size=2),
)
_shapes = st.one_of(_junk, st.tuples(*[st.integers(-1, 20)] * 3), st.just("auto"))
_ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "chunks": _shapes,
    "shards": _shapes,
    "datatype": st.one_of(_junk, st.sampled_from(["tomo", "labels", "segmented"])),
    "dataset_id": _junk,
    "history": _junk,
    "create_array_kwargs": _junk,
    "dimension_separator_threshold": _junk,
    "scale_placement": _junk,
    "ome_zarr_version": st.one_of(_junk, st.none()),
    "coord_transform": _junk,
    "note": _junk,
}
_DTYPES = ("uint16", "uint8", "float32", "int32", "bool", "complex64", ">u2", "float16", "U3")


def _is_one_name(name: str) -> bool:
    return "/" not in name and name not in ("", ".", "..")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_arguments_write_what_reads_back_or_are_refused_before_anything_is_touched(
    tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    folder = tmp_path_factory.getbasetemp() / "arguments"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shape = data.draw(st.sampled_from([(9, 10, 11), (5, 7), (0, 4, 4), (4,)]))
    voxels = random_voxels(shape, "uint8").astype(data.draw(st.sampled_from(_DTYPES)))
    names = data.draw(st.lists(st.sampled_from(sorted(_ARGUMENTS)), max_size=4, unique=True))
    arguments = {name: data.draw(_ARGUMENTS[name], label=name) for name in names}
    facts = {
        "voxel_size": data.draw(
            st.one_of(_junk, st.just((2.0,) * len(shape)), st.lists(_numbers, max_size=3))
        ),
        "voxel_unit": data.draw(st.sampled_from(["um", "parsec", "", 3, "µm"])),
        **data.draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "dimension_names": st.one_of(_junk, st.just(("y", "x"))),
                    "history": _junk,
                    "dataset_id": _junk,
                    "datatype": _junk,
                    "extra_attrs": _junk,
                },
            )
        ),
    }
    # A name of one folder below this one, so that what is touched can be seen.
    name = data.draw(st.one_of(st.just("a"), st.text(max_size=4).filter(_is_one_name)))
    problem = None
    with dask.config.set(scheduler="sync"):
        try:
            dataset = make_dataset(voxels, **{"datatype": None, **facts})
            dataset_to_zarr(dataset, f"{folder}/{name}", **arguments)
        except CTLabError as error:
            problem = str(error)
        if problem is not None:
            assert len(problem) > 10
            assert list(folder.iterdir()) == []
            return
        (store,) = folder.iterdir()
        assert store.name == name.removesuffix(".zarr") + ".zarr"
        np.testing.assert_array_equal(dataset_from_zarr(store).data, voxels)


@pytest.mark.parametrize("size", [np.nan, np.inf, 0, -1])
def test_impossible_voxel_sizes(size: float, tmp_path: Path) -> None:
    with pytest.raises(CTLabError):
        dataset_to_zarr(make_dataset(random_voxels((4, 4, 4)), voxel_size=(size, 1, 1)), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_ten_megabytes_of_history_that_is_not_ascii_are_kept(tmp_path: Path) -> None:
    history = {f"20250101_00000{n}_tömö": {"log": "µ" * 10**6} for n in range(10)}
    dataset_to_zarr(make_dataset(random_voxels((4, 4, 4)), history=history), tmp_path / "a")
    assert Dataset.from_path(tmp_path / "a.zarr").history == history
