"""Stores of every form that this package writes, for other people's readers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import numpy.typing as npt
import pytest
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from ctlab_dask_zarr import Dataset, OMEZarrVersion, dataset_to_zarr

HERE = Path(__file__).parent
SHARED_DATA = HERE.parents[2] / "shared" / "data"

#: In z, y, x and all different, so that a swapped axis order is seen.
VOXEL_SIZE = (3.0, 2.0, 1.5)
HISTORY = {
    "20240108_085320_tomo_RMG": {"parameters": {"scan": {"energy_kV": "80"}}, "output": "a log\n"}
}
DATASET_ID = "20240108_085320_tomoA"

COMPRESSORS: dict[str, Any] = {
    "zstd": ZstdCodec(level=3),
    "blosc": BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
    "gzip": GzipCodec(level=3),
    "none": None,
}
SHARDINGS: dict[str, dict[str, Any]] = {
    "unsharded": {"chunks": "auto", "shards": None},
    "one": {"chunks": "auto", "shards": "auto"},
    "cubes": {"chunks": (16, 32, 32), "shards": (32, 64, 64)},
    "slabs": {"chunks": (8, 16, 0), "shards": (16, 0, 0)},
    "tiles": {"chunks": (64, 128), "shards": (128, 256)},
}


@dataclass(frozen=True)
class StoreCase:
    """One way to write a volume."""

    codec: str
    datatype: str
    sharding: str
    separator: str
    layout: str
    shape: tuple[int, ...]
    real: str = ""

    def __str__(self) -> str:
        form = f"{self.codec}-{self.datatype}-{self.sharding}-{self.layout}"
        sizes = self.real or "x".join(map(str, self.shape))
        return f"{form}-{'dot' if self.separator == '.' else 'slash'}-{sizes}"


_SMALL, _LARGER, _IMAGE = (40, 65, 97), (70, 130, 131), (300, 517)

#: An orthogonal array: every two settings of different columns meet in a row.
PAIRWISE_CASES = [
    StoreCase("zstd", "tomo", "unsharded", ".", "ome", _SMALL),
    StoreCase("zstd", "tomo_float", "one", "/", "ome", _LARGER),
    StoreCase("zstd", "segmented", "cubes", ".", "plain", _LARGER),
    StoreCase("zstd", "labels", "slabs", "/", "plain", _SMALL),
    StoreCase("blosc", "tomo", "one", ".", "plain", _LARGER),
    StoreCase("blosc", "tomo_float", "unsharded", "/", "plain", _SMALL),
    StoreCase("blosc", "segmented", "slabs", ".", "ome", _SMALL),
    StoreCase("blosc", "labels", "cubes", "/", "ome", _LARGER),
    StoreCase("gzip", "tomo", "cubes", "/", "plain", _SMALL),
    StoreCase("gzip", "tomo_float", "slabs", ".", "plain", _LARGER),
    StoreCase("gzip", "segmented", "unsharded", "/", "ome", _LARGER),
    StoreCase("gzip", "labels", "one", ".", "ome", _SMALL),
    StoreCase("none", "tomo", "slabs", "/", "ome", _LARGER),
    StoreCase("none", "tomo_float", "cubes", ".", "ome", _SMALL),
    StoreCase("none", "segmented", "one", "/", "plain", _SMALL),
    StoreCase("none", "labels", "unsharded", ".", "plain", _LARGER),
]
OTHER_CASES = [
    StoreCase("zstd", "tomo", "tiles", ".", "ome", _IMAGE),
    StoreCase("zstd", "tomo", "tiles", "/", "plain", _IMAGE),
    StoreCase("zstd", "tomo", "cubes", "/", "ome", (100, 200, 300), "tomoHiRes_SS_nc"),
    StoreCase("zstd", "tomo", "cubes", "/", "plain", (100, 200, 300), "tomoHiRes_SS_nc"),
    StoreCase("zstd", "tomo", "one", ".", "ome", (10, 20, 30), "tomoLoRes_SS.nc"),
    StoreCase("zstd", "tomo", "one", ".", "ome", (10, 20, 30), "tomoLoRes.zarr"),
]
CASES = PAIRWISE_CASES + OTHER_CASES


@dataclass(frozen=True)
class Written:
    """A store that this package wrote, and what has to be found in it."""

    path: str
    array_path: str
    dataset: Dataset
    voxels: npt.NDArray[Any]

    @property
    def array_folder(self) -> str:
        """The folder of the full-resolution array."""
        return os.path.join(self.path, self.array_path) if self.array_path else self.path

    def assert_equal(self, found: Any) -> None:
        """Compare bytes: NaN and the sign of zero count as well."""
        voxels = np.asarray(found)
        assert voxels.dtype == self.voxels.dtype
        assert voxels.shape == self.voxels.shape
        wrong = voxel_bits(voxels) != voxel_bits(self.voxels)
        assert not wrong.any(), (
            f"{wrong.sum()} of {wrong.size} voxels, the first at "
            f"{tuple(map(int, np.argwhere(wrong)[0]))}"
        )


def voxel_bits(voxels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(voxels).view(f"u{voxels.dtype.itemsize}")


def synthetic_voxels(datatype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return noise within a masked rim that is thick enough for inner chunks of mask alone."""
    random = np.random.default_rng(len(datatype) + sum(shape))
    if datatype == "tomo":
        voxels, mask = random.integers(0, 2**12, shape).astype(np.uint16), 65535
    elif datatype == "tomo_float":
        voxels, mask = random.normal(size=shape).astype(np.float32), 1e30
        voxels.flat[:: voxels.size // 50] = np.nan
        voxels.flat[7 :: voxels.size // 50] = -0.0
    elif datatype == "segmented":
        voxels, mask = random.integers(0, 6, shape).astype(np.uint8), 255
    else:
        voxels, mask = random.integers(-5, 2**31 - 2, shape).astype(np.int32), 2**31 - 1
    voxels[..., : shape[-1] // 2, : 2 * shape[-1] // 3] = mask
    # The last voxel of all is the one that a reader with a wrong edge loses.
    voxels[..., -1, -1] = 3
    return voxels


def real_path(name: str) -> Path:
    path = SHARED_DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there: CTLab's sample files are not part of this repository")
    return path


def real_voxels(name: str) -> npt.NDArray[np.uint16]:
    """Read a sample with h5py alone; mango stores uint16 as int16."""
    if name == "tomoLoRes.zarr":
        name = "tomoLoRes_SS.nc"  # the same volume
    path = real_path(name)
    files = sorted(path.glob("block*.nc")) if path.is_dir() else [path]
    blocks = []
    for file in files:
        with h5py.File(file) as opened:
            blocks.append(opened["tomo"][...])
    return np.concatenate(blocks).view(np.uint16)


def synthetic_dataset(voxels: npt.NDArray[Any], datatype: str, **changes: Any) -> Dataset:
    names = ("z", "y", "x")[-voxels.ndim :]
    # Blocks that fit no shard.
    blocks = tuple(max(1, n * 2 // 5) for n in voxels.shape)
    described: dict[str, Any] = {
        "dimension_names": names,
        "voxel_unit": "um",
        "voxel_size": VOXEL_SIZE[-voxels.ndim :],
        "datatype": datatype,
        "history": HISTORY,
        "dataset_id": DATASET_ID,
    }
    return Dataset(da.from_array(voxels, chunks=blocks), **(described | changes))


@pytest.fixture(scope="session")
def write_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[StoreCase], Written]:
    """Return what writes a store, each once."""
    folder = tmp_path_factory.mktemp("stores")
    done: dict[StoreCase, Written] = {}

    def write(case: StoreCase) -> Written:
        if case not in done:
            if case.real:
                voxels: npt.NDArray[Any] = real_voxels(case.real)
                dataset = Dataset.from_path(real_path(case.real))
            else:
                voxels = synthetic_voxels(case.datatype, case.shape)
                dataset = synthetic_dataset(voxels, case.datatype)
            path = str(folder / f"{case}.zarr")
            dataset_to_zarr(
                dataset,
                path,
                ome_zarr_version=OMEZarrVersion.v05 if case.layout == "ome" else None,
                create_array_kwargs={"compressors": COMPRESSORS[case.codec]},
                dimension_separator_threshold=0 if case.separator == "/" else 10**6,
                **SHARDINGS[case.sharding],
            )
            array_path = "0" if case.layout == "ome" else ""
            done[case] = Written(path, array_path, dataset, voxels)
        return done[case]

    return write


@pytest.fixture(scope="session", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> StoreCase:
    found: StoreCase = request.param
    return found


@pytest.fixture(scope="session")
def written(case: StoreCase, write_case: Callable[[StoreCase], Written]) -> Written:
    """Return a store of any form."""
    return write_case(case)


@pytest.fixture(scope="session", params=[c for c in CASES if c.layout == "ome"], ids=str)
def image(request: pytest.FixtureRequest, write_case: Callable[[StoreCase], Written]) -> Written:
    """Return an OME-Zarr group."""
    return write_case(request.param)


@pytest.fixture(scope="session")
def masked_image(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return an OME-Zarr group of voxels that are all masked."""
    path = str(tmp_path_factory.mktemp("masked") / "masked.zarr")
    voxels = np.full(_SMALL, 65535, np.uint16)
    dataset = synthetic_dataset(voxels, "tomo")
    dataset_to_zarr(dataset, path, **SHARDINGS["cubes"])
    return Written(path, "0", dataset, voxels)


@pytest.fixture(scope="session")
def negative_zeros(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return a volume with inner chunks of -0.0 alone, where the fill value is 0.0."""
    path = str(tmp_path_factory.mktemp("zeros") / "zeros.zarr")
    voxels = np.zeros(_SMALL, np.float32)
    voxels[16:32, 32:, :64] = -0.0
    dataset = synthetic_dataset(voxels, "projf32")
    dataset_to_zarr(dataset, path, **SHARDINGS["cubes"])
    return Written(path, "0", dataset, voxels)


@pytest.fixture
def pairwise_cases() -> list[StoreCase]:
    """Return the orthogonal array."""
    return PAIRWISE_CASES


@pytest.fixture
def make_dataset() -> Callable[..., Dataset]:
    """Return what makes a dataset from (datatype, shape, what is to be different)."""

    def make(
        datatype: str = "tomo", shape: tuple[int, ...] = (10, 20, 30), **changes: Any
    ) -> Dataset:
        return synthetic_dataset(synthetic_voxels(datatype, shape), datatype, **changes)

    return make


@pytest.fixture
def real() -> Callable[[str], tuple[str, npt.NDArray[np.uint16]]]:
    """Return what finds a sample's path, and its voxels as h5py alone reads them."""
    return lambda name: (str(real_path(name)), real_voxels(name))


@pytest.fixture
def zarrita(zarrita_folder: Path, tmp_path: Path) -> Callable[[str, str], Any]:
    """Return what reads (store, array path) to (what zarrita says, voxels)."""

    def read(path: str, array_path: str) -> tuple[dict[str, Any], npt.NDArray[Any]]:
        voxels_file = tmp_path / "voxels"
        script = str(zarrita_folder / "read_with_zarrita.mjs")
        done = _run("node", script, path, array_path, str(voxels_file))
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        return said, np.fromfile(voxels_file, said["dtype"]).reshape(said["shape"])

    return read


@pytest.fixture(scope="session")
def zarrita_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the reading script and zarrita, installed once per pinned versions."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: zarrita.js runs on Node")
    pinned = (HERE / "package.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ctlab-dask-zarr"
    installed = cache / f"zarrita-{hashlib.sha256(pinned).hexdigest()[:12]}"
    if not installed.exists():
        _install_zarrita(pinned, cache, installed)
    # A folder of this run's own, since another may be using the cache with an older script.
    folder = tmp_path_factory.mktemp("zarrita")
    (folder / "node_modules").symlink_to(installed / "node_modules")
    for name in ("package.json", "read_with_zarrita.mjs"):
        shutil.copy(HERE / name, folder)
    return folder


def _install_zarrita(pinned: bytes, cache: Path, installed: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as name:
        staged = Path(name) / "zarrita"
        staged.mkdir()
        (staged / "package.json").write_bytes(pinned)
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock")
        limits = ("--fetch-retries=0", "--fetch-timeout=20000")
        done = _run("npm", "install", "--prefix", str(staged), *quiet, *limits)
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith("npm error")]
            pytest.skip(f"npm cannot install zarrita.js: {' '.join(errors)[:300]}")
        try:
            staged.rename(installed)
        except OSError:
            assert installed.exists()  # another run was faster


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
