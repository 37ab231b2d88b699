"""A picture of a volume: its orthogonal mid-slices, with a scale bar."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ctlab_dask_zarr.codec.values import contrast_of, valid_voxels
from ctlab_dask_zarr.errors import InvalidArgumentError, MetadataError
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.read.source import open_to_compare
from ctlab_dask_zarr.views.labels import LabelImage, label_colors, read_label_images
from ctlab_dask_zarr.views.slices import Slice, extents_of, grey_levels, read_mid_slices
from ctlab_dask_zarr.volume import Volume

_GAP_PIXELS = 8
_BAR_PIXELS = 5
_FONT_PIXELS = 13
_LINE_PIXELS = 20
_PAPER = (255, 255, 255)
_INK = (0, 0, 0)
#: Masked voxels are dark, in a colour that no grey voxel has.
_MASKED = np.array((24, 30, 52), np.uint8)
#: How much of a label's colour covers the grey below it.
_OVERLAY = 0.5
#: The scale bar is at most this part of the first slice's width.
_LONGEST_BAR = 0.4

RGBPicture = npt.NDArray[np.uint8]
Shape = tuple[int, ...]


def preview(
    source: Volume | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    size: int = 512,
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """Draw the slices through the middle of a volume, perpendicular to z, y and x.

    All three have the same physical scale in both directions, whatever the shape of a voxel. Grey
    levels run from the 0.5th to the 99.5th percentile of the voxels that are drawn and not masked;
    masked voxels are dark blue. Volumes of labels and segmentations are drawn in colours. Captions
    that do not fit into a small picture are left out.

    Only what the slices cross is read; if a store has several levels, from the coarsest one that is
    as fine as the picture.

    Parameters
    ----------
    source
        A dataset of two or three axes, or its path.
    path
        Where to save the picture, if given; its ending chooses the format, as ``.png``.
    size
        Pixels along the longest edge of the volume.
    labels
        Names of label images in the store to draw over the slices; by default all of them.

    Raises
    ------
    InvalidArgumentError
        The size is less than one pixel, the ending of `path` is not that of a picture format, or
        there is no such label image.
    MetadataError
        A label image to draw, or the list of label images, does not follow OME-Zarr.

    Examples
    --------
    >>> import dask.array as da
    >>> from ctlab_dask_zarr import Dataset
    >>> volume = Dataset(
    ...     da.random.random((20, 30, 40)), dimension_names=("z", "y", "x"),
    ...     voxel_unit="um", voxel_size=(2.0, 1.0, 1.0),
    ... )
    >>> preview(volume, size=80).width  # 40 um and 40 um and 30 um, at 2 pixels a um, and gaps
    236
    """
    if size < 1:
        raise InvalidArgumentError(f"a picture cannot be {size} pixels wide")
    ending = "" if path is None else os.path.splitext(os.fspath(path))[1].lower()
    if path is not None and Image.registered_extensions().get(ending) not in Image.SAVE:
        raise InvalidArgumentError(
            f"{os.fspath(path)!r} does not end like a picture: use .png, .jpg or .tif"
        )
    volume = source if isinstance(source, Volume) else open_to_compare(source)
    if 0 in volume.shape:
        raise InvalidArgumentError(f"{volume!r} has no voxels to draw")
    chosen = _chosen(read_label_images(volume), labels, volume)
    extents = extents_of(volume)
    pixel_size = max(extents) / size
    slices = read_mid_slices(volume, pixel_size)
    shapes = [tuple(max(round(extents[n] / pixel_size), 1) for n in part.axes) for part in slices]
    draw = _colored if volume.is_discrete else _greys
    pictures = draw(slices, shapes, pixel_size, volume.mask_value)
    for image in chosen:
        parts = read_mid_slices(image.volume, pixel_size)
        for drawn, part in zip(pictures, parts, strict=True):
            _overlay(drawn, part, pixel_size, image)
    picture = _compose(volume, slices, pictures, pixel_size, chosen)
    if path is not None:
        picture.save(path)
    return picture


def _chosen(
    images: Sequence[LabelImage], names: Sequence[str] | None, volume: Volume
) -> list[LabelImage]:
    known = {image.name: image for image in images}
    if names is None:
        names = [n for n, i in known.items() if len(i.volume.shape) == len(volume.shape)]
    for name in names:
        if name not in known:
            there = ", ".join(known) or "none"
            raise InvalidArgumentError(f"there is no label image {name!r} (there are: {there})")
        labels = known[name].volume
        if len(labels.shape) != len(volume.shape):
            raise InvalidArgumentError(f"the label image {name!r} has other axes than {volume!r}")
        if labels.dtype.kind not in "iu":
            raise MetadataError(
                f"the label image {name!r} holds {labels.dtype}, and labels are integers: name "
                "the ones to draw (--labels NAME), or none (--no-labels)"
            )
    return [known[name] for name in names]


def _greys(
    slices: Sequence[Slice], shapes: Sequence[Shape], pixel_size: float, mask_value: Any
) -> list[RGBPicture]:
    means = [_mean(part.voxels, n, mask_value) for part, n in zip(slices, shapes, strict=True)]
    contrast = contrast_of(np.concatenate([mean.ravel() for mean in means]), None)
    pictures = []
    for mean in means:
        valid = np.isfinite(mean)
        grey = grey_levels(mean, valid, contrast)[..., None]
        pictures.append(np.where(valid[..., None], np.repeat(grey, 3, axis=2), _MASKED))
    return pictures


def _mean(voxels: npt.NDArray[Any], shape: Shape, mask_value: Any) -> npt.NDArray[np.float64]:
    """Average the valid voxels below each pixel; NaN if fewer than half of them are valid."""
    height, width = shape

    def shrunk(plane: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        image = Image.fromarray(plane.astype(np.float32))
        return np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float64)

    valid = valid_voxels(voxels, mask_value)
    # Pillow averages in single precision; relative to the mean, small differences survive that.
    origin = voxels.dtype.type(np.mean(voxels, where=valid, dtype=np.float64) if valid.any() else 0)
    apart = np.subtract(np.where(valid, voxels, origin), origin, dtype=np.float64)
    total, weight = shrunk(apart), shrunk(valid)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight >= 0.5, total / weight + float(origin), np.nan)


def _nearest(
    part: Slice, shape: Shape, pixel_size: float
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return the voxel below the centre of each pixel, and for which pixels there is one.

    Voxels are found by their physical place: a label image may differ in shape from the volume.
    """
    rows, columns = (
        ((np.arange(n_pixels) + 0.5) * pixel_size / edge).astype(np.int64)
        for n_pixels, edge in zip(shape, part.voxel_size, strict=True)
    )
    n_rows, n_columns = part.voxels.shape
    there = (rows < n_rows)[:, None] & (columns < n_columns)
    places = np.ix_(np.minimum(rows, n_rows - 1), np.minimum(columns, n_columns - 1))
    return part.voxels[places], there


def _colored(
    slices: Sequence[Slice], shapes: Sequence[Shape], pixel_size: float, mask_value: Any
) -> list[RGBPicture]:
    pictures = []
    for part, shape in zip(slices, shapes, strict=True):
        values, _ = _nearest(part, shape, pixel_size)
        valid = valid_voxels(values, mask_value)[..., None]
        pictures.append(np.where(valid, label_colors(values, {0: (0, 0, 0)}), _MASKED))
    return pictures


def _overlay(picture: RGBPicture, part: Slice, pixel_size: float, image: LabelImage) -> None:
    values, there = _nearest(part, picture.shape[:2], pixel_size)
    seen = there & (values != 0) & valid_voxels(values, image.volume.mask_value)
    mixed = (1 - _OVERLAY) * picture[seen] + _OVERLAY * label_colors(values[seen], image.colors)
    picture[seen] = np.rint(mixed).astype(np.uint8)


def _compose(
    volume: Volume,
    slices: Sequence[Slice],
    pictures: Sequence[RGBPicture],
    pixel_size: float,
    labels: Sequence[LabelImage],
) -> Image.Image:
    """Put the slices side by side, with titles below them and the scale bar at the bottom."""
    font = ImageFont.load_default(_FONT_PIXELS)
    height = max(picture.shape[0] for picture in pictures)
    widths = [picture.shape[1] for picture in pictures]
    lefts = [sum(widths[:n]) + n * _GAP_PIXELS for n in range(len(widths))]
    names = volume.dimension_names
    titles = []
    for part, width in zip(slices, widths, strict=True):
        down, right = (names[axis] for axis in part.axes)
        texts = [f"{right} {down}"]
        if part.cut_axis is not None:
            axis, number = part.cut_axis, volume.shape[part.cut_axis] // 2
            place = f"{names[axis]} = {number}"
            texts.insert(0, f"{right} {down}  at  {place}")
            if volume.voxel_unit != VoxelUnit.VOXEL:
                position = volume.origin[axis] + number * volume.voxel_size[axis]
                texts.insert(0, f"{texts[0]} ({position:.6g} {volume.voxel_unit})")
        titles.append(_first_fitting(texts, width + _GAP_PIXELS / 2, font))
    length, text = scale_bar(widths[0] * _LONGEST_BAR * pixel_size, volume.voxel_unit)
    bar_pixels = max(round(length / pixel_size), 1)
    text_left = bar_pixels + _GAP_PIXELS
    # A bar means nothing without its length, so there is always room for that.
    canvas_width = max(
        lefts[-1] + max(widths[-1], math.ceil(font.getlength(titles[-1]))),
        text_left + math.ceil(font.getlength(text)),
    )
    if labels:
        with_labels = f"{text}    labels: {', '.join(image.name for image in labels)}"
        text = _first_fitting([with_labels, text], canvas_width - text_left, font)
    caption_height = 2 * _LINE_PIXELS + _BAR_PIXELS
    canvas = Image.new("RGB", (canvas_width, height + caption_height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for left, title, picture in zip(lefts, titles, pictures, strict=True):
        canvas.paste(Image.fromarray(picture), (left, 0))
        draw.text((left, height + 2), title, _INK, font)
    top = height + caption_height - _BAR_PIXELS - (_LINE_PIXELS - _BAR_PIXELS) // 2
    draw.rectangle((0, top, bar_pixels - 1, top + _BAR_PIXELS - 1), _INK)
    draw.text((text_left, top + _BAR_PIXELS / 2), text, _INK, font, "lm")
    return canvas


def _first_fitting(texts: Sequence[str], width: float, font: Any) -> str:
    """Return the first text that fits as a whole: half a number would be a wrong one."""
    return next((text for text in texts if font.getlength(text) <= width), "")


def scale_bar(longest: float, unit: VoxelUnit) -> tuple[float, str]:
    """Return the length of a scale bar, in `unit`, and the text beside it.

    The bar is 1, 2 or 5 times a power of ten long, in the unit of the text, and no longer than
    `longest`.

    Examples
    --------
    >>> scale_bar(2100.0, VoxelUnit.UM)
    (2000.0, '2 mm')
    """
    written, factor = unit, 1.0
    if unit != VoxelUnit.VOXEL:
        # The largest unit in which the bar is at least 1 long.
        larger = (VoxelUnit.M, VoxelUnit.MM, VoxelUnit.UM)
        fitting = (u for u in larger if longest * unit.conversion_factor(u) >= 1 - 1e-9)
        written = next(fitting, VoxelUnit.NM)
        factor = unit.conversion_factor(written)
    # Allow for rounding: 0.2 * 25 pixels of 20 um are 100 um.
    room = longest * factor * (1 + 1e-9)
    power = math.floor(math.log10(room))
    # Parsed as decimal, because products of powers of ten are not exact.
    number = max(n for digit in (1, 2, 5) if (n := float(f"{digit}e{power}")) <= room)
    # Short names of units, because Pillow's font has no micro sign.
    symbol = "voxels" if written == VoxelUnit.VOXEL else str(written)
    return number / factor, f"{number:.6g} {symbol}"
