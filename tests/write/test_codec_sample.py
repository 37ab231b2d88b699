"""A codec that is chosen by measuring: what is read for it, what decides, and who keeps to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client

from ctlab_dask_zarr import (
    Dataset,
    IncompleteSourceError,
    StagingExistsError,
    WriteFailedError,
    commit,
    dataset_from_zarr,
    dataset_to_zarr,
    labels_to_zarr,
    plan,
    verify,
)
from ctlab_dask_zarr.api import choosing
from ctlab_dask_zarr.demo import write_mango_netcdf
from ctlab_dask_zarr.formats.codecs import AUTO_CODECS
from ctlab_dask_zarr.write import codec_sample
from tests.builders import make_dataset, random_voxels, run_here, write_without_commit

SMALL: dict[str, Any] = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}
TOKENS = ("zstd:1", "blosc:zstd:1:shuffle", "blosc:lz4:5:shuffle")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Let every test measure, as another process would."""
    choosing.latest_choices.clear()
    yield
    choosing.latest_choices.clear()


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    """Smooth in its upper byte and noisy in its lower one, so that a shuffle saves much."""
    z, y, x = np.ogrid[:48, :64, :64]
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 64))
    return ((z + y // 8 + x // 16) * 256 + noise).astype("uint16")


@pytest.fixture
def dictate(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Return a function that lets measuring come to a codec, and returns who has measured."""

    def let(codec: str) -> list[str]:
        measured: list[str] = []

        def choose(plan: Any, source: Any, asked: str) -> dict[str, Any]:
            measured.append(asked)
            return {"asked": asked, "codec": codec, "reason": "told", "measured": []}

        choosing.latest_choices.clear()
        monkeypatch.setattr(codec_sample, "choose_by_measuring", choose)
        return measured

    return let


def choice_of(path: Path) -> dict[str, Any]:
    attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    return attributes["ctlab_dask_zarr"]["codec_choice"]


@pytest.mark.parametrize("asked", AUTO_CODECS)
def test_a_codec_is_measured_planned_written_and_told(
    tmp_path: Path, voxels: np.ndarray, asked: str
) -> None:
    dataset, path = make_dataset(voxels, (16, 64, 64)), tmp_path / "a.zarr"
    planned = plan(dataset, path, codec=asked)
    choice = planned.to_dict()["codec_choice"]
    assert choice["asked"] == asked
    assert choice["codec"] == planned.codec
    assert {m["codec"] for m in choice["measured"]} > {"zstd:1", "zstd", "blosc:zstd:5:bitshuffle"}
    assert all(m["ratio"] > 0 and m["mb_per_s"] > 0 for m in choice["measured"])
    lines = planned.describe().splitlines()
    (told,) = [line for line in lines if line.startswith(f"codec {asked} ")]
    assert choice["reason"] in told
    (chosen,) = [line for line in lines if line.endswith("MB/s a thread, chosen")]
    assert choice["codec"] in chosen
    assert list(tmp_path.iterdir()) == []
    dataset_to_zarr(dataset, path, codec=asked)
    assert choice_of(path) == choice, "the write has the codec that its plan has said"
    assert verify(path, dataset) == []
    if asked == "auto:small":
        assert choice["codec"].startswith("blosc:")
        (ratios,) = [{m["codec"]: m["ratio"] for m in choice["measured"]}]
        assert ratios[choice["codec"]] >= 0.99 * max(ratios.values()) > ratios["zstd"]


def test_the_command_line_measures_too(tmp_path: Path, voxels: np.ndarray) -> None:
    write_mango_netcdf(tmp_path / "tomo_nc", voxels, slices_per_block=10)
    words = (tmp_path / "tomo_nc", tmp_path / "a", "--codec", "auto:small")
    found = json.loads(run_here("plan", *words, "--json").stdout)
    assert found["codec_choice"]["codec"] == found["codec"] != "zstd"
    assert "MB/s a thread, chosen" in run_here("plan", *words).stdout
    done = run_here("convert", *words, "--check-source", "--verify", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert choice_of(tmp_path / "a.zarr")["codec"] == found["codec"]


def test_a_cluster_measures_on_its_workers(
    tmp_path: Path, voxels: np.ndarray, cluster: Client
) -> None:
    def made(block: np.ndarray) -> np.ndarray:
        from distributed import get_worker

        get_worker()
        return block

    data = da.from_array(voxels, chunks=(16, 64, 64))
    dataset = make_dataset(data.map_blocks(made, dtype=data.dtype))
    dataset_to_zarr(dataset, tmp_path / "a", codec="auto:small", levels=2, client=cluster)
    assert choice_of(tmp_path / "a.zarr")["codec"].startswith("blosc:")
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "a.zarr").data.compute(), voxels)
    with cluster.as_current():
        held = make_dataset(data.persist())
        assert plan(held, tmp_path / "b", codec="auto").codec_choice["measured"]


def test_a_few_parts_of_blocks_are_read_from_across_the_volume(voxels: np.ndarray) -> None:
    class Source:
        shape, dtype, ndim = (4000, 3000, 3000), np.dtype("uint16"), 3

        def __init__(self) -> None:
            self.read: list[tuple[slice, ...]] = []
            self.lock = threading.Lock()

        def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
            with self.lock:
                self.read.append(index)
            shape = tuple(part.stop - part.start for part in index)
            return np.arange(np.prod(shape), dtype="uint32").astype("uint16").reshape(shape)

    source = Source()
    data = da.from_array(
        source, chunks=(8, 3000, 3000), asarray=False, name="source", meta=voxels[:0]
    )
    assert plan(make_dataset(data), "a.zarr", codec="auto").codec_choice["measured"]
    nbytes = [2 * np.prod([part.stop - part.start for part in index]) for index in source.read]
    assert len(nbytes) <= 10, "five places, each of them twice"
    assert max(nbytes) <= 32 << 20
    firsts = {index[0].start * 5 // 4000 for index in source.read}
    assert firsts == set(range(5)), "all over the first axis"


def test_blocks_that_take_long_are_made_once_and_only_one(
    voxels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec_sample, "_MAX_MAKING_S", -1.0)
    made = []

    def make(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        made.append(block_info[0]["chunk-location"])
        return block

    data = da.from_array(voxels, chunks=(8, 64, 64)).map_blocks(
        make, dtype="uint16", meta=np.empty((0, 0, 0), "uint16")
    )
    assert plan(make_dataset(data), "a.zarr", codec="auto").codec_choice["measured"]
    assert made == [(3, 0, 0)], "the middle"


@pytest.mark.parametrize("fill", ["constant", "masked", "tiny"])
def test_where_there_is_nothing_to_measure_the_default_is_taken(tmp_path: Path, fill: str) -> None:
    shape = (1, 1, 1) if fill == "tiny" else (40, 40, 40)
    value = 65535 if fill == "masked" else 7
    dataset = make_dataset(np.full(shape, value, "uint16"))
    planned = plan(dataset, tmp_path / "a", codec="auto:small")
    assert planned.codec == "zstd"
    assert "the default, as the voxels of the sample are masked or all alike" in planned.describe()
    dataset_to_zarr(dataset, tmp_path / "a", codec="auto:small")
    assert choice_of(tmp_path / "a.zarr")["measured"] == []
    assert verify(tmp_path / "a.zarr", dataset) == []


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [((3, 2, 2), -1), ((300, 400), 100), ((70, 50, 50), (7, 9, 11)), ((64, 90, 90), (1, 90, 90))],
)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_volumes_of_any_shape_and_type_are_measured(
    tmp_path: Path, shape: tuple[int, ...], blocks: Any, dtype: str
) -> None:
    values = np.random.default_rng(0).normal(50, 3, shape).astype(dtype)
    if dtype == "float32":
        values[..., 0] = np.nan
    dataset = make_dataset(values, blocks)
    assert plan(dataset, tmp_path / "a", codec="auto").codec_choice["measured"]


def test_masked_voxels_are_left_out_where_there_are_valid_ones(voxels: np.ndarray) -> None:
    rim = np.full((96, 128, 128), 65535, "uint16")
    rim[24:72, 32:96, 32:96] = voxels
    ratios = [
        {m["codec"]: m["ratio"] for m in plan(make_dataset(v), "a", codec="auto", **SMALL)
         .codec_choice["measured"]}
        for v in (rim, voxels)
    ]  # fmt: skip
    for codec, ratio in ratios[1].items():
        assert ratios[0][codec] == pytest.approx(ratio, rel=0.35), codec


def test_a_source_that_fails_is_told_and_nothing_is_written(
    tmp_path: Path, voxels: np.ndarray
) -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise OSError("the tape is torn")

    data = da.from_array(voxels).map_blocks(fail, dtype="uint16", meta=voxels[:0, :0, :0])
    for function in (plan, dataset_to_zarr):
        with pytest.raises(WriteFailedError, match=r"no codec can be chosen.*the tape is torn"):
            function(make_dataset(data), tmp_path / "a", codec="auto")
    write_mango_netcdf(tmp_path / "tomo_nc", voxels, slices_per_block=48)
    (block,) = (tmp_path / "tomo_nc").iterdir()
    dataset = Dataset.from_path(tmp_path / "tomo_nc")
    block.write_bytes(block.read_bytes()[:-5000])
    with pytest.raises(IncompleteSourceError, match="block00000000"):
        dataset_to_zarr(dataset, tmp_path / "a", codec="auto")
    assert [path.name for path in tmp_path.iterdir()] == ["tomo_nc"]


def test_an_interrupted_write_keeps_its_codec(
    tmp_path: Path, voxels: np.ndarray, dictate: Callable[[str], list[str]]
) -> None:
    dataset, path = make_dataset(voxels, (16, 64, 64)), tmp_path / "a"
    dictate("gzip:1")
    write_without_commit(dataset_to_zarr(dataset, path, codec="auto", compute=False, **SMALL))
    measured = dictate("zstd:5")
    assert plan(dataset, path, codec="auto", resume=True, **SMALL).codec == "gzip:1"
    with pytest.raises(
        StagingExistsError, match="begun with codec='gzip:1', and this is with codec='zstd'"
    ):
        dataset_to_zarr(dataset, path, resume=True, **SMALL)
    dataset_to_zarr(dataset, path, codec="auto", resume=True, **SMALL)
    assert choice_of(tmp_path / "a.zarr")["codec"] == "gzip:1"
    # The same command once more finds it complete.
    dataset_to_zarr(dataset, path, codec="auto:small", resume=True, **SMALL)
    assert measured == []
    assert verify(tmp_path / "a.zarr", dataset) == []


def test_a_write_that_began_with_a_named_codec_goes_on_with_it(
    tmp_path: Path, voxels: np.ndarray, dictate: Callable[[str], list[str]]
) -> None:
    dataset, path = make_dataset(voxels, (16, 64, 64)), tmp_path / "a"
    write_without_commit(
        dataset_to_zarr(dataset, path, codec="blosc:lz4:3:shuffle", compute=False, **SMALL)
    )
    measured = dictate("zstd:5")
    dataset_to_zarr(dataset, path, codec="auto", resume=True, **SMALL)
    assert measured == []
    assert choice_of(tmp_path / "a.zarr")["codec"] == "blosc:lz4:3:shuffle"
    assert "interrupted write" in choice_of(tmp_path / "a.zarr")["reason"]


def test_jobs_that_share_a_write_have_the_codec_of_the_first(
    tmp_path: Path, voxels: np.ndarray, dictate: Callable[[str], list[str]]
) -> None:
    """Whether they measure one after the other, or all at once before any of them stages."""
    dataset, path = make_dataset(voxels, (16, 64, 64)), tmp_path / "a"
    graphs = []
    for number, codec in enumerate(TOKENS[:2], 1):
        dictate(codec)
        graphs.append(
            dataset_to_zarr(
                dataset, path, codec="auto", part=(number, 3), compute=False, levels=2, **SMALL
            )
        )
    for graph in graphs:
        graph.compute()
    measured = dictate(TOKENS[2])
    dataset_to_zarr(dataset, path, codec="auto", part=(3, 3), levels=2, **SMALL)
    assert measured == []
    dictate(TOKENS[2])
    with pytest.raises(StagingExistsError, match="are of another write: begun with codec='zstd:1'"):
        dataset_to_zarr(dataset, path, codec="gzip:1", part=(3, 3), levels=2, **SMALL)
    commit(path)
    assert choice_of(tmp_path / "a.zarr")["codec"] == TOKENS[0]
    assert verify(tmp_path / "a.zarr", dataset) == []


def test_other_differences_of_shared_writes_are_told_as_before(
    tmp_path: Path, voxels: np.ndarray, dictate: Callable[[str], list[str]]
) -> None:
    dataset, path = make_dataset(voxels, (16, 64, 64)), tmp_path / "a"
    dictate(TOKENS[0])
    dataset_to_zarr(dataset, path, codec="auto", part=(1, 2), **SMALL)
    other = {**SMALL, "chunks": (4, 4, 4)}
    with pytest.raises(StagingExistsError, match="are of another write"):
        dataset_to_zarr(dataset, path, codec="auto", part=(2, 2), **other)


def test_labels_have_a_codec_of_their_own(tmp_path: Path, voxels: np.ndarray) -> None:
    image = tmp_path / "a.zarr"
    dataset_to_zarr(make_dataset(voxels), image, levels=2)
    labels = (voxels > 8000).astype("uint8")
    labels[::7] = 2
    labels_to_zarr(labels, image, "phases", codec="auto:small")
    choice = choice_of(image / "labels" / "phases")
    assert choice["measured"]
    assert not any(m["codec"].endswith(":shuffle") for m in choice["measured"])
    np.testing.assert_array_equal(
        dataset_from_zarr(image / "labels" / "phases").data.compute(), labels
    )


def test_the_configuration_may_ask_for_it(tmp_path: Path, voxels: np.ndarray) -> None:
    import dask

    with dask.config.set({"ctlab-zarr.codec": "auto:small"}):
        assert plan(make_dataset(voxels), tmp_path / "a").codec_choice["measured"]
        # Whoever says what the compressors are has chosen.
        own = {"create_array_kwargs": {"compressors": None}}
        assert plan(make_dataset(voxels), tmp_path / "a", **own).codec == "none"


def test_what_is_complete_is_known_without_another_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample that is measured anew could choose another codec, and costs time."""
    source = write_mango_netcdf(tmp_path / "tomoTiny_nc", random_voxels((40, 64, 64)))
    auto = ("convert", source, tmp_path / "a", "--codec", "auto", "-q")
    assert run_here(*auto).returncode == 0
    choosing.latest_choices.clear()

    def refuse(*arguments: Any) -> Any:
        raise AssertionError("a sample was measured again")

    monkeypatch.setattr(codec_sample, "choose_by_measuring", refuse)
    assert run_here(*auto, "--resume", "--workers", "2").returncode == 0
