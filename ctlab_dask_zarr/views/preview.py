"""A picture of a volume: its orthogonal mid-slices, with a scale bar."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ctlab_dask_zarr.codec.sample import grey_range
from ctlab_dask_zarr.errors import InvalidArgumentError, MetadataError
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.read.source import open_volume
from ctlab_dask_zarr.views.labels import LabelImage, label_colors, read_label_images
from ctlab_dask_zarr.views.slices import Slice, read_mid_slices, valid_voxels
from ctlab_dask_zarr.volume import Volume

__all__ = ["preview", "save_preview", "scale_bar"]

_GAP_PIXELS = 8
_BAR_PIXELS = 5
_FONT_PIXELS = 13
_LINE_PIXELS = 20
_PAPER = (255, 255, 255)
_INK = (0, 0, 0)
#: Masked voxels: dark, and yet no grey that a voxel could have.
_MASKED = np.array((24, 30, 52), np.uint8)
#: How much of a label's colour covers the grey below it.
_OVERLAY = 0.5
#: The longest a scale bar becomes, as a part of the first slice's width.
_LONGEST_BAR = 0.4

RGBPicture = npt.NDArray[np.uint8]


def preview(
    source: Volume | str | os.PathLike[str],
    *,
    size: int = 512,
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """Draw the slices through the middle of a volume, perpendicular to z, y and x.

    All three have the same physical scale in both directions, whatever the shape of a voxel. Grey
    levels run from the 0.5th to the 99.5th percentile of what is drawn, without the mask; masked
    voxels are dark blue. Volumes of labels and segmentations are drawn in colours. A picture too
    small for all that is written below it has less written below it.

    Of a store with several levels the coarsest is read that is as fine as the picture, and of any
    dataset only what the slices cross.

    Parameters
    ----------
    source
        A dataset of three axes, or two; or its path.
    size
        Pixels along the longest edge of the volume.
    labels
        Names of label images in the store that are drawn over the slices; None: all there are.

    Raises
    ------
    InvalidArgumentError
        A size that is no number of pixels; a label image that is not there.
    MetadataError
        A label image that is to be drawn, or the list of them, is not as OME-Zarr says.

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
    dataset = source if isinstance(source, Volume) else open_volume(source)
    if 0 in dataset.shape:
        raise InvalidArgumentError(f"{dataset!r} has no voxels to draw")
    chosen = _chosen(read_label_images(dataset), labels, dataset)
    extents = [n * v for n, v in zip(dataset.shape, dataset.voxel_size, strict=True)]
    pixel_size = max(extents) / size
    slices = read_mid_slices(dataset, pixel_size)
    shapes = [_shape_pixels(extents, part.axes, pixel_size) for part in slices]
    if dataset.is_discrete:
        pictures = [
            _colored(part, shape, pixel_size, dataset.mask_value)
            for part, shape in zip(slices, shapes, strict=True)
        ]
    else:
        pictures = _greys(slices, shapes, dataset.mask_value)
    for image in chosen:
        for picture, part in zip(pictures, read_mid_slices(image.dataset, pixel_size), strict=True):
            _overlay(picture, part, pixel_size, image)
    return _compose(dataset, slices, pictures, pixel_size, chosen)


def save_preview(
    source: Volume | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    size: int = 512,
    labels: Sequence[str] | None = None,
) -> None:
    """Draw a dataset, as `preview` does, into a file.

    Parameters
    ----------
    source, size, labels
        As in `preview`.
    path
        The picture to write; its ending says the format, for example ``.png``.

    Raises
    ------
    InvalidArgumentError
        The ending is that of no format that pictures are written in; before anything is read.
    """
    ending = os.path.splitext(os.fspath(path))[1].lower()
    if Image.registered_extensions().get(ending) not in Image.SAVE:
        raise InvalidArgumentError(
            f"{os.fspath(path)!r} does not end like a picture: use .png, .jpg or .tif"
        )
    preview(source, size=size, labels=labels).save(path)


def _chosen(
    images: Sequence[LabelImage], names: Sequence[str] | None, dataset: Volume
) -> list[LabelImage]:
    known = {image.name: image for image in images}
    if names is None:
        names = [n for n, i in known.items() if len(i.dataset.shape) == len(dataset.shape)]
    for name in names:
        if name not in known:
            there = ", ".join(known) or "none"
            raise InvalidArgumentError(f"there is no label image {name!r} (there are: {there})")
        if len(known[name].dataset.shape) != len(dataset.shape):
            raise InvalidArgumentError(f"the label image {name!r} has not the axes of {dataset!r}")
        if known[name].dataset.dtype.kind not in "iu":
            raise MetadataError(
                f"the label image {name!r} holds {known[name].dataset.dtype}, and labels are "
                "integers: name those to draw (--labels NAME), or none (--no-labels)"
            )
    return [known[name] for name in names]


def _shape_pixels(
    extents: Sequence[float], axes: tuple[int, int], pixel_size: float
) -> tuple[int, int]:
    height, width = (max(round(extents[axis] / pixel_size), 1) for axis in axes)
    return height, width


def _greys(
    slices: Sequence[Slice], shapes: Sequence[tuple[int, int]], mask_value: Any
) -> list[RGBPicture]:
    means = [
        _mean(part.voxels, shape, mask_value) for part, shape in zip(slices, shapes, strict=True)
    ]
    low, high = grey_range(np.concatenate([mean[np.isfinite(mean)] for mean in means]))
    pictures = []
    for mean in means:
        valid = np.isfinite(mean)
        scaled = np.clip((np.where(valid, mean, low) - low) / (high - low), 0, 1)
        grey = np.rint(scaled * 255).astype(np.uint8)[..., None]
        pictures.append(np.where(valid[..., None], np.repeat(grey, 3, axis=2), _MASKED))
    return pictures


def _mean(
    voxels: npt.NDArray[Any], shape: tuple[int, int], mask_value: Any
) -> npt.NDArray[np.float64]:
    """Average the valid voxels below each pixel; NaN where they are fewer than half of them."""
    valid = valid_voxels(voxels, mask_value)
    # Sums are of what sets the voxels apart, so that single precision is enough.
    origin = voxels.dtype.type(np.mean(voxels, where=valid, dtype=np.float64) if valid.any() else 0)
    apart = np.subtract(np.where(valid, voxels, origin), origin, dtype=np.float64)
    total, weight = _shrunk(apart, shape), _shrunk(valid, shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(weight >= 0.5, total / weight + float(origin), np.nan)


def _shrunk(plane: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    height, width = shape
    image = Image.fromarray(plane.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), np.float64)


def _nearest(
    part: Slice, shape: tuple[int, int], pixel_size: float
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Return the voxel below the centre of each pixel, and where there is one at all.

    By physical place: a label image need not have the shape of what it lies over.
    """
    rows, columns = (
        ((np.arange(n_pixels) + 0.5) * pixel_size / edge).astype(np.int64)
        for n_pixels, edge in zip(shape, part.voxel_size, strict=True)
    )
    height, width = part.voxels.shape
    there = (rows < height)[:, None] & (columns < width)
    return part.voxels[np.ix_(np.minimum(rows, height - 1), np.minimum(columns, width - 1))], there


def _colored(part: Slice, shape: tuple[int, int], pixel_size: float, mask_value: Any) -> RGBPicture:
    values, _ = _nearest(part, shape, pixel_size)
    masked = ~valid_voxels(values, mask_value)[..., None]
    return np.where(masked, _MASKED, label_colors(values, {0: (0, 0, 0)}))


def _overlay(picture: RGBPicture, part: Slice, pixel_size: float, image: LabelImage) -> None:
    height, width = picture.shape[:2]
    values, there = _nearest(part, (height, width), pixel_size)
    seen = there & (values != 0) & valid_voxels(values, image.dataset.mask_value)
    mixed = (1 - _OVERLAY) * picture[seen] + _OVERLAY * label_colors(values[seen], image.colors)
    picture[seen] = np.rint(mixed).astype(np.uint8)


def _compose(
    dataset: Volume,
    slices: Sequence[Slice],
    pictures: Sequence[RGBPicture],
    pixel_size: float,
    labels: Sequence[LabelImage],
) -> Image.Image:
    """Put the slices side by side, what they are below them, and below that the scale bar."""
    font = ImageFont.load_default(_FONT_PIXELS)
    height = max(picture.shape[0] for picture in pictures)
    widths = [picture.shape[1] for picture in pictures]
    lefts = [sum(widths[:n]) + n * _GAP_PIXELS for n in range(len(widths))]
    titles = [
        _first_fitting(_titles(dataset, part), width + _GAP_PIXELS / 2, font)
        for part, width in zip(slices, widths, strict=True)
    ]
    length, text = scale_bar(widths[0] * _LONGEST_BAR * pixel_size, dataset.voxel_unit)
    bar_pixels = max(round(length / pixel_size), 1)
    text_left = bar_pixels + _GAP_PIXELS
    # A bar says nothing without its length: there is always room for that.
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


def _titles(dataset: Volume, part: Slice) -> list[str]:
    """Return what can be written below a slice, the most telling first."""
    names = dataset.dimension_names
    shown = f"{names[part.axes[1]]} {names[part.axes[0]]}"
    if part.cut_axis is None:
        return [shown]
    where = f"{names[part.cut_axis]} = {dataset.shape[part.cut_axis] // 2}"
    return [f"{shown}  at  {where}", shown]


def _first_fitting(texts: Sequence[str], width: float, font: Any) -> str:
    """Return the first text for which there is room, whole: half a number is a wrong one."""
    return next((text for text in texts if font.getlength(text) <= width), "")


def scale_bar(longest: float, unit: VoxelUnit) -> tuple[float, str]:
    """Return the length of a scale bar, in `unit`, and what to write beside it.

    Parameters
    ----------
    longest
        The bar is 1, 2 or 5 times a power of ten long, in the unit that is written, and no longer
        than this.
    unit
        Of `longest`.

    Examples
    --------
    >>> scale_bar(730.0, VoxelUnit.NM)
    (500.0, '500 nm')
    >>> scale_bar(2100.0, VoxelUnit.UM)
    (2000.0, '2 mm')
    >>> scale_bar(99.0, VoxelUnit.VOXEL)
    (50.0, '50 voxels')
    """
    written, factor = unit, 1.0
    if unit != VoxelUnit.VOXEL:
        # The largest unit of which the bar is at least one.
        for candidate in (VoxelUnit.NM, VoxelUnit.UM, VoxelUnit.MM, VoxelUnit.M):
            in_candidate = unit.conversion_factor(candidate)
            if candidate == VoxelUnit.NM or longest * in_candidate >= 1 - 1e-9:
                written, factor = candidate, in_candidate
    # A hair of room: 0.2 * 25 pixels of 20 um are 100 um, but for a rounding error.
    number = _round_down(longest * factor * (1 + 1e-9))
    # Units by their short names, as everywhere: Pillow's own font has no micro sign.
    symbol = "voxels" if written == VoxelUnit.VOXEL else str(written)
    return number / factor, f"{number:.6g} {symbol}"


def _round_down(number: float) -> float:
    power = math.floor(math.log10(number))
    # Parsed as decimal, because products of powers of ten are not exact.
    return max(n for digit in (1, 2, 5) if (n := float(f"{digit}e{power}")) <= number)
