"""Levels from end to end: written, resumed, shared out, added later, verified, read."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client

from ctlab_dask_zarr import (
    CTLabError,
    Dataset,
    DestinationExistsError,
    InvalidArgumentError,
    UnsupportedFormatError,
    add_levels,
    commit,
    dataset_from_zarr,
    dataset_to_zarr,
    edit_metadata,
    labels_to_zarr,
    plan,
    verify,
)
from ctlab_dask_zarr.api.add import prepare_pyramid
from ctlab_dask_zarr.api.preparing import prepare_write
from ctlab_dask_zarr.codec.downsample import halve
from ctlab_dask_zarr.planning.resolve import WriteOptions
from ctlab_dask_zarr.store.files import LocalFiles
from ctlab_dask_zarr.write.run import run
from tests.builders import make_dataset
from tests.reliability.faults import dying_at_rename

LAYOUT: dict[str, Any] = {"chunks": (16, 16, 16), "shards": (32, 32, 32)}
SHAPE = (70, 65, 97)
ISOTROPIC = {"voxel_size": (2.0, 2.0, 2.0)}


def masked_voxels(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 4000, shape, dtype="uint16")
    voxels[rng.random(shape) < 0.3] = 65535
    return voxels


def halved(voxels: np.ndarray, n_levels: int, factors: tuple[int, ...]) -> list[np.ndarray]:
    levels = [voxels]
    while len(levels) < n_levels:
        levels.append(halve(levels[-1], factors, "mean", 65535))
    return levels


def stored(path: Path, n_levels: int) -> list[np.ndarray]:
    return [zarr.open_array(path / str(n), mode="r")[...] for n in range(n_levels)]


def assert_levels(path: Path, expected: list[np.ndarray]) -> None:
    for found, wanted in zip(stored(path, len(expected)), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in:UserWarning")
@pytest.mark.parametrize("blocks", [16, (5, 65, 97), (70, 30, 30)], ids=str)
@pytest.mark.parametrize(
    "layout",
    [
        LAYOUT,
        {"chunks": (16, 16, 16), "shards": (32, 64, 64)},
        {"chunks": (1, 32, 32), "shards": (32, 32, 32)},
        {"chunks": (3, 5, 15), "shards": (12, 20, 30)},
        {"chunks": (16, 16, 16), "shards": (16, 32, 32)},
        {"chunks": (16, 16, 16), "shards": (16, 16, 64)},
        {"chunks": (16, 16, 16), "shards": None},
        {"chunks": (70, 65, 97), "shards": (70, 65, 97)},
        {**LAYOUT, "create_array_kwargs": {"compressors": [{"name": "bz2"}]}},
    ],
    ids=[
        *("even", "flat", "thin", "odd", "one chunk thick", "one row of chunks"),
        *("no sharding", "one chunk", "odd codec"),
    ],
)
def test_each_level_is_half_of_the_one_before(
    layout: dict[str, Any], blocks: Any, tmp_path: Path
) -> None:
    if "create_array_kwargs" in layout:
        from zarr.codecs.numcodecs import BZ2

        layout = {**layout, "create_array_kwargs": {"compressors": [BZ2()]}}
    voxels = masked_voxels()
    with dask.config.set({"scheduler": "threads"}):
        dataset = make_dataset(voxels, blocks, **ISOTROPIC)
        dataset_to_zarr(dataset, tmp_path / "a.zarr", levels=3, **layout)
    assert_levels(tmp_path / "a.zarr", halved(voxels, 3, (2, 2, 2)))
    assert os.listdir(tmp_path) == ["a.zarr"], "no pieces are left"


def test_an_image_of_two_axes_and_an_anisotropic_volume(tmp_path: Path) -> None:
    image = masked_voxels((300, 201))
    dataset = make_dataset(image, 50, voxel_size=(1.0, 1.0))
    dataset_to_zarr(dataset, tmp_path / "a", levels=3, chunks=(32, 32), shards=(64, 64))
    assert_levels(tmp_path / "a.zarr", halved(image, 3, (2, 2)))
    volume = masked_voxels()
    dataset = make_dataset(volume, 20, voxel_size=(8.0, 2.0, 2.0))
    dataset_to_zarr(dataset, tmp_path / "b", levels=3, **LAYOUT)
    assert_levels(tmp_path / "b.zarr", halved(volume, 3, (1, 2, 2)))


def test_on_a_cluster_it_is_the_same(cluster: Client, tmp_path: Path) -> None:
    voxels = masked_voxels()
    dataset_to_zarr(make_dataset(voxels, 16, **ISOTROPIC), tmp_path / "a", levels=4, **LAYOUT)
    assert_levels(tmp_path / "a.zarr", halved(voxels, 4, (2, 2, 2)))
    assert verify(tmp_path / "a.zarr", make_dataset(voxels, 16, **ISOTROPIC)) == []


def test_the_metadata_say_where_and_how(tmp_path: Path) -> None:
    voxels = masked_voxels()
    dataset_to_zarr(make_dataset(voxels, **ISOTROPIC), tmp_path / "a", levels=3, **LAYOUT)
    ome = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"]["ome"]
    (multiscale,) = ome["multiscales"]
    transforms = [entry["coordinateTransformations"] for entry in multiscale["datasets"]]
    assert [t[0]["scale"] for t in transforms] == [[2.0] * 3, [4.0] * 3, [8.0] * 3]
    assert [t[1]["translation"] for t in transforms[1:]] == [[1.0] * 3, [3.0] * 3]
    assert multiscale["type"] == "mean"
    assert multiscale["metadata"]["kwargs"] == {"method": "mean"}
    window = ome["omero"]["channels"][0]["window"]
    valid = voxels[voxels != 65535]
    assert (window["min"], window["max"]) == (valid.min(), valid.max())
    coarsest = halved(voxels, 3, (2, 2, 2))[2]
    expected = np.percentile(coarsest[coarsest != 65535], (0.5, 99.5))
    np.testing.assert_allclose((window["start"], window["end"]), expected)


def test_a_position_is_the_same_on_every_level(tmp_path: Path) -> None:
    """A ball's centre of mass, by a reader that applies scale and translation."""
    from ngff_zarr import from_ngff_zarr

    z, y, x = np.ogrid[:64, :64, :64]
    distance = (z - 20.5) ** 2 + (y - 30.5) ** 2 + (x - 40.5) ** 2
    voxels = np.exp(-distance / 50).astype("float32")
    dataset = make_dataset(voxels, **ISOTROPIC)
    dataset_to_zarr(dataset, tmp_path / "a.zarr", levels=4, **LAYOUT)
    multiscales = from_ngff_zarr(tmp_path / "a.zarr", validate=True)
    for image in multiscales.images:
        weights = np.asarray(image.data).astype(float)
        centre = []
        for axis, name in enumerate(image.dims):
            n = weights.shape[axis]
            places = np.arange(n) * image.scale[name] + image.translation[name]
            total = weights.sum(axis=tuple(a for a in range(3) if a != axis))
            centre.append((places * total).sum() / total.sum())
        np.testing.assert_allclose(centre, (41.0, 61.0, 81.0), atol=0.01)


def test_each_level_is_opened_by_its_number(tmp_path: Path) -> None:
    voxels = masked_voxels()
    dataset_to_zarr(make_dataset(voxels, **ISOTROPIC), tmp_path / "a", levels=3, **LAYOUT)
    finest = Dataset.from_path(tmp_path / "a.zarr")
    assert [level.shape for level in finest.levels] == [SHAPE, (35, 33, 49), (18, 17, 25)]
    assert [level.origin[0] for level in finest.levels] == [0.0, 1.0, 3.0]
    third = dataset_from_zarr(tmp_path / "a.zarr", level=2)
    assert third.voxel_size == (8.0, 8.0, 8.0)
    np.testing.assert_array_equal(third.data, halved(voxels, 3, (2, 2, 2))[2])
    for level in (3, -1, 1.0, True, "1"):
        with pytest.raises(InvalidArgumentError, match="levels 0 to 2"):
            dataset_from_zarr(tmp_path / "a.zarr", level=level)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning")
def test_levels_of_other_writers_are_read_with_their_places(tmp_path: Path) -> None:
    from ngff_zarr import Methods, to_multiscales, to_ngff_image, to_ngff_zarr

    voxels = masked_voxels((64, 64, 64))
    axes = {"z": 3.0, "y": 2.0, "x": 2.0}
    image = to_ngff_image(
        voxels, dims=["z", "y", "x"], scale=axes, translation={"z": 5.0, "y": 0.0, "x": 1.0}
    )
    multiscales = to_multiscales(image, [2, 4], method=Methods.ITKWASM_BIN_SHRINK)
    to_ngff_zarr(str(tmp_path / "other.zarr"), multiscales, version="0.5")
    levels = Dataset.from_path(tmp_path / "other.zarr").levels
    for level, other in zip(levels, multiscales.images, strict=True):
        assert level.shape == other.data.shape
        assert dict(zip("zyx", level.voxel_size, strict=True)) == pytest.approx(other.scale)
        assert dict(zip("zyx", level.origin, strict=True)) == pytest.approx(other.translation)
    second = dataset_from_zarr(tmp_path / "other.zarr", level=1)
    np.testing.assert_array_equal(second.data, multiscales.images[1].data)
    # What is converted lies where it lay, in as many levels as it gets.
    assert second.origin == levels[1].origin
    dataset_to_zarr(second, tmp_path / "ours.zarr", datatype="tomo", levels=2)
    converted = Dataset.from_path(tmp_path / "ours.zarr")
    assert converted.origin == second.origin
    finest, coarser = converted.levels
    shift = np.subtract(coarser.voxel_size, finest.voxel_size) / 2
    np.testing.assert_allclose(coarser.origin, finest.origin + shift)
    # Voxels of another size lie elsewhere, other voxels nowhere in particular.
    halves = [size / 2 for size in second.voxel_size]
    moved = Dataset.from_modified(second, voxel_size=halves)
    np.testing.assert_allclose(moved.origin, np.multiply(second.origin, 0.5))
    assert Dataset.from_modified(second, data=second.data[4:]).origin == (0, 0, 0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_image_of_one_channel_is_read_as_a_volume(tmp_path: Path) -> None:
    """As ome-zarr-py writes microscopes' images: c, z, y, x, here with three levels."""
    from ome_zarr.format import FormatV05
    from ome_zarr.writer import write_image

    voxels = masked_voxels((40, 64, 66))
    path = tmp_path / "other.zarr"
    scale = {"c": 1.0, "z": 3.0, "y": 2.0, "x": 1.5}
    units = dict.fromkeys("zyx", "micrometer")
    group = zarr.open_group(path, mode="w", zarr_format=3)
    write_image(
        voxels[None], group, scale_factors=[2, 4], fmt=FormatV05(), axes=["c", "z", "y", "x"],
        scale=scale, axes_units=units,
    )  # fmt: skip
    opened = Dataset.from_path(path)
    assert opened.dimension_names == ("z", "y", "x")
    assert opened.voxel_size == (3.0, 2.0, 1.5)
    np.testing.assert_array_equal(opened.data, voxels)
    np.testing.assert_array_equal(opened.data[7, 3:9], voxels[7, 3:9])
    coarse = dataset_from_zarr(path, level=1)
    assert coarse.shape == opened.levels[1].shape
    (name,) = [level.path for level in opened.levels[1:2]]
    np.testing.assert_array_equal(coarse.data, zarr.open_array(path / name, mode="r")[0])
    with pytest.raises(UnsupportedFormatError, match="c, z, y, x"):
        add_levels(path)
    with pytest.raises(UnsupportedFormatError, match="channels"):
        labels_to_zarr(np.zeros(voxels.shape, "uint8"), path, "phases")
    several = zarr.open_group(tmp_path / "several.zarr", mode="w", zarr_format=3)
    write_image(
        np.stack([voxels, voxels]), several, scale_factors=[], fmt=FormatV05(),
        axes=["c", "z", "y", "x"], scale=scale, axes_units=units,
    )  # fmt: skip
    with pytest.raises(UnsupportedFormatError, match="2 elements along its axis 'c'"):
        Dataset.from_path(tmp_path / "several.zarr")


class _Stop(Exception):
    pass


def failing_after(n_blocks: int, voxels: np.ndarray) -> da.Array:
    """An array of which, in this process, no more than some blocks can be made."""
    made: list[None] = []

    def block(part: np.ndarray) -> np.ndarray:
        if len(made) == n_blocks:
            raise _Stop
        made.append(None)
        return part

    return da.from_array(voxels, chunks=32).map_blocks(block, dtype=voxels.dtype, meta=voxels[:0])


@pytest.mark.parametrize("lose_pieces", [False, True])
def test_a_resumed_write_makes_the_same_levels(tmp_path: Path, lose_pieces: bool) -> None:
    voxels = masked_voxels()
    known = {"identity": "the scan", **ISOTROPIC}
    broken = make_dataset(failing_after(6, voxels), **known)
    with dask.config.set(scheduler="sync"), pytest.raises(CTLabError):
        dataset_to_zarr(broken, tmp_path / "a.zarr", levels=3, **LAYOUT)
    (staging,) = tmp_path.iterdir()
    pieces = [p for p in staging.glob("pieces-*/*/*") if p.is_file()]
    assert pieces
    for n, piece in enumerate(pieces):
        if lose_pieces and n % 2:
            piece.unlink()
        elif lose_pieces:
            data = bytearray(piece.read_bytes())
            data[len(data) // 3] ^= 1
            piece.write_bytes(data)
    options = WriteOptions(levels=3, **LAYOUT)
    dataset = make_dataset(voxels, 32, **known)
    write = prepare_write(dataset, tmp_path / "a.zarr", options, resume=True)
    assert write.remaining.n_done > 0
    run(write)
    assert_levels(tmp_path / "a.zarr", halved(voxels, 3, (2, 2, 2)))


def test_another_number_of_levels_or_another_method_is_another_write(tmp_path: Path) -> None:
    voxels = masked_voxels()
    broken = make_dataset(failing_after(6, voxels), **ISOTROPIC)
    with dask.config.set(scheduler="sync"), pytest.raises(CTLabError):
        dataset_to_zarr(broken, tmp_path / "a.zarr", levels=2, **LAYOUT)
    for changed in ({"levels": 3}, {"levels": 2, "downsample": "max"}):
        with pytest.raises(CTLabError, match="cannot resume"):
            dataset_to_zarr(broken, tmp_path / "a.zarr", resume=True, **changed, **LAYOUT)


def test_parts_leave_the_coarser_levels_to_the_commit(tmp_path: Path) -> None:
    voxels = masked_voxels()
    dataset = make_dataset(voxels, 32, **ISOTROPIC)
    options = WriteOptions(levels=3, **LAYOUT)
    for part in (3, 1):
        run(prepare_write(dataset, tmp_path / "a.zarr", options, part=(part, 3)))
    with pytest.raises(CTLabError, match="not whole: 2"):
        commit(tmp_path / "a.zarr")
    run(prepare_write(dataset, tmp_path / "a.zarr", options, part=(2, 3)))
    result = commit(tmp_path / "a.zarr")
    assert result.n_objects == sum(1 for _ in (tmp_path / "a.zarr").glob("[0-9]/c*"))
    assert_levels(tmp_path / "a.zarr", halved(voxels, 3, (2, 2, 2)))
    assert verify(tmp_path / "a.zarr", dataset) == []


def test_damage_to_a_coarser_level_is_found(tmp_path: Path) -> None:
    dataset_to_zarr(make_dataset(masked_voxels(), **ISOTROPIC), tmp_path / "a", levels=2, **LAYOUT)
    shard = next(p for p in (tmp_path / "a.zarr" / "1").glob("c*") if p.is_file())
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    problems = verify(tmp_path / "a.zarr")
    assert {problem.location for problem in problems} == {f"1/{shard.name}"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "level 0"),
        ({"levels": 20}, "there can be"),
        ({"levels": "some"}, "neither a number"),
        ({"levels": 2, "downsample": "median"}, "none of"),
        ({"levels": 2, "downsample": "mode", "datatype": "tomo_float"}, "mode"),
        ({"levels": 2, "ome_zarr_version": None}, "plain array"),
        ({"levels": 2, "chunks": (5, 5, 5), "shards": (15, 15, 15)}, "even edge"),
    ],
)
def test_levels_that_cannot_be_are_refused_before_anything_is_touched(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    dtype = "float32" if options.get("datatype") == "tomo_float" else "uint16"
    dataset = make_dataset(masked_voxels().astype(dtype), 32, **ISOTROPIC)
    with pytest.raises(InvalidArgumentError, match=message):
        dataset_to_zarr(dataset, tmp_path / "a.zarr", **options)
    assert os.listdir(tmp_path) == []


def test_the_plan_counts_all_levels(tmp_path: Path) -> None:
    data = da.zeros((2048, 2048, 2048), dtype="uint16", chunks=512)
    planned = plan(make_dataset(data, **ISOTROPIC), tmp_path / "a", levels="auto")
    assert [level.layout.shape[0] for level in planned.levels] == [2048, 1024, 512, 256]
    assert planned.n_shards == 64 + 8 + 1 + 1
    assert "by mean" in planned.describe()
    assert planned.to_dict()["levels"] == [[n] * 3 for n in (2048, 1024, 512, 256)]


# Levels that are added later


def attributes(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]
    return found


@pytest.mark.parametrize("placement", ["dataset", "multiscales"])
def test_added_levels_are_those_that_a_write_would_have_made(
    tmp_path: Path, placement: Any
) -> None:
    dataset = make_dataset(masked_voxels(), 32, dataset_id="x", **ISOTROPIC)
    options = {**LAYOUT, "scale_placement": placement}
    dataset_to_zarr(dataset, tmp_path / "at-once", levels=3, **options)
    dataset_to_zarr(dataset, tmp_path / "later", **options)
    before = (tmp_path / "later.zarr" / "0" / "c.0.0.0").stat()
    result = add_levels(tmp_path / "later.zarr", 3)
    assert result.n_objects == 8 + 1
    assert (tmp_path / "later.zarr" / "0" / "c.0.0.0").stat() == before
    assert_levels(tmp_path / "later.zarr", stored(tmp_path / "at-once.zarr", 3))
    said = [attributes(tmp_path / name)["ome"] for name in ("later.zarr", "at-once.zarr")]
    assert said[0] == said[1]
    assert verify(tmp_path / "later.zarr", dataset) == []
    assert sorted(os.listdir(tmp_path)) == ["at-once.zarr", "later.zarr"]


def other_store(path: Path, voxels: np.ndarray, **options: Any) -> None:
    """Write an image of one level as another program would."""
    group = zarr.create_group(path, attributes={"mine": 1})
    array = group.create_array(
        "s0", shape=voxels.shape, dtype="uint16", dimension_names=list("zyx"),
        **({"chunks": (16, 16, 16)} | options),
    )  # fmt: skip
    array[...] = voxels
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    transforms = [
        {"type": "scale", "scale": [2.0, 2.0, 2.0]},
        {"type": "translation", "translation": [5.0, 0.0, 0.0]},
    ]
    datasets = [{"path": "s0", "coordinateTransformations": transforms}]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"name": "a", "axes": axes, "datasets": datasets}],
    }


def test_a_store_of_another_writer_gets_levels_and_keeps_the_rest(tmp_path: Path) -> None:
    voxels = masked_voxels()
    other_store(tmp_path / "other.zarr", voxels)
    add_levels(tmp_path / "other.zarr", 2)
    assert attributes(tmp_path / "other.zarr")["mine"] == 1
    opened = dataset_from_zarr(tmp_path / "other.zarr", level=1)
    assert opened.levels[1].origin == (6.0, 1.0, 1.0)
    np.testing.assert_array_equal(opened.data, halve(voxels, (2, 2, 2), "mean", None))
    # Its level 0 was not written here: a chunk that is missing is fill values, as Zarr says.
    (tmp_path / "other.zarr" / "s0" / "c" / "0" / "0" / "0").unlink()
    assert (Dataset.from_path(tmp_path / "other.zarr").data[:16, :16, :16] == 0).all().compute()


#: So many that the receipts of a level are not kept all at once.
SMALL_SHARDS = {"chunks": (8, 8, 8), "shards": (16, 16, 16)}


@pytest.mark.parametrize(("options", "n_kept"), [({}, 0), (SMALL_SHARDS, 1)])
def test_the_contrast_of_another_writers_store_has_the_true_range(
    tmp_path: Path, options: dict[str, Any], n_kept: int
) -> None:
    """The extremes are single voxels, which no mean keeps; a first attempt ends half way.

    Of what it has written some receipts are kept, and others are not.
    """
    voxels = masked_voxels().clip(100, 40_000)
    voxels[3, 5, 7], voxels[-1, -1, -1] = 7, 65_001
    other_store(tmp_path / "other.zarr", voxels, **options)
    n_renamed = itertools.count()

    def is_next(_: str, target: str) -> bool:
        return f"{os.sep}receipts-" in target and next(n_renamed) == n_kept

    with dask.config.set(scheduler="sync"), dying_at_rename(is_next):
        add_levels(tmp_path / "other.zarr", 3)
    kept = list(tmp_path.glob(".other.zarr.staging/receipts-*/*.json"))
    assert len(kept) == n_kept
    add_levels(tmp_path / "other.zarr", 3, resume=True)
    (channel,) = attributes(tmp_path / "other.zarr")["ome"]["omero"]["channels"]
    assert (channel["window"]["min"], channel["window"]["max"]) == (7, 65_001)


def test_a_store_that_has_levels_or_can_have_none_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(masked_voxels(), 32, **ISOTROPIC)
    dataset_to_zarr(dataset, tmp_path / "a", levels=2, **LAYOUT)
    with pytest.raises(InvalidArgumentError, match="has 2 levels already"):
        add_levels(tmp_path / "a.zarr")
    dataset_to_zarr(dataset, tmp_path / "plain", ome_zarr_version=None, **LAYOUT)
    with pytest.raises(UnsupportedFormatError, match="plain array"):
        add_levels(tmp_path / "plain.zarr")
    dataset_to_zarr(dataset, tmp_path / "small", **LAYOUT)
    with pytest.raises(InvalidArgumentError, match="adds none"):
        add_levels(tmp_path / "small.zarr", "auto")
    (tmp_path / "small.zarr" / "1").mkdir()
    with pytest.raises(DestinationExistsError, match="holds '1'"):
        add_levels(tmp_path / "small.zarr", 2)


@pytest.mark.parametrize("n_renames", range(6))
def test_a_commit_of_levels_that_dies_is_finished_by_the_next_call(
    tmp_path: Path, n_renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image reads whole, old or new, at every moment."""
    dataset = make_dataset(masked_voxels(), 32, **ISOTROPIC)
    dataset_to_zarr(dataset, tmp_path / "a", **LAYOUT)
    path = tmp_path / "a.zarr"
    done = []
    rename = LocalFiles.rename

    def dying(self: LocalFiles, source: str, target: str) -> None:
        # Of what becomes part of the store, and not of what is staged.
        if str(path) + os.sep in target and ".staging" not in target:
            if len(done) == n_renames:
                raise KeyboardInterrupt
            done.append(target)
        rename(self, source, target)

    (completion,) = prepare_pyramid(path, 3, None, resume=False, restart=False)
    with dask.config.set(scheduler="sync"), monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "rename", dying)
        if n_renames < 4:
            with pytest.raises(KeyboardInterrupt):
                run(completion)
        else:
            run(completion)
    n_levels = len(Dataset.from_path(path).levels)
    assert n_levels == (1 if n_renames < 4 else 3)
    np.testing.assert_array_equal(Dataset.from_path(path).data, masked_voxels())
    if n_levels == 1:
        with pytest.raises(CTLabError, match="resume=True"):
            add_levels(path, 3)
        if n_renames == 1:
            commit(path)
        else:
            add_levels(path, 3, resume=True)
    assert_levels(path, halved(masked_voxels(), 3, (2, 2, 2)))
    assert verify(path) == []
    assert os.listdir(tmp_path) == ["a.zarr"]


def test_an_image_that_is_replaced_meanwhile_does_not_get_the_levels_of_the_old(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.zarr"
    dataset_to_zarr(make_dataset(masked_voxels(), 32, **ISOTROPIC), path, **LAYOUT)
    (completion,) = prepare_pyramid(path, 2, None, resume=False, restart=False)
    dataset_to_zarr(make_dataset(masked_voxels() // 2, 32), path, overwrite=True, **LAYOUT)
    with pytest.raises(DestinationExistsError, match="was changed since"):
        run(completion)
    assert len(Dataset.from_path(path).levels) == 1


# Labels


def test_level_0_is_not_read_a_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a level is made of is in memory while the finer one is written."""
    read: list[str] = []
    whole, open_object = LocalFiles.read, LocalFiles.open_object

    def seen(self: LocalFiles, path: str, *limit: int) -> bytes:
        read.append(path)
        return whole(self, path, *limit)

    def seen_object(self: LocalFiles, path: str, *arguments: Any) -> Any:
        read.append(path)
        return open_object(self, path, *arguments)

    monkeypatch.setattr(LocalFiles, "open_object", seen_object)
    monkeypatch.setattr(LocalFiles, "read", seen)
    dataset = make_dataset(masked_voxels(), 32, **ISOTROPIC)
    with dask.config.set(scheduler="threads"):
        dataset_to_zarr(dataset, tmp_path / "a", levels=3, **LAYOUT)
    assert any("pieces-" in path for path in read), "the spy sees what is read"
    stored = [path for path in read if "store-" in path and not path.endswith("zarr.json")]
    assert not [path for path in stored if f"{os.sep}0{os.sep}" in path]


def test_going_on_with_levels_that_are_complete_is_no_error(
    tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    """So that a job script may always give --resume."""
    dataset_to_zarr(make_dataset(masked_voxels(), 32, **ISOTROPIC), tmp_path / "a", **LAYOUT)
    add_levels(tmp_path / "a.zarr", 3, resume=True)
    before = snapshot(tmp_path)
    add_levels(tmp_path / "a.zarr", 3, resume=True)
    assert snapshot(tmp_path) == before
    with pytest.raises(InvalidArgumentError, match="has 3 levels already"):
        add_levels(tmp_path / "a.zarr", 2, resume=True)


def test_what_a_commit_has_left_that_died_at_its_end_is_in_nobodys_way(tmp_path: Path) -> None:
    """The levels are there; only the staging folder was not removed any more."""
    dataset_to_zarr(make_dataset(masked_voxels(), 32, **ISOTROPIC), tmp_path / "a", **LAYOUT)
    staging = str(tmp_path / ".a.zarr.staging")
    with dask.config.set(scheduler="sync"), dying_at_rename(lambda source, _: source == staging):
        add_levels(tmp_path / "a.zarr", 2)
    assert sorted(os.listdir(tmp_path)) == [".a.zarr.staging", "a.zarr"]
    edit_metadata(tmp_path / "a.zarr", voxel_size=5.0, voxel_unit="um")
    add_levels(tmp_path / "a.zarr", 2, resume=True)
    assert os.listdir(tmp_path) == ["a.zarr"]
    assert verify(tmp_path / "a.zarr") == []
