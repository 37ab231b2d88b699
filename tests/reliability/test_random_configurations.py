"""Random configurations, each written and held against a model in NumPy and against tensorstore.

What is drawn: shape, dtype, data type, voxels, blocks and how they are made, layout, codec, levels,
scheduler, what is at the destination, and what goes wrong on the way. Some hundred run here, the
same ones each time; any other number, drawn anew, by
`CTLAB_ZARR_EXAMPLES=10000 python -m pytest -m "" FILE`.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    WriteFailedError,
    dataset_from_zarr,
    dataset_to_zarr,
    plan,
    verify,
)
from tests.builders import make_dataset
from tests.codec.test_downsample import by_the_rules

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in:UserWarning"),
]

#: The same ones each time, unless somebody asks for a number of them.
GIVEN = os.environ.get("CTLAB_ZARR_EXAMPLES")
N_EXAMPLES = int(GIVEN or 150)

#: Data types by the dtype that they have, with their mask values; None is not a data type.
DATATYPES: dict[str, dict[str | None, Any]] = {
    "u1": {None: None, "segmented": 255},
    "i1": {None: None},
    "u2": {None: None, "tomo": 65535, "proju16": None},
    "i2": {None: None},
    "u4": {None: None},
    "i4": {None: None, "labels": 2147483647},
    "u8": {None: None},
    "i8": {None: None},
    "f2": {None: None, "float16": None},
    "f4": {None: None, "tomo_float": 1e30, "distance_map": -2.0, "projf32": None},
    "f8": {None: None, "float64": 1e300},
}
DISCRETE = ("segmented", "labels")
CODECS: dict[str, dict[str, Any]] = {
    "default": {},
    "none": {"compressors": None},
    "zstd": {"compressors": zarr.codecs.ZstdCodec(level=1, checksum=True)},
    "gzip": {"compressors": zarr.codecs.GzipCodec(level=1)},
    "blosc": {"compressors": zarr.codecs.BloscCodec(cname="lz4", clevel=1)},
    "crc32c": {"compressors": [zarr.codecs.ZstdCodec(level=0), zarr.codecs.Crc32cCodec()]},
    "big-endian": {"serializer": zarr.codecs.BytesCodec(endian="big")},
    "transposed": {"filters": "reversed axes"},
    "bz2": {"compressors": [{"name": "numcodecs.bz2", "configuration": {"level": 1}}]},
}
#: What tensorstore does not know.
NOT_IN_TENSORSTORE = ("bz2",)
#: Ways in which blocks come about, all of which give the voxels that they declare.
MAKERS = (
    *("array", "mapped", "reused buffer", "delayed", "rechunked", "overlapping", "big-endian"),
    *("read-only", "Fortran order", "masked", "nested", "zarr store", "assigned"),
)
#: Blocks that are not what they declare.
WRONG_MAKERS = ("wider dtype", "complex", "negative", "another shape", "list", "scalar", "nothing")
FAULTS = (None, None, None, "interrupted", "interrupted, then other voxels", "stored twice")


@dataclass
class Case:
    """One configuration."""

    voxels: np.ndarray
    datatype: str | None
    chunks: tuple[tuple[int, ...], ...]
    maker: str
    layout: dict[str, Any]
    codec: str
    scheduler: str
    fault: str | None
    fails_at: int
    deferred: bool
    overwrites: bool
    masked: np.ndarray | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def mask_value(self) -> Any:
        return DATATYPES[self.voxels.dtype.str[1:]][self.datatype]

    @property
    def expected(self) -> np.ndarray:
        """The voxels that have to be stored."""
        if self.masked is None:
            return self.voxels
        return np.where(self.masked, self.voxels.dtype.type(self.mask_value), self.voxels)


def lengths(draw: st.DrawFn, n: int, *, may_be_empty: bool) -> tuple[int, ...]:
    """Cut an axis into blocks, some of which may have no length."""
    cuts = draw(st.lists(st.integers(0, n), max_size=4))
    if not may_be_empty:
        cuts = sorted({cut for cut in cuts if 0 < cut < n})
    return tuple(b - a for a, b in pairwise([0, *sorted(cuts), n]))


def some_voxels(shape: tuple[int, ...], dtype: str, mask_value: Any, seed: int) -> np.ndarray:
    """Noise with extremes, masked voxels, and parts that are all alike."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind
    if kind == "f":
        # Huge ones of both signs would leave of a mean what their order says.
        palette = [0, -0.0, 1.5, -3, np.nan, np.inf, -np.inf, np.finfo(dtype).max]
    else:
        limits = np.iinfo(dtype)
        palette = [0, 1, 2, 3, 100, limits.max, limits.max - 1, limits.min]
    if mask_value is not None:
        palette += [mask_value] * 4
    few = np.array(palette, dtype)
    voxels = few[rng.integers(0, len(few), shape)]
    if seed % 3 == 0:
        noise = rng.integers(0, 120, shape).astype(dtype)
        voxels = np.where(rng.random(shape) < 0.7, noise, voxels)
    if seed % 4 == 0:
        voxels[tuple(slice(n // 2) for n in shape)] = few[seed % len(few)]
    return np.asarray(voxels, dtype)


@st.composite
def cases(draw: st.DrawFn, *, makers: tuple[str, ...] = MAKERS, faults: Any = FAULTS) -> Case:
    ndim = draw(st.sampled_from([3, 3, 2]))
    shape = tuple(draw(st.lists(st.integers(1, 21), min_size=ndim, max_size=ndim)))
    dtype = draw(st.sampled_from(sorted(DATATYPES)))
    maker = draw(st.sampled_from(makers))
    datatypes = DATATYPES[dtype]
    if maker == "masked":
        datatypes = {k: v for k, v in datatypes.items() if v is not None} or datatypes
    datatype = draw(st.sampled_from(sorted(datatypes, key=str)))
    if maker == "masked" and datatypes[datatype] is None:
        maker = "mapped"
    inner = tuple(draw(st.sampled_from([1, 2, 3, 4, 8, 16])) for _ in shape)
    shards = draw(st.sampled_from(["sharded", "sharded", None, "auto"]))
    if shards == "sharded":
        shards = tuple(c * draw(st.integers(1, 4)) for c in inner)
    n_levels = draw(st.sampled_from([None, None, 2, 3]))
    # Of floats hardly two are equal: the mode of them is refused.
    methods = [None, "nearest"] + (["mode"] if dtype[0] != "f" else [])
    if datatype not in DISCRETE:
        methods += ["mean", "max"]
    is_group = n_levels is not None or draw(st.integers(0, 4)) > 0
    layout: dict[str, Any] = {
        "chunks": inner,
        "shards": shards,
        "levels": n_levels,
        "downsample": None if n_levels is None else draw(st.sampled_from(methods)),
        "dimension_separator_threshold": draw(st.sampled_from([0, 64])),
    }
    if not is_group:
        layout["ome_zarr_version"] = None
    codec = draw(st.sampled_from(sorted(CODECS)))
    create = dict(CODECS[codec])
    if "filters" in create:
        create["filters"] = zarr.codecs.TransposeCodec(order=tuple(range(ndim))[::-1])
    if codec == "big-endian" and np.dtype(dtype).itemsize == 1:
        create, codec = {}, "default"
    if create:
        layout["create_array_kwargs"] = create
    voxels = some_voxels(shape, dtype, datatypes[datatype], draw(st.integers(0, 10**6)))
    chunks = tuple(
        lengths(draw, n, may_be_empty=maker in ("mapped", "reused buffer", "array")) for n in shape
    )
    fault = draw(st.sampled_from(faults))
    return Case(
        voxels=voxels,
        datatype=datatype,
        chunks=chunks,
        maker=maker,
        layout=layout,
        codec=codec,
        scheduler=draw(st.sampled_from(["synchronous"] * 4 + ["threads"] * 3 + ["cluster"])),
        fault=fault,
        fails_at=draw(st.integers(0, prod(map(len, chunks)) - 1)),
        deferred=draw(st.booleans()),
        overwrites=draw(st.booleans()),
        masked=np.random.default_rng(1).random(shape) < 0.4 if maker == "masked" else None,
    )


_buffers: dict[Any, np.ndarray] = {}


def _reused(block: np.ndarray) -> np.ndarray:
    """Fill one buffer a thread and shape again and again, as some C libraries do."""
    key = (threading.get_ident(), block.shape, block.dtype.str)
    buffer = _buffers.setdefault(key, np.empty_like(block))
    buffer[...] = block
    return buffer


def _read_only(block: np.ndarray) -> np.ndarray:
    block = block.copy()
    block.flags.writeable = False
    return block


def _pick(voxels: np.ndarray, region: tuple[slice, ...]) -> np.ndarray:
    return voxels[region]


def _wrong(block: np.ndarray, kind: str) -> Any:
    return {
        "wider dtype": lambda: block.astype("f8" if block.dtype != "f8" else "c16"),
        "complex": lambda: block + 1j,
        "negative": lambda: np.full(block.shape, -1, "i1" if block.dtype != "i1" else "i2"),
        "another shape": lambda: block[1:],
        "list": block.tolist,
        "scalar": lambda: 7,
        "nothing": lambda: None,
    }[kind]()


def _as_declared(function: Any, data: da.Array, *arguments: Any) -> da.Array:
    meta = np.empty((0,) * data.ndim, data.dtype)
    return da.map_blocks(function, data, *arguments, dtype=data.dtype, meta=meta)


def build(case: Case, folder: Path) -> da.Array:
    """Return the dask array of a case."""
    voxels, maker = case.voxels, case.maker
    plain = da.from_array(voxels, chunks=case.chunks)
    if maker in WRONG_MAKERS:
        return _as_declared(_wrong, plain, maker)
    if maker == "mapped":
        return _as_declared(np.copy, plain)
    if maker == "reused buffer":
        return _as_declared(_reused, plain)
    if maker == "read-only":
        return _as_declared(_read_only, plain)
    if maker == "Fortran order":
        return _as_declared(np.asfortranarray, plain)
    if maker == "rechunked":
        return da.from_array(voxels, chunks=tuple(min(7, n) for n in voxels.shape)).rechunk(
            case.chunks
        )
    if maker == "overlapping":
        return da.map_overlap(
            np.copy, plain, depth=1, boundary="nearest", dtype=voxels.dtype, allow_rechunk=True
        )
    if maker == "big-endian":
        return da.from_array(voxels.astype(voxels.dtype.newbyteorder(">")), chunks=case.chunks)
    if maker == "masked":
        return da.from_array(np.ma.masked_array(voxels, case.masked), chunks=case.chunks)
    if maker == "delayed":
        regions = da.core.slices_from_chunks((case.chunks[0], *((n,) for n in voxels.shape[1:])))
        slabs = [
            da.from_delayed(
                dask.delayed(_pick, pure=True)(voxels, region),
                tuple(part.stop - part.start for part in region),
                voxels.dtype,
            )
            for region in regions
        ]
        return da.concatenate(slabs)
    if maker == "nested":
        return (plain.T + voxels.dtype.type(0)).T if voxels.dtype.kind != "f" else plain.T.T
    if maker == "assigned":
        data = da.zeros(voxels.shape, dtype=voxels.dtype, chunks=case.chunks)
        data[:] = plain
        return data
    if maker == "zarr store":
        target = folder / "source.zarr"
        with dask.config.set(scheduler="synchronous"):
            if not target.exists():
                dataset_to_zarr(dataset(case, plain), target, chunks=(4,) * plain.ndim, shards=None)
        return dataset_from_zarr(target).data
    return plain


def dataset(case: Case, data: da.Array) -> Dataset:
    return make_dataset(data, datatype=case.datatype, dataset_id="20200101_000000_random")  # type: ignore[arg-type]


@contextmanager
def on(scheduler: str, cluster: Client) -> Iterator[None]:
    if scheduler == "cluster":
        with cluster.as_current():
            yield
    else:
        with dask.config.set(scheduler=scheduler):
            yield


def refusal(call: Callable[[], Any]) -> str | None:
    """Return the clear error that a call ends with; None where there is none."""
    try:
        call()
    except CTLabError as error:
        return str(error)
    return None


def write(case: Case, data: da.Array, path: Path, **options: Any) -> None:
    settings = case.layout | case.options | options
    result = dataset_to_zarr(dataset(case, data), path, compute=not case.deferred, **settings)
    if result is not None:
        result.compute()


def refuse_impossible_levels(case: Case, data: da.Array, path: Path) -> None:
    """Leave levels out where the layout allows none, which planning tells."""
    refused = refusal(lambda: plan(dataset(case, data), path, **case.layout))
    if refused is not None:
        assert "level" in refused
        case.layout |= {"levels": None, "downsample": None}
        event("without levels")


def read_by_tensorstore(path: Path) -> np.ndarray:
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return np.asarray(tensorstore.open(spec).result().read().result())


def are_equal(a: np.ndarray, b: np.ndarray) -> bool:
    is_float = a.dtype.kind == "f"
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=is_float)


def are_alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether levels are equal, but for the last digits of means."""
    if a.dtype.kind != "f":
        return are_equal(a, b)
    eps = float(np.finfo(a.dtype).eps)
    return a.dtype == b.dtype and bool(np.isclose(a, b, rtol=8 * eps, atol=0, equal_nan=True).all())


def check(case: Case, path: Path) -> None:
    """Hold what is stored against the model, by our reader and by another."""
    wanted = case.expected
    levels = dataset_from_zarr(path).levels
    assert len(levels) == (case.layout["levels"] or 1)
    method = case.layout["downsample"] or ("mode" if case.datatype in DISCRETE else "mean")
    for number, level in enumerate(levels):
        if number:
            factors = tuple(
                2 if n > 1 and m == -(-n // 2) else 1
                for n, m in zip(wanted.shape, level.shape, strict=True)
            )
            with np.errstate(invalid="ignore", over="ignore"):
                wanted = by_the_rules(wanted, factors, method, case.mask_value)
        found = dataset_from_zarr(path, level=number)
        stored = found.data.compute(scheduler="synchronous")
        assert (are_alike if number else are_equal)(stored, wanted), f"level {number}"
        wanted = stored
        region = tuple(slice(n // 3, n - n // 4) for n in wanted.shape)
        assert are_equal(found.data[region].compute(scheduler="synchronous"), wanted[region])
        if case.codec not in NOT_IN_TENSORSTORE:
            array = path / level.path
            assert are_equal(read_by_tensorstore(array), wanted), f"level {number}, tensorstore"
    assert [str(problem) for problem in verify(path)] == []


@contextmanager
def place() -> Iterator[Path]:
    # In memory where there is a disk there: hundreds of small stores are synced.
    home = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=home) as folder:
        yield Path(folder)


def litter(folder: Path) -> list[str]:
    known = ("scan.zarr", "source.zarr", "flag")
    return sorted(path.name for path in folder.iterdir() if path.name not in known)


class Interruption:
    """Fails where a block is made while a flag is there; blocks count by where they lie."""

    def __init__(self, fails_at: tuple[int, ...], flag: Path) -> None:
        self.fails_at = fails_at
        self.flag = flag

    def __dask_tokenize__(self) -> Any:
        return "interruption", str(self.flag)

    def __call__(self, block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if tuple(block_info[0]["chunk-location"]) == self.fails_at and self.flag.exists():
            raise OSError("the node is lost")
        return block


def interrupt(case: Case, data: da.Array, folder: Path) -> da.Array:
    """Let a write fail, and go on with it, by the same voxels or by others; return these."""
    path, flag = folder / "scan.zarr", folder / "flag"
    flag.touch()
    before = dataset_from_zarr(path).data.compute(scheduler="synchronous") if case.overwrites else 0
    blocks = [index for index in np.ndindex(*data.numblocks) if data.blocks[index].size]
    failing = _as_declared(Interruption(blocks[case.fails_at % len(blocks)], flag), data)
    # Whoever computes a deferred write gets what its task has raised.
    with pytest.raises((WriteFailedError, OSError), match="the node is lost"):
        write(case, failing, path)
    assert case.overwrites == path.exists()
    if case.overwrites:
        found = dataset_from_zarr(path).data.compute(scheduler="synchronous")
        np.testing.assert_array_equal(found, before)
    flag.unlink()
    if case.fault == "interrupted":
        write(case, failing, path, resume=True)
        return failing
    case.voxels = (case.voxels.view(f"u{case.voxels.itemsize}") ^ 1).view(case.voxels.dtype)
    case.masked = None
    # Under the same name, as of a file that another program has written anew.
    regions = da.core.slices_from_chunks(failing.chunks)
    keys = [(failing.name, *index) for index in np.ndindex(*failing.numblocks)]
    graph = {key: case.voxels[region] for key, region in zip(keys, regions, strict=True)}
    changed = da.Array(graph, failing.name, failing.chunks, dtype=failing.dtype)
    refused = refusal(lambda: write(case, changed, path, resume=True))
    if refused is not None:
        event("refused to go on with other voxels")
        assert "restart" in refused
        write(case, changed, path, restart=True)
    return changed


@settings(
    max_examples=N_EXAMPLES,
    derandomize=GIVEN is None,
    suppress_health_check=list(HealthCheck),
)
@given(case=cases())
def test_whatever_is_written_is_what_was_meant(case: Case, cluster: Client) -> None:
    event(f"blocks: {case.maker}")
    event(f"fault: {case.fault}")
    with place() as folder, on(case.scheduler, cluster):
        path = folder / "scan.zarr"
        data = build(case, folder)
        refuse_impossible_levels(case, data, path)
        if case.overwrites:
            dataset_to_zarr(make_dataset(np.ones((5, 6, 7), "u1")), path)
            case.options["overwrite"] = True
        if case.fault in ("interrupted", "interrupted, then other voxels"):
            data = interrupt(case, data, folder)
        else:
            write(case, data, path)
        if case.fault == "stored twice":
            write(case, data, path, resume=True)
        check(case, path)
        assert [str(p) for p in verify(path, dataset(case, data))] == []
        assert litter(folder) == []


@settings(
    max_examples=N_EXAMPLES // 3,
    derandomize=GIVEN is None,
    suppress_health_check=list(HealthCheck),
)
@given(case=cases(makers=WRONG_MAKERS, faults=[None]))
def test_blocks_that_are_not_what_they_declare_are_never_written(
    case: Case, cluster: Client
) -> None:
    event(f"blocks: {case.maker}")
    with place() as folder, on(case.scheduler, cluster):
        path = folder / "scan.zarr"
        right = da.from_array(case.voxels, chunks=case.chunks)
        refuse_impossible_levels(case, right, path)
        wrong = build(case, folder)
        if case.overwrites:
            write(case, right, path)
            case.options["overwrite"] = True
        with pytest.raises(CTLabError, match="block"):
            write(case, wrong, path)
        assert case.overwrites == path.exists()
        if case.overwrites:
            check(case, path)
            problems: list[Any] = []
            refused = refusal(lambda: problems.extend(verify(path, dataset(case, wrong))))
            assert problems or "block" in str(refused)
