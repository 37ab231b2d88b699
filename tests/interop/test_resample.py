"""Larger voxels and other data types: the mask stays the mask, the history says what was done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctlab_dask_zarr import InvalidArgumentError, dataset_from_zarr, dataset_to_zarr
from tests.builders import make_dataset, random_voxels

VOXELS = random_voxels((13, 21, 34))
VOXELS[:, :5] = 65535


@pytest.mark.parametrize("blocks", [-1, 8, 5, (3, 21, 34)])
def test_binned_as_levels_are_made(tmp_path: Path, blocks: Any) -> None:
    scan = make_dataset(VOXELS, blocks, dataset_id="20260101_120000_rock", voxel_size=(2, 2, 2))
    dataset_to_zarr(scan, tmp_path / "a.zarr", levels=3, chunks=(4, 4, 4), shards=(8, 8, 8))
    for level, factor in ((1, 2), (2, 4)):
        stored, part = dataset_from_zarr(tmp_path / "a.zarr", level=level), scan.binned(factor)
        np.testing.assert_array_equal(part.data.compute(), stored.data.compute())
        assert (part.voxel_size, part.origin) == (stored.voxel_size, stored.origin)
        assert part.dataset_id == "20260101_120000_rock_bin"
        (entry,) = part.history.values()
        assert (entry["operation"], entry["factor"]) == ("bin", factor)


@pytest.mark.parametrize("factor", [0, 1, 3, 2.0, -2])
def test_other_factors_are_refused(factor: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="power of two"):
        make_dataset(VOXELS).binned(factor)


def test_grey_values_in_8_bits_keep_the_mask() -> None:
    part = make_dataset(VOXELS, 8).rescaled("uint8", values=(10, 90))
    found, masked = part.data.compute(), VOXELS == 65535
    assert (found == 0)[masked].all()
    wanted = np.clip(np.floor((VOXELS - 10.0) / 80 * 254 + 1.5), 1, 255)
    np.testing.assert_array_equal(found[~masked], wanted[~masked])
    assert (part.datatype, part.dtype) == (None, np.uint8)
    (entry,) = part.history.values()
    assert (entry["values"], entry["become"], entry["masked"]) == ([10, 90], [1, 255], 0)


def test_percentiles_are_of_the_valid_voxels() -> None:
    part = make_dataset(VOXELS, 8).rescaled("uint16", window=(10, 90))
    (entry,) = part.history.values()
    valid = VOXELS[VOXELS != 65535]
    np.testing.assert_allclose(entry["values"], np.percentile(valid, (10, 90)), atol=1)
    assert (part.datatype, part.mask_value) == ("tomo", 65535)
    assert ((part.data == 65535).compute() == (VOXELS == 65535)).all()


def test_floats_with_nan_and_a_mask() -> None:
    voxels = np.where(VOXELS == 65535, 1e30, VOXELS / 7).astype("f4")
    voxels[0, 10, 10] = np.nan
    scan = make_dataset(voxels, 8, datatype="tomo_float")
    found = scan.rescaled("uint16", values=(0, 14)).data.compute()
    assert (found[:, :5] == 65535).all()
    assert found[0, 10, 10] == 65535
    assert found[:, 5:].min() == 0
    back = make_dataset(VOXELS, 8).rescaled("float32")
    assert (back.datatype, float(back.mask_value)) == ("tomo_float", np.float32(1e30))
    np.testing.assert_array_equal(back.data.compute()[:, 5:], VOXELS[:, 5:])


BAD: list[tuple[Any, str]] = [
    (lambda s: s.rescaled("int64"), "none of uint8, uint16, float32"),
    (lambda s: s.rescaled("uint8", window=(1, 2), values=(1, 2)), "give one"),
    (lambda s: s.rescaled("uint8", window=(99, 1)), "percentiles from 0 to 100"),
    (lambda s: s.rescaled("uint8", window=(0, 101)), "percentiles from 0 to 100"),
    (lambda s: s.rescaled("uint8", values=(3, 3)), "not a lower and a higher number"),
    (lambda s: s.rescaled("uint8", values=3), "not two numbers"),
    (lambda s: s.rescaled("float32", values=(1, 2)), "floats keep their values"),
    (lambda s: type(s).from_modified(s, is_discrete=True).rescaled("uint8"), "classes"),
    (lambda s: type(s).from_modified(s, data=s.data * 0).rescaled("uint8"), "are both 0"),
]


@pytest.mark.parametrize(("use", "text"), BAD, ids=[text for _, text in BAD])
def test_what_makes_no_sense_is_refused(use: Any, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        use(make_dataset(VOXELS))
