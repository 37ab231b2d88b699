"""The rules of downsampling, against a plain statement of them in NumPy."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ctlab_dask_zarr import dataset_from_zarr, dataset_to_zarr
from ctlab_dask_zarr.codec import compiled, downsample
from ctlab_dask_zarr.codec.downsample import halve, halve_chunks
from ctlab_dask_zarr.codec.values import ValueRange
from tests.builders import make_dataset

Factors = tuple[int, ...]


def is_masked(voxels: np.ndarray, mask_value: Any) -> np.ndarray:
    masked = np.isnan(voxels) if voxels.dtype.kind == "f" else np.zeros(voxels.shape, bool)
    return masked if mask_value is None else masked | (voxels == voxels.dtype.type(mask_value))


def by_the_rules(block: np.ndarray, factors: Factors, method: str, mask_value: Any) -> np.ndarray:
    """Every voxel by itself, as the rules are written."""
    shape = tuple(-(-n // f) for n, f in zip(block.shape, factors, strict=True))
    out = np.empty(shape, block.dtype)
    nothing = np.nan if mask_value is None else mask_value
    for index in product(*map(range, shape)):
        parents = block[
            tuple(slice(i * f, i * f + f) for i, f in zip(index, factors, strict=True))
        ].ravel()
        valid = parents[~is_masked(parents, mask_value)]
        if method == "nearest":
            out[index] = parents[0]
        elif 2 * valid.size <= parents.size:
            out[index] = nothing
        elif method == "max":
            out[index] = valid.max()
        elif method == "mode":
            values, counts = np.unique(valid, return_counts=True)
            out[index] = values[counts == counts.max()].min()
        elif block.dtype.kind == "f":
            wide = valid.astype(np.float64)
            total = wide.sum() / valid.size
            if not np.isfinite(total):
                # Divided first, no sum of huge ones overflows, but by the last digit.
                total = np.clip((wide / valid.size).sum(), wide.min(), wide.max())
            mean = block.dtype.type(total)
            out[index] = valid[0] if is_masked(np.array(mean), mask_value) else mean
        else:
            total = sum(int(v) for v in valid)
            mean = (2 * total + valid.size) // (2 * valid.size)
            out[index] = valid[0] if mean == mask_value else mean
    return out


CASES = [
    ("uint16", "mean", 65535),
    ("uint16", "mean", None),
    ("uint16", "max", 65535),
    ("uint16", "nearest", 65535),
    ("uint8", "mode", 255),
    ("uint8", "mode", None),
    ("uint8", "mean", 3),
    ("int32", "mode", 2147483647),
    ("int32", "mean", None),
    ("int16", "mean", -2),
    ("int64", "mean", -1),
    ("int64", "mean", None),
    ("uint64", "mean", None),
    ("uint64", "mode", 0),
    ("float32", "mean", 1e30),
    ("float32", "mean", -2.0),
    ("float32", "max", None),
    ("float64", "mean", 1e300),
    ("float16", "mean", None),
]


@st.composite
def blocks(draw: st.DrawFn, dtype: str, mask_value: Any) -> tuple[np.ndarray, Factors]:
    ndim = draw(st.integers(2, 3))
    shape = draw(st.tuples(*[st.integers(1, 7)] * ndim))
    factors = draw(st.tuples(*[st.integers(1, 2)] * ndim))
    kind = np.dtype(dtype).kind
    values = [*range(5), *([] if kind == "u" else [-3, -1])]
    limits = None if kind == "f" else np.iinfo(dtype)
    if limits is not None:
        values += [int(limits.max), int(limits.max) - 1, int(limits.min), int(limits.min) + 1]
    special = [] if mask_value is None else [mask_value] * 4
    if kind == "f":
        special += [np.nan]
    elements = st.sampled_from([np.dtype(dtype).type(v) for v in values + special])
    return draw(hnp.arrays(dtype, shape, elements=elements)), factors


@pytest.fixture(params=[0, 1 << 60], ids=["compiled", "plain"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test is done by machine code, and by NumPy where that is in charge at first."""
    monkeypatch.setattr(downsample, "N_BEFORE_COMPILING", request.param)
    monkeypatch.setattr(compiled, "_is_compiled_beside", lambda *_: True)


pytestmark = pytest.mark.usefixtures("_way")


@pytest.mark.parametrize(("dtype", "method", "mask_value"), CASES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_voxel_is_by_the_rules(
    data: st.DataObject, dtype: str, method: str, mask_value: Any
) -> None:
    block, factors = data.draw(blocks(dtype, mask_value))
    found = halve(block, factors, method, mask_value)
    assert found.dtype == block.dtype
    np.testing.assert_array_equal(found, by_the_rules(block, factors, method, mask_value))


@pytest.mark.parametrize("method", ["mean", "mode", "max", "nearest"])
@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2), (2, 1, 1), (1, 1, 2)])
@pytest.mark.parametrize(("dtype", "mask"), [("f4", None), ("f4", 3.0), ("f4", 0.0), ("i2", -1),
                                              ("u1", None), ("u4", 2**32 - 1)])  # fmt: skip
def test_both_ways_give_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, dtype: str, mask: Any, factors: Factors, method: str
) -> None:
    """Of -0.0, NaN, infinity and uniform chunks too: which way is taken depends on the time."""
    rng = np.random.default_rng(0)
    grid, edges, extent = (2, 3, 2), (2, 4, 6), (3, 11, 11)
    values = np.array([1, 2, 3, 100], dtype)
    if dtype == "f4":
        values = np.array([-0.0, 0.0, 1, 3, 1e-8, -7.3, 3e38, np.nan, np.inf, -np.inf], dtype)
    for n_values in (1, 2, 3, 10):
        chunks = np.stack([
            rng.choice(rng.choice(values, n_values), edges) for _ in range(12)
        ]).reshape(*grid, *edges)  # fmt: skip
        chunks[0, 1] = values[0]
        flags = ValueRange(mask).add(chunks.reshape(12, -1))
        found = []
        for n_before in (0, 1 << 60):
            monkeypatch.setattr(downsample, "N_BEFORE_COMPILING", n_before)
            out = np.empty([-(-n // f) for n, f in zip(extent, factors, strict=True)], dtype)
            halve_chunks(chunks, flags, extent, factors, method, mask, out, (0, 0, 0))
            found.append(out.tobytes())
        assert found[0] == found[1]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    voxels=hnp.arrays("uint16", (6, 6, 6), elements=st.integers(0, 65535)),
    mask=hnp.arrays("bool", (6, 6, 6)),
)
def test_no_mask_value_ever_enters_an_average(voxels: np.ndarray, mask: np.ndarray) -> None:
    """What stands below the mask makes no difference, and no mean lies beyond its parents."""
    voxels = np.minimum(voxels, 1000)
    masked = np.where(mask, np.uint16(65535), voxels)
    found = halve(masked, (2, 2, 2), "mean", 65535)
    valid = found != 65535
    assert (found[valid] <= 1000).all()
    # The same with another mask value: nothing of it is in any mean.
    other = halve(np.where(mask, np.uint16(40000), voxels), (2, 2, 2), "mean", 40000)
    np.testing.assert_array_equal(np.where(valid, found, 40000), other)
    cells = mask.reshape(3, 2, 3, 2, 3, 2).sum(axis=(1, 3, 5))
    np.testing.assert_array_equal(valid, cells < 4)


def test_the_mask_wins_over_labels_only_with_half_of_the_parents() -> None:
    cell = np.array([1, 2, 3, 4, 5, 255, 255, 255], "uint8").reshape(2, 2, 2)
    assert halve(cell, (2, 2, 2), "mode", 255).item() == 1
    cell[0, 0, 0] = 255
    assert halve(cell, (2, 2, 2), "mode", 255).item() == 255


@pytest.mark.parametrize("method", ["mean", "mode", "max", "nearest"])
@pytest.mark.parametrize("extent", [(8, 24, 32), (7, 17, 30), (5, 9, 25)])
def test_chunk_by_chunk_it_is_the_same(method: str, extent: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    padded = rng.integers(0, 5, (8, 24, 32)).astype("uint8")
    padded[:, :8, :8] = 255
    padded[:, 8:16, :8] = 3
    padded[:, 16:, 16:][rng.random((8, 8, 16)) < 0.4] = 255
    chunks = padded.reshape(1, 8, 3, 8, 4, 8).transpose(0, 2, 4, 1, 3, 5)
    chunks = np.ascontiguousarray(chunks)
    flags = ValueRange(255).add(chunks.reshape(12, -1))
    out = np.full(tuple(-(-n // 2) + 1 for n in extent), 77, "uint8")
    halve_chunks(chunks, flags, extent, (2, 2, 2), method, 255, out, (1, 1, 1))
    block = padded[tuple(slice(n) for n in extent)]
    np.testing.assert_array_equal(out[1:, 1:, 1:], halve(block, (2, 2, 2), method, 255))
    assert (out[0] == 77).all()


def test_where_machine_code_cannot_be_kept_it_is_compiled_anew(tmp_path: Path) -> None:
    """As in a container whose every folder is read-only."""
    script = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import numpy as np\n"
        "from ctlab_dask_zarr.codec import downsample\n"
        "downsample.N_BEFORE_COMPILING, halve = 0, downsample.halve\n"
        "print(halve(np.full((2, 2, 2), 7, 'uint8'), (2, 2, 2), 'mean', None).item())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert done.stdout.strip() == "7", done.stderr


def test_another_process_compiles_while_work_goes_on(tmp_path: Path) -> None:
    script = (
        "import time, numpy as np\n"
        "from ctlab_dask_zarr.codec import downsample\n"
        "block = np.full((2, 2, 2), 7, 'uint8')\n"
        "assert downsample.halve(block, (2, 2, 2), 'mean', None).item() == 7\n"
        "import sys\n"
        "assert 'numba' not in sys.modules\n"
        "downsample.N_BEFORE_COMPILING = 0\n"
        "assert downsample.halve(block, (2, 2, 2), 'mean', None).item() == 7\n"
        "from ctlab_dask_zarr.codec import compiled\n"
        "assert len(compiled._compilers) == 1 and not compiled.loaded\n"
        "while not compiled.loaded:\n"
        "    time.sleep(0.05)\n"
        "    assert downsample.halve(block, (2, 2, 2), 'mean', None).item() == 7\n"
        "(kernel,) = compiled.loaded.values()\n"
        "assert sum(kernel.stats.cache_hits.values()) == 1, kernel.stats\n"
        "assert not kernel.stats.cache_misses, kernel.stats\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_machine_code_of_each_type_is_kept_in_files_of_its_own(tmp_path: Path) -> None:
    """Under one name, processes that compile for different types would mix them up."""
    script = (
        "import numpy as np\n"
        "from ctlab_dask_zarr.codec import compiled, downsample\n"
        "downsample.N_BEFORE_COMPILING, halve = 0, downsample.halve\n"
        "compiled._is_compiled_beside = lambda *_: True\n"
        "for dtype in ('uint8', 'uint16'):\n"
        "    for mask in (None, 255):\n"
        "        halve(np.full((2, 2, 2), 7, dtype), (2, 2, 2), 'mean', mask)\n"
        "received = np.frombuffer(bytes(8), 'uint8').reshape(2, 2, 2)\n"
        "halve(received, (2, 2, 2), 'mean', None)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script], timeout=240, check=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    indices = {path.stem for path in tmp_path.rglob("*.nbi")}
    codes = [path.name for path in tmp_path.rglob("*.nbc")]
    # Voxels that cannot be written to are a type of their own.
    assert len(indices) == 5
    assert sorted(codes) == sorted(f"{index}.1.nbc" for index in indices)


def test_types_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """numba takes longer for that than a row of small chunks takes to be halved."""
    block = np.arange(8, dtype="uint16").reshape(2, 2, 2)
    expected = halve(block, (2, 2, 2), "mean", None)
    monkeypatch.setattr(compiled.numba, "typeof", None)
    np.testing.assert_array_equal(halve(block, (2, 2, 2), "mean", None), expected)


def test_large_integers_do_not_overflow() -> None:
    block = np.full((2, 2, 2), 2**31 - 2, "int32")
    assert halve(block, (2, 2, 2), "mean", None).item() == 2**31 - 2
    block = np.array([[[2**63 - 1, 2**63 - 2]]], "int64")
    assert halve(block, (1, 1, 2), "mean", None).item() == 2**63 - 1
    block = np.array([[[-(2**63), 2**63 - 1, -7, -8]]], "int64")
    assert halve(block, (1, 1, 2), "mean", None).tolist() == [[[0, -7]]]
    block = np.full((2, 2, 2), 2**64 - 1, "uint64")
    assert halve(block, (2, 2, 2), "mean", None).item() == 2**64 - 1


@pytest.mark.parametrize("masked", [0, 2, 3])
def test_the_mean_of_huge_floats_is_no_infinity(masked: int) -> None:
    block = np.array([1.6e308, 1.5e308] * 4).reshape(2, 2, 2)
    block.flat[:masked] = np.nan
    expected = np.nanmean(block * 0.125) * 8
    assert halve(block, (2, 2, 2), "mean", None).item() == pytest.approx(expected, rel=1e-15)
    largest = np.finfo("f8").max
    block = np.where(
        np.isnan(block), np.nan, np.array([largest, largest, -1.0] * 3)[:8].reshape(2, 2, 2)
    )
    assert np.isfinite(halve(block, (2, 2, 2), "mean", None).item())
    block = np.where(np.isnan(block), np.nan, largest)
    assert halve(block, (2, 2, 2), "mean", None).item() == largest
    assert halve(np.full((2, 2, 2), np.inf), (2, 2, 2), "mean", None).item() == np.inf


def test_huge_floats_beside_others_change_nothing_of_these() -> None:
    voxels = np.random.default_rng(0).normal(size=(4, 8, 8)) * 1e6
    expected = halve(voxels, (2, 2, 2), "mean", None)
    voxels[:2, :2, :2] = [1.6e308, -1.7e308]
    voxels[2, 2, 2] = np.inf
    found = halve(voxels, (2, 2, 2), "mean", None)
    assert found[0, 0, 0] == pytest.approx(-5e306, rel=1e-14)
    assert found[1, 1, 1] == np.inf
    found[0, 0, 0], found[1, 1, 1] = expected[0, 0, 0], expected[1, 1, 1]
    np.testing.assert_array_equal(found, expected)


def test_a_level_of_huge_floats_is_no_infinity(tmp_path: Path) -> None:
    voxels = np.zeros((16, 16, 16))
    voxels[..., ::2], voxels[..., 1::2] = 1.6e308, 1.5e308
    dataset = make_dataset(voxels, voxel_size=(1, 1, 1))
    dataset_to_zarr(dataset, tmp_path / "a", levels=2, chunks=(8, 8, 8), shards=(16, 16, 16))
    level = dataset_from_zarr(tmp_path / "a.zarr", level=1).data.compute()
    np.testing.assert_allclose(level, 1.55e308)
