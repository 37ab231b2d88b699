"""The picture of a volume: what is seen in it, and how little is read for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from PIL import Image, ImageDraw

from ctlab_dask_zarr import Dataset, VoxelUnit, dataset_from_zarr, dataset_to_zarr
from ctlab_dask_zarr.demo import synthetic_volume, write_mango_netcdf
from ctlab_dask_zarr.errors import InvalidArgumentError, MetadataError
from ctlab_dask_zarr.store.files import LocalFiles
from ctlab_dask_zarr.store.opened import LocalObject
from ctlab_dask_zarr.views.labels import label_colors, read_label_images
from ctlab_dask_zarr.views.preview import preview, scale_bar
from ctlab_dask_zarr.views.slices import coarsest_sufficient, levels_of
from tests.builders import make_dataset
from tests.views.stores import halved, write_labels, write_store

MASKED = (24, 30, 52)


def panels(picture: Image.Image, widths: tuple[int, ...], height: int) -> list[np.ndarray]:
    """Cut the slices out of a picture."""
    pixels = np.asarray(picture)
    lefts = np.cumsum([0, *(w + 8 for w in widths[:-1])])
    return [pixels[:height, left : left + w] for left, w in zip(lefts, widths, strict=True)]


def bar_length(picture: Image.Image) -> int:
    """Measure the black bar at the bottom on the left, from its first column on."""
    black = (np.asarray(picture) == 0).all(axis=2)
    rows = np.flatnonzero(black[:, 0])
    (row,) = {rows[-1]}
    run = black[row]
    return int(np.argmin(run)) if not run.all() else len(run)


def ramp(shape: tuple[int, int, int]) -> np.ndarray:
    """A volume whose value tells its place: z in the hundreds of thousands, then y, then x."""
    z, y, x = np.indices(shape)
    return (z * 10_000 + y * 100 + x).astype(np.int32)


def test_the_slices_are_the_middle_ones_in_the_right_orientation() -> None:
    volume = np.zeros((4, 6, 8), np.float32)
    volume[2, 0, :] = 1  # at the top of the first slice
    volume[:, 3, 0] = 1  # on the left of the second
    volume[0, :, 4] = 1  # at the top of the third
    picture = preview(make_dataset(volume, voxel_size=(1, 1, 1)), size=8)
    first, second, third = panels(picture, (8, 8, 6), 6)
    assert (first[0] == 255).all()
    assert (first[1:, 1:] == 0).all()
    assert (second[:4, 0] == 255).all()
    assert (third[0] == 255).all()
    assert (third[1:4, 1:] == 0).all()


def test_the_mask_does_not_count_for_the_contrast_and_is_dark() -> None:
    volume = np.random.default_rng(0).normal(30_000, 1_000, (40, 40, 40)).astype(np.uint16)
    clear = preview(make_dataset(volume, voxel_size=(1, 1, 1)), size=40)
    masked = volume.copy()
    masked[:, :10] = 65535
    picture = preview(make_dataset(masked, voxel_size=(1, 1, 1)), size=40)
    for before, after in zip(
        panels(clear, (40,) * 3, 40), panels(picture, (40,) * 3, 40), strict=True
    ):
        is_masked = (after == MASKED).all(axis=2)
        assert is_masked.mean() in (0.25, 0.0)
        grey = after[~is_masked]
        assert 0 in grey
        assert 255 in grey, "the rest spans all of the range"
        difference = np.abs(grey.astype(int) - before[~is_masked]).max()
        assert difference < 12, "as if there were no mask"
    # The same values in a type without a mask are voxels like any other, and flatten the rest.
    unmasked = preview(make_dataset(masked, voxel_size=(1, 1, 1), datatype="proju16"), size=40)
    assert panels(unmasked, (40,) * 3, 40)[0][10:].std() < 15


def test_floats_that_are_none_are_dark_and_do_not_count() -> None:
    volume = np.random.default_rng(0).random((20, 20, 20)) * 1e-6
    volume[:, :5] = np.nan
    volume[:, 5:7] = np.inf
    volume[:, 7:9] = 1e300
    picture = preview(make_dataset(volume, voxel_size=(1, 1, 1), datatype="float64"), size=20)
    first = panels(picture, (20,) * 3, 20)[0]
    assert (first[:9] == MASKED).all()
    assert first[9:].std() > 50


@pytest.mark.parametrize("dtype", ["uint8", "int64", "uint64", "float16", "bool"])
def test_every_dtype_is_drawn(dtype: str) -> None:
    volume = (np.indices((8, 8, 8)).sum(axis=0) % 2).astype(dtype)
    picture = preview(make_dataset(volume, voxel_size=(1, 1, 1)), size=8)
    first = panels(picture, (8,) * 3, 8)[0]
    np.testing.assert_array_equal(first[..., 0], volume[4] * 255)


def test_small_differences_of_large_values_are_seen() -> None:
    volume = 2**40 + np.indices((8, 8, 8)).sum(axis=0)
    first = panels(preview(make_dataset(volume, voxel_size=(1, 1, 1)), size=8), (8,) * 3, 8)[0]
    assert len(np.unique(first)) > 10


def test_a_volume_of_one_value_is_medium_grey() -> None:
    picture = preview(make_dataset(np.full((8, 8, 8), 7, np.uint16)), size=8)
    assert set(np.unique(np.asarray(picture)[:2, :2])) <= {127, 128}


def test_a_volume_that_is_all_mask_is_drawn() -> None:
    picture = preview(make_dataset(np.full((8, 8, 8), 65535, np.uint16)), size=24)
    assert (np.asarray(picture)[:4, :4] == MASKED).all()


def test_anisotropic_voxels_have_their_proportions() -> None:
    # 40 x 60 x 80 um, drawn at 2 um a pixel.
    volume = np.zeros((10, 30, 80), np.uint16)
    volume[:, :, 40:] = 1000
    picture = preview(make_dataset(volume, voxel_size=(4.0, 2.0, 1.0)), size=40)
    assert picture.width == 40 + 8 + 40 + 8 + 30
    xy, xz, yz = panels(picture, (40, 40, 30), 30)
    assert (xy[:, :20] == 0).all()
    assert (xy[:, 20:] == 255).all()
    assert (xz[:20, 20:] == 255).all()
    assert (xz[20:, :] == 255).all(), "20 pixels for 40 um; the rest is paper"
    assert (yz[:20] == 255).all(), "the slice at x = 40"


def test_pixels_are_averages_of_voxels_without_the_mask() -> None:
    volume = np.zeros((4, 4, 8), np.uint16)
    volume[:, :, 0] = 100
    volume[:, :, 1] = 300
    volume[:, :, 2] = 65535
    volume[:, :, 3] = 400
    volume[:, :, 4:6] = 0
    volume[:, :3, 6:] = 65535
    volume[:, 3:, 6:] = 50
    volume[:, 0, 7] = 0
    picture = preview(make_dataset(volume, voxel_size=(1, 1, 1)), size=4)
    first = panels(picture, (4, 4, 2), 2)[0]
    assert first[0, 1, 0] > first[0, 0, 0] > first[0, 2, 0], "200, 400 and 0"
    assert (first[0, 3] == MASKED).all(), "one voxel of four is valid"
    assert (first[1, 3] != MASKED).any(), "two voxels of four are"


@pytest.mark.parametrize(
    ("voxel", "unit", "pixels", "text"),
    [
        (2.5, "um", 80, "200 um"),
        (3.0, "nm", 67, "200 nm"),
        (0.01, "mm", 50, "500 um"),
        (0.2, "mm", 50, "10 mm"),
        (1.0, "voxel", 50, "50 voxels"),
        (2.0, "angstrom", 50, "10 nm"),
    ],
)
def test_the_scale_bar_is_as_long_as_it_says(
    voxel: float, unit: str, pixels: int, text: str
) -> None:
    volume = make_dataset(
        np.zeros((50, 100, 200), np.uint16), voxel_size=(voxel,) * 3, voxel_unit=unit
    )
    picture = preview(volume, size=200)
    assert bar_length(picture) == pixels
    assert bar_length(preview(volume, size=400)) == pytest.approx(2 * pixels, abs=1)
    assert text.isascii(), "the font has few other letters"
    assert scale_bar(0.4 * 200 * voxel, VoxelUnit.from_str(unit))[1] == text


@pytest.mark.parametrize("unit", list(VoxelUnit))
def test_every_scale_bar_is_round_and_fits(unit: VoxelUnit) -> None:
    for longest in np.geomspace(1e-3, 1e6, 97):
        length, text = scale_bar(float(longest), unit)
        assert 0.39 * longest < length <= longest * (1 + 1e-8)
        number, name = text.split()
        assert number.strip("0.")[0] in "125"
        if unit != VoxelUnit.VOXEL:
            written = VoxelUnit.from_str(name)
            assert float(number) == pytest.approx(length * unit.conversion_factor(written))


def test_an_image_of_two_axes_is_drawn_as_one() -> None:
    image = np.zeros((20, 80), np.uint16)
    image[:, 40:] = 9
    picture = preview(make_dataset(image, voxel_size=(1, 1)), size=80)
    assert picture.width == 80
    assert (np.asarray(picture)[:20, 40:] == 255).all()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str, float]]:
    """Every text that is drawn: where it begins, what it is, where it ends."""
    found: list[tuple[float, str, float]] = []
    draw_text = ImageDraw.ImageDraw.text

    def spy(draw: Any, place: tuple[float, float], text: str, fill: Any, font: Any, *more: Any):
        found.append((place[0], text, place[0] + draw.textlength(text, font)))
        draw_text(draw, place, text, fill, font, *more)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy)
    return found


@pytest.mark.parametrize("size", [16, 30, 64, 80, 90, 512])
@pytest.mark.parametrize("shape", [(60, 60, 60), (400, 12, 12), (12, 400, 12), (12, 12, 400)])
def test_what_is_written_is_whole_and_has_room(
    written: list[tuple[float, str, float]], size: int, shape: tuple[int, int, int]
) -> None:
    picture = preview(
        make_dataset(np.zeros(shape, np.uint16), voxel_size=(2.5, 2.5, 2.5)), size=size
    )
    z, y, x = (n // 2 for n in shape)
    *titles, (_, scale, scale_end) = written
    for (_, title, _), axes, where in zip(
        titles, ("x y", "x z", "y z"), (f"z = {z}", f"y = {y}", f"x = {x}"), strict=True
    ):
        place = f"{axes}  at  {where}"
        with_unit = f"{place} ({int(where[4:]) * 2.5:g} um)"
        assert title in (with_unit, place, axes, "")
        assert title == with_unit or (size, shape) != (512, (60, 60, 60))
        assert title or size < 512
    ends_of_room = [*(left for left, _, _ in titles[1:]), picture.width]
    for (_, title, end), room in zip(titles, ends_of_room, strict=True):
        assert end <= room, f"{title} is cut, or runs into the next"
    assert re.fullmatch("[125]0* (nm|um)", scale)
    assert scale_end <= picture.width


def test_segmentations_are_drawn_in_colours() -> None:
    volume = np.zeros((8, 8, 8), np.uint8)
    volume[:, :, 2:4] = 1
    volume[:, :, 4:6] = 2
    volume[:, :, 6:] = 255
    data = make_dataset(volume, voxel_size=(1, 1, 1), datatype="segmented")
    first = panels(preview(data, size=16), (16,) * 3, 16)[0]
    assert (first[:, :4] == 0).all()
    assert (first[:, 4:8] == label_colors(np.array(1, np.uint8))).all(), "no mixed pixels"
    assert (first[:, 8:12] == label_colors(np.array(2, np.uint8))).all()
    assert (first[:, 12:] == MASKED).all()


def test_labels_opened_by_their_own_path_are_drawn_in_colours(labelled: Path) -> None:
    first = panels(preview(labelled / "labels" / "phases", size=16), (16,) * 3, 16)[0]
    assert (first[:, :4] == label_colors(np.array(1))).all()
    assert (first[:, 4:8] == label_colors(np.array(2))).all()
    assert (first[:, 8:] == 0).all()


def test_labels_have_colours_that_are_bright_and_differ() -> None:
    for values in (np.arange(1, 60), np.arange(-5, 0), np.array([2**63, 2**64 - 1], np.uint64)):
        colors = label_colors(values).astype(int)
        assert (colors.max(axis=1) == 255).all()
        assert (np.ptp(colors, axis=1) > 100).all(), "none is grey"
        assert len(np.unique(colors, axis=0)) == len(values)
    first = label_colors(np.arange(1, 9)).astype(int)
    apart = np.abs(first[:, None] - first).sum(axis=2) + 1000 * np.eye(8, dtype=int)
    assert apart.min() > 60
    np.testing.assert_array_equal(label_colors(np.array([3])), label_colors(np.array([9, 3]))[1:])


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    volume = np.random.default_rng(0).integers(0, 1000, (16, 16, 16)).astype(np.uint16)
    store = write_store(tmp_path / "scan.zarr", [volume])
    phases = np.zeros((16, 16, 16), np.uint8)
    phases[:, :, :4], phases[:, :, 4:8] = 1, 2
    colors = [{"label-value": 2, "rgba": [0, 0, 255, 255]}]
    write_labels(store, "phases", [phases], image_label={"colors": colors})
    # Of half the resolution: it covers the same sample.
    halves = np.zeros((8, 8, 8), np.int32)
    halves[:, :, 6:] = 7
    write_labels(store, "grains", [halves], voxel_size=(4.0, 4.0, 4.0))
    return store


def test_label_images_of_a_store_are_drawn_over_the_grey(labelled: Path) -> None:
    plain = panels(preview(labelled, size=16, labels=()), (16,) * 3, 16)[0].astype(int)
    both = panels(preview(labelled, size=16), (16,) * 3, 16)[0].astype(int)
    assert (np.ptp(plain, axis=2) == 0).all(), "grey"
    np.testing.assert_array_equal(both[:, 8:12], plain[:, 8:12])
    colour = label_colors(np.array(1)).astype(int)
    assert np.abs(both[:, :4] - (plain[:, :4] + colour) / 2).max() <= 0.5
    given = np.array((0, 0, 255))
    assert np.abs(both[:, 4:8] - (plain[:, 4:8] + given) / 2).max() <= 0.5
    grains = label_colors(np.array(7)).astype(int)
    assert np.abs(both[:, 12:] - (plain[:, 12:] + grains) / 2).max() <= 0.5


@pytest.mark.parametrize(
    ("datatype", "dtype", "mask_value"),
    [("segmented", "uint8", 255), ("labels", "int32", 2**31 - 1)],
)
def test_the_mask_of_labels_is_not_drawn_over_the_grey(
    tmp_path: Path, datatype: str, dtype: str, mask_value: int
) -> None:
    volume = np.random.default_rng(0).integers(0, 1000, (16, 16, 16)).astype(np.uint16)
    labels = np.zeros((16, 16, 16), dtype)
    labels[:, :, 4:8], labels[:, :, 8:] = 1, mask_value
    store = write_store(tmp_path / "scan.zarr", [volume])
    plain = panels(preview(store, size=16), (16,) * 3, 16)[0]
    write_labels(store, "phases", [labels], datatype=datatype)
    drawn = panels(preview(store, size=16), (16,) * 3, 16)[0]
    np.testing.assert_array_equal(drawn[:, :4], plain[:, :4])
    assert (drawn[:, 4:8] != plain[:, 4:8]).any(axis=2).all()
    np.testing.assert_array_equal(drawn[:, 8:], plain[:, 8:])


def test_labels_that_are_no_integers_are_refused_where_they_are_to_be_drawn(labelled: Path) -> None:
    write_labels(labelled, "odd", [np.zeros((16, 16, 16), np.float32)])
    with pytest.raises(MetadataError, match=r"'odd' holds float32.*--no-labels"):
        preview(labelled)
    for names in ((), ["phases"]):
        preview(labelled, size=16, labels=names)


def test_names_of_labels_are_written_where_there_is_room_for_all(
    labelled: Path, written: list[tuple[float, str, float]]
) -> None:
    preview(labelled, size=200)
    assert written[-1][1] == "10 um    labels: phases, grains"
    preview(labelled, size=16)
    assert written[-1][1] == "10 um"


def test_one_label_image_can_be_chosen(labelled: Path) -> None:
    plain = panels(preview(labelled, size=16, labels=()), (16,) * 3, 16)[0]
    one = panels(preview(labelled, size=16, labels=["grains"]), (16,) * 3, 16)[0]
    np.testing.assert_array_equal(one[:, :12], plain[:, :12])
    assert (one[:, 12:] != plain[:, 12:]).any(axis=2).all()
    with pytest.raises(InvalidArgumentError, match=r"no label image 'pores'.*phases, grains"):
        preview(labelled, labels=["pores"])


@pytest.mark.parametrize(
    ("label_list", "message"),
    [
        ('{"attributes": {"ome": {"labels": ["../../elsewhere"]}}}', "elsewhere"),
        ('{"attributes": {"ome": {"labels": "phases"}}}', "not the names"),
        ('{"attributes": {}}', "does not list labels"),
        ("{", "does not list labels"),
    ],
)
def test_a_list_of_labels_that_cannot_be_is_refused(
    labelled: Path, label_list: str, message: str
) -> None:
    (labelled / "labels" / "zarr.json").write_text(label_list)
    with pytest.raises(MetadataError, match=message):
        preview(labelled)


@pytest.mark.parametrize(
    "colors",
    [
        [{"rgba": [1, 2, 3, 4]}],
        [{"label-value": 1, "rgba": [1, 2]}],
        [{"label-value": 1, "rgba": [1, 2, 300, 4]}],
        [{"label-value": "1", "rgba": [1, 2, 3, 4]}],
        ["red"],
        7,
    ],
)
def test_colours_that_cannot_be_are_refused(tmp_path: Path, colors: Any) -> None:
    volume = np.zeros((4, 4, 4), np.uint8)
    store = write_store(tmp_path / "scan.zarr", [volume])
    write_labels(store, "phases", [volume], image_label={"colors": colors})
    with pytest.raises(MetadataError, match=r"labels/phases/zarr\.json"):
        preview(store)


def test_a_colour_of_three_numbers_is_one_without_opacity(tmp_path: Path) -> None:
    volume = np.ones((4, 4, 4), np.uint8)
    store = write_store(tmp_path / "scan.zarr", [volume])
    colors = [{"label-value": 1, "rgba": [0, 0, 255]}]
    write_labels(store, "phases", [volume], image_label={"colors": colors})
    (labels,) = read_label_images(dataset_from_zarr(store))
    assert labels.colors == {1: (0, 0, 255)}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The path of everything that is read, and how many bytes of it."""
    found: list[tuple[str, int]] = []
    read, read_object = LocalFiles.read, LocalObject.read

    def spy(files: LocalFiles, path: str, *limits: Any) -> bytes:
        data = read(files, path, *limits)
        found.append((path, len(data)))
        return data

    def spy_object(opened: LocalObject, start: int, nbytes: int, memory: Any) -> memoryview:
        found.append((opened.path, nbytes))
        return read_object(opened, start, nbytes, memory)

    monkeypatch.setattr(LocalFiles, "read", spy)
    monkeypatch.setattr(LocalObject, "read", spy_object)
    return found


@pytest.mark.parametrize(
    ("size", "level"), [(128, "0"), (96, "0"), (65, "0"), (64, "1"), (33, "1"), (32, "2"), (4, "3")]
)
def test_the_coarsest_level_is_read_that_is_as_fine_as_the_picture(
    tmp_path: Path, reads: list[tuple[str, int]], size: int, level: str
) -> None:
    volumes = [ramp((64, 96, 128))]
    while len(volumes) < 4:
        volumes.append(halved(volumes[-1]))
    store = write_store(tmp_path / "scan.zarr", volumes)
    preview(store, size=size)
    chunks = {Path(path).relative_to(store) for path, _ in reads if "/c/" in path}
    assert {chunk.parts[0] for chunk in chunks} == {level}


def test_an_axis_of_long_voxels_does_not_hold_back_the_others(tmp_path: Path) -> None:
    volume = np.zeros((8, 64, 64), np.uint8)
    levels = [volume, volume[:, ::2, ::2], volume[:, ::4, ::4], volume[::2, ::8, ::8]]
    store = write_store(tmp_path / "scan.zarr", levels, voxel_size=(8.0, 1.0, 1.0))
    found = levels_of(Dataset.from_path(store))
    shapes = [coarsest_sufficient(found, size).shape for size in (0.5, 1, 2, 3, 4, 7, 16)]
    assert shapes == [
        *[(8, 64, 64)] * 2,
        *[(8, 32, 32)] * 2,
        *[(8, 16, 16)] * 2,
        (4, 8, 8),
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:itkwasm")
def test_levels_of_other_writers_are_drawn_like_the_finest(tmp_path: Path) -> None:
    import ngff_zarr

    volume = synthetic_volume((64, 64, 64))[:]
    image = ngff_zarr.to_ngff_image(
        volume,
        dims=("z", "y", "x"),
        scale=dict.fromkeys("zyx", 2.0),
        axes_units=dict.fromkeys("zyx", "micrometer"),
    )
    multiscales = ngff_zarr.to_multiscales(image, scale_factors=[2, 4], chunks=32)
    path = tmp_path / "scan.zarr"
    ngff_zarr.to_ngff_zarr(str(path), multiscales, version="0.5")
    dataset = Dataset.from_path(path)
    assert [level.shape[0] for level in levels_of(dataset)] == [64, 32, 16]
    coarse = panels(preview(dataset, size=32), (32,) * 3, 32)
    alone = Dataset.from_modified(dataset, data=dataset.data.rechunk(64))
    fine = panels(preview(alone, size=32), (32,) * 3, 32)
    for a, b in zip(coarse, fine, strict=True):
        assert np.corrcoef(a[..., 0].ravel(), b[..., 0].ravel())[0, 1] > 0.8


def test_only_what_the_slices_cross_is_read(tmp_path: Path, reads: list[tuple[str, int]]) -> None:
    volume = np.random.default_rng(0).integers(0, 9999, (128, 128, 128)).astype(np.uint16)
    store = tmp_path / "scan.zarr"
    dataset_to_zarr(
        make_dataset(volume),
        store,
        chunks=(16, 16, 16),
        shards=(64, 64, 64),
        create_array_kwargs={"compressors": None},
    )
    reads.clear()
    preview(store)
    n_read = sum(nbytes for path, nbytes in reads if "/c/" in path)
    # Of each slice one layer of inner chunks of 8, and shard indices; gaps between the chunks of
    # a row are read over, where they are smaller than the chunks.
    assert n_read < 0.6 * volume.nbytes


def test_what_was_computed_is_drawn_and_not_what_is_stored(tmp_path: Path) -> None:
    volume = np.zeros((16, 16, 16), np.uint16)
    store = write_store(tmp_path / "scan.zarr", [volume, halved(volume)])
    scan = Dataset.from_path(store)
    changed = Dataset.from_modified(scan, data=da.from_array(np.indices((16, 16, 16)).sum(axis=0)))
    assert panels(preview(changed, size=8), (8,) * 3, 8)[0].std() > 30


def test_what_was_assigned_in_place_is_drawn_and_not_what_is_stored(labelled: Path) -> None:
    stored = preview(labelled, labels=[])
    scan = Dataset.from_path(labelled)
    voxels = np.indices(scan.shape).sum(axis=0).astype(scan.dtype)
    scan.data[:] = voxels
    drawn = preview(scan)
    assert drawn.tobytes() != stored.tobytes()
    expected = make_dataset(
        voxels, voxel_size=scan.voxel_size, datatype=scan.datatype, voxel_unit=scan.voxel_unit
    )
    # Without the labels of the store, too.
    assert drawn.tobytes() == preview(expected).tobytes()


def test_a_corrected_voxel_size_stretches_all_levels(tmp_path: Path) -> None:
    volume = ramp((16, 16, 16))
    store = write_store(tmp_path / "scan.zarr", [volume, halved(volume)])
    scan = Dataset.from_modified(Dataset.from_path(store), voxel_size=(4.0, 2.0, 2.0))
    assert [level.voxel_size for level in levels_of(scan)] == [(4, 2, 2), (8, 4, 4)]


def test_netcdf_and_plain_arrays_are_drawn_alike(tmp_path: Path) -> None:
    volume = synthetic_volume((32, 48, 64))
    source = write_mango_netcdf(tmp_path / "tomoA_nc", volume, slices_per_block=10)
    scan = Dataset.from_path(source)
    dataset_to_zarr(scan, tmp_path / "plain.zarr", ome_zarr_version=None)
    dataset_to_zarr(scan, tmp_path / "group.zarr")
    pictures = [
        np.asarray(preview(path, size=64))
        for path in (source, tmp_path / "plain.zarr", tmp_path / "group.zarr")
    ]
    assert pictures[0][:32, :64].std() > 30
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no voxels"):
        preview(make_dataset(np.zeros((0, 4, 4), np.uint16)))
    with pytest.raises(InvalidArgumentError, match="0 pixels"):
        preview(make_dataset(np.zeros((4, 4, 4), np.uint16)), size=0)
    for name in ("picture", "picture.txt"):
        with pytest.raises(InvalidArgumentError, match="does not end like a picture"):
            preview(tmp_path / "missing.zarr", tmp_path / name)


def test_the_command_writes_the_picture_and_prints_where(labelled: Path, tmp_path: Path) -> None:
    output = tmp_path / "picture.png"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "ctlab_dask_zarr.cli", "preview", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=240)

    done = run(labelled, "-o", output, "--size", "48", "--labels", "grains")
    assert (done.returncode, done.stdout) == (0, f"{output}\n"), done.stderr
    with Image.open(output) as picture:
        drawn = np.asarray(picture)
    np.testing.assert_array_equal(drawn, np.asarray(preview(labelled, size=48, labels=["grains"])))
    assert run(labelled, "-o", output, "--labels", "a", "--no-labels").returncode == 2
    refused = run(labelled, "-o", tmp_path / "b.png", "--labels", "pores")
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    assert not (tmp_path / "b.png").exists()
