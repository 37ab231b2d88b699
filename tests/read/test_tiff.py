"""TIFF: stacks as scanners, ImageJ and others write them become volumes, and bad ones are named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from ctlab_dask_zarr import (
    Dataset,
    DatasetNotFoundError,
    IncompleteSourceError,
    InvalidArgumentError,
    MetadataError,
    UnsupportedFormatError,
    dataset_from_zarr,
    dataset_to_zarr,
    verify,
)
from ctlab_dask_zarr.read.source import kind_of
from tests.builders import UM, assert_opens_as, random_voxels

VOXELS = random_voxels((6, 40, 50))


def stack(
    folder: Path, voxels: Any = VOXELS, name: str = "slice_{:04d}.tif", **options: Any
) -> Path:
    folder.mkdir()
    for number, page in enumerate(voxels):
        tifffile.imwrite(folder / name.format(number), page, **options)
    return folder


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", ">u2", "i2", "u4", "f4", ">f4", "f8"])
@pytest.mark.parametrize(
    "options",
    [{}, {"rowsperstrip": 7}, {"tile": (16, 32)}, {"compression": "zlib", "rowsperstrip": 16},
     {"compression": "zlib", "predictor": True}, {"compression": "lzw"},
     {"compression": "zstd", "tile": (16, 16)}, {"bigtiff": True}],
    ids=["plain", "strips", "tiles", "zlib", "predictor", "lzw", "zstd-tiles", "bigtiff"],
)  # fmt: skip
def test_a_stack_is_read_as_it_was_written(tmp_path: Path, dtype: str, options: Any) -> None:
    voxels = VOXELS.astype(np.dtype(dtype).newbyteorder("="))
    order = ">" if dtype.startswith(">") else "<"
    folder = stack(tmp_path / "s", voxels, byteorder=order, **options)
    assert_opens_as(folder, voxels)
    tifffile.imwrite(tmp_path / "one.tif", voxels, byteorder=order, metadata=None, **options)
    assert_opens_as(tmp_path / "one.tif", voxels)


@pytest.mark.parametrize("name", ["a{}.tif", "scan2_{:03d}_rec.TIFF", "7um-{:05d}-b.tif"])
def test_slices_are_in_the_order_of_their_numbers(tmp_path: Path, name: str) -> None:
    voxels = random_voxels((12, 8, 9))
    assert_opens_as(stack(tmp_path / "s", voxels, name), voxels)


def test_slices_of_strips_apart_and_of_both_byte_orders(tmp_path: Path) -> None:
    folder = stack(tmp_path / "s", VOXELS[:3])
    for number, page in enumerate(VOXELS[3:], 3):
        tifffile.imwrite(folder / f"slice_{number:04d}.tif", page, byteorder=">", rowsperstrip=3)
    assert_opens_as(folder, VOXELS)
    tifffile.imwrite(folder / "slice_0004.tif", VOXELS[4], compression="zlib")
    assert_opens_as(folder, VOXELS)


def test_voxel_sizes_of_imagej_and_of_ome(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "ij.tif", VOXELS, imagej=True, resolution=(0.4, 0.5),
        metadata={"spacing": 3.0, "unit": "um", "axes": "ZYX"},
    )  # fmt: skip
    scan = Dataset.from_path(tmp_path / "ij.tif")
    assert scan.voxel_size == pytest.approx((3.0, 2.0, 2.5))
    assert str(scan.voxel_unit) == "um"
    np.testing.assert_array_equal(scan.data.compute(), VOXELS)
    metadata = {"axes": "ZYX", "PhysicalSizeX": 2.5, "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": 0.002, "PhysicalSizeYUnit": "mm", "PhysicalSizeZ": 3}  # fmt: skip
    tifffile.imwrite(tmp_path / "o.ome.tif", VOXELS, metadata=metadata)
    scan = Dataset.from_path(tmp_path / "o.ome.tif")
    assert scan.voxel_size == pytest.approx((3.0, 2.0, 2.5))
    np.testing.assert_array_equal(scan.data.compute(), VOXELS)


@pytest.mark.parametrize("metadata", [None, {"unit": "pixel", "spacing": 2}, {"unit": "um"}])
def test_an_unknown_voxel_size_is_asked_for(tmp_path: Path, metadata: Any) -> None:
    path = tmp_path / "a.tif"
    metadata = (metadata or {}) | {"axes": "ZYX"}
    tifffile.imwrite(path, VOXELS, imagej=True, resolution=(1.0, 1.0), metadata=metadata)
    with pytest.raises(MetadataError, match="give it with voxel_size="):
        Dataset.from_path(path)
    tifffile.imwrite(tmp_path / "b.tif", VOXELS)
    with pytest.raises(MetadataError, match="voxel_unit="):
        Dataset.from_path(tmp_path / "b.tif", voxel_size=2.0)


def test_a_large_stack_of_imagej_has_one_page_alone(tmp_path: Path) -> None:
    # As above 4 GiB: ImageJ writes the first page's tags, and all voxels after one another.
    path = tmp_path / "big.tif"
    tifffile.imwrite(path, VOXELS, imagej=True, metadata={"axes": "ZYX"})
    data = path.read_bytes()
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.pages) == len(VOXELS)
        first, second = tiff.pages[0], tiff.pages[1]
        place = data.index(int(second.offset).to_bytes(4, "little" if data[0] == 73 else "big"))
        assert first.offset < place < first.offset + 400
    path.write_bytes(data[:place] + b"\0\0\0\0" + data[place + 4 :])
    assert_opens_as(path, VOXELS)
    scan = Dataset.from_path(path, slices="2:5", **UM)
    np.testing.assert_array_equal(scan.data.compute(), VOXELS[2:5])


def test_one_page_is_a_plane(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VOXELS[0])
    scan = Dataset.from_path(tmp_path / "a.tif", **UM)
    assert (scan.dimension_names, scan.shape) == (("y", "x"), VOXELS.shape[1:])
    np.testing.assert_array_equal(scan.data.compute(), VOXELS[0])
    np.testing.assert_array_equal(scan.source[3:9, 4:6], VOXELS[0, 3:9, 4:6])


def test_a_run_of_slices(tmp_path: Path) -> None:
    folder = stack(tmp_path / "s", name="s{:02d}.tif")
    os.remove(folder / "s01.tif")
    scan = Dataset.from_path(folder, slices="2:5", **UM)
    np.testing.assert_array_equal(scan.data.compute(), VOXELS[2:5])
    with pytest.raises(IncompleteSourceError, match=r"slices 1 are missing between s00.tif"):
        Dataset.from_path(folder, slices=slice(0, 4), **UM)
    with pytest.raises(IncompleteSourceError, match="slices 6, 7 are missing"):
        Dataset.from_path(folder, slices="2:8", **UM)


@pytest.mark.parametrize("slices", ["5", "a:b", "5:5", "-3:2", slice(0, 4, 2)])
def test_a_run_that_is_none_is_refused(tmp_path: Path, slices: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="run"):
        Dataset.from_path(stack(tmp_path / "s"), slices=slices, **UM)


def _truncated(folder: Path) -> None:
    path = folder / "slice_0003.tif"
    path.write_bytes(path.read_bytes()[:-700])


def _rgb(folder: Path) -> None:
    tifffile.imwrite(folder / "slice_0003.tif", np.zeros((40, 50, 3), "u1"), photometric="rgb")


def _other_volume(folder: Path) -> None:
    tifffile.imwrite(folder / "dark_0000.tif", VOXELS[0])


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "missing": (lambda f: os.remove(f / "slice_0003.tif"), IncompleteSourceError,
                "slices 3 are missing between slice_0000.tif and slice_0005.tif"),
    "truncated": (_truncated, IncompleteSourceError, "slice_0003.tif is truncated"),
    "empty": (lambda f: (f / "slice_0003.tif").write_bytes(b""), IncompleteSourceError,
              "slice_0003.tif is a damaged TIFF"),
    "text": (lambda f: (f / "slice_0003.tif").write_bytes(b"hello, world"), IncompleteSourceError,
             "slice_0003.tif is a damaged TIFF"),
    "size": (lambda f: tifffile.imwrite(f / "slice_0003.tif", VOXELS[3, :, 1:]),
             IncompleteSourceError, r"slice_0003.tif \(40 x 49 uint16\) differ from slice_0000"),
    "type": (lambda f: tifffile.imwrite(f / "slice_0003.tif", VOXELS[3].astype("u1")),
             IncompleteSourceError, r"slice_0003.tif \(40 x 50 uint8\) differ"),
    "rgb": (_rgb, UnsupportedFormatError, r"slice_0003.tif has 3 samples a pixel \(colours\)"),
    "bits": (lambda f: tifffile.imwrite(f / "slice_0003.tif", VOXELS[3] > 9, photometric=1),
             UnsupportedFormatError, "slice_0003.tif has pixels of 1 bits"),
    "pages": (lambda f: tifffile.imwrite(f / "slice_0003.tif", VOXELS[:2], metadata=None),
              UnsupportedFormatError, "slice_0003.tif has 2 pages"),
    "other": (_other_volume, UnsupportedFormatError, "several volumes, as dark_0000.tif and slice"),
    "twins": (lambda f: tifffile.imwrite(f / "slice_3.tif", VOXELS[3]), UnsupportedFormatError,
              "two files with the number 3"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "kind", "text"), BAD.values(), ids=BAD)
def test_a_bad_folder_is_named_before_anything_is_written(
    tmp_path: Path, spoil: Any, kind: type[Exception], text: str
) -> None:
    folder = stack(tmp_path / "s")
    spoil(folder)
    with pytest.raises(kind, match=text):
        Dataset.from_path(folder, **UM)


def test_a_pattern_leaves_others_out(tmp_path: Path) -> None:
    folder = stack(tmp_path / "s")
    _other_volume(folder)
    assert_opens_as(folder, VOXELS, pattern="slice_*.tif")


@pytest.mark.parametrize(("axes", "name"), [("CYX", "channels"), ("TYX", "times")])
def test_a_lone_third_axis_is_taken_for_slices(tmp_path: Path, axes: str, name: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, VOXELS, imagej=True, metadata={"axes": axes})
    with pytest.warns(UserWarning, match=f"its 6 {name} are taken for slices"):
        scan = Dataset.from_path(path, **UM)
    np.testing.assert_array_equal(scan.data.compute(), VOXELS)


def test_files_of_colours_channels_and_times_are_refused(tmp_path: Path) -> None:
    five = np.zeros((2, 3, 2, 8, 9), "u2")
    tifffile.imwrite(tmp_path / "h.tif", five, imagej=True, metadata={"axes": "TZCYX"})
    with pytest.raises(UnsupportedFormatError, match=r"h\.tif has 2 (times|channels)"):
        Dataset.from_path(tmp_path / "h.tif", **UM)
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((8, 9, 3), "u1"), photometric="rgb")
    with pytest.raises(UnsupportedFormatError, match="colours"):
        Dataset.from_path(tmp_path / "c.tif", **UM)
    with tifffile.TiffWriter(tmp_path / "m.tif") as file:
        for shape in ((8, 9), (8, 9), (8, 10)):
            file.write(np.zeros(shape, "u2"), metadata=None)
    with pytest.raises(IncompleteSourceError, match=r"page 2 of .* is 8 x 10"):
        Dataset.from_path(tmp_path / "m.tif", **UM)


def test_damage_inside_a_compressed_page_is_named(tmp_path: Path) -> None:
    folder = stack(tmp_path / "s", compression="zlib")
    path = folder / "slice_0002.tif"
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].dataoffsets[0] + 40
    data = bytearray(path.read_bytes())
    data[place : place + 60] = bytes(60)
    path.write_bytes(data)
    scan = Dataset.from_path(folder, **UM)
    with pytest.raises(IncompleteSourceError, match=r"slice_0002.tif is damaged: strip 0"):
        scan.data.compute()


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}], ids=["plain", "zlib"])
def test_a_slice_that_changes_after_opening_is_noticed(tmp_path: Path, options: Any) -> None:
    folder = stack(tmp_path / "s", **options)
    scan = Dataset.from_path(folder, **UM)
    scan.source.check_unchanged()
    tifffile.imwrite(folder / "slice_0002.tif", VOXELS[0, :30], **options)
    for use in (scan.data.compute, scan.source.check_unchanged):
        with pytest.raises(IncompleteSourceError, match=r"slice_0002.tif changed"):
            use()
    os.remove(folder / "slice_0002.tif")
    with pytest.raises(IncompleteSourceError, match="is gone"):
        scan.source.check_unchanged()


def test_folders_without_slices(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises((DatasetNotFoundError, UnsupportedFormatError)):
        Dataset.from_path(tmp_path / "s", **UM)
    with pytest.raises(DatasetNotFoundError, match="no TIFF files"):
        Dataset.from_path(tmp_path / "s", filetype="tiff", **UM)


def test_written_resumed_and_verified_against_the_slices(tmp_path: Path) -> None:
    folder = stack(tmp_path / "s")
    scan = Dataset.from_path(folder, **UM)
    assert kind_of(folder).NAME == "TIFF"
    again = Dataset.from_path(folder, **UM)
    assert scan.data.name == again.data.name
    dataset_to_zarr(scan, tmp_path / "o.zarr", chunks=(4, 8, 8), shards=(4, 32, 32))
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "o.zarr").data.compute(), VOXELS)
    assert not verify(tmp_path / "o.zarr", again)
    tifffile.imwrite(folder / "slice_0002.tif", VOXELS[3])
    (problem,) = verify(tmp_path / "o.zarr", Dataset.from_path(folder, **UM))
    assert "z 2" in str(problem) or "differ" in str(problem)


def ome_set(folder: Path, n_files: int = 3, *, compression: str | None = None) -> Path:
    """An OME-TIFF of several files, whose planes lie in them one run after the other."""
    folder.mkdir()
    per_file = len(VOXELS) // n_files
    names = [f"part{number}.ome.tif" for number in range(n_files)]
    planes = "".join(
        f'<TiffData IFD="{z % per_file}" FirstZ="{z}" FirstC="0" FirstT="0" PlaneCount="1">'
        f'<UUID FileName="{names[z // per_file]}">urn:uuid:{z // per_file}</UUID></TiffData>'
        for z in range(per_file * n_files)
    )
    depth, height, width = per_file * n_files, *VOXELS.shape[1:]
    head = '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{}">'
    whole = (
        f'{head}<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
        f'SizeX="{width}" SizeY="{height}" SizeZ="{depth}" SizeC="1" SizeT="1" '
        'PhysicalSizeX="1.5" PhysicalSizeY="2" PhysicalSizeZ="3">'
        f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
    )
    part = f'{head}<BinaryOnly MetadataFile="{names[1]}" UUID="urn:uuid:1"/></OME>'
    for number, name in enumerate(names):
        text = (whole if number == 1 else part).replace("{}", str(number))
        voxels = VOXELS[number * per_file : (number + 1) * per_file]
        options = {"description": text, "metadata": None, "compression": compression}
        tifffile.imwrite(folder / name, voxels, photometric="minisblack", **options)
    return folder


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_an_ome_tiff_of_several_files(tmp_path: Path, compression: str | None) -> None:
    folder = ome_set(tmp_path / "set", compression=compression)
    n = len(VOXELS) // 3 * 3
    for path in (folder, folder / "part1.ome.tif"):
        scan = Dataset.from_path(path)
        assert scan.voxel_size == (3.0, 2.0, 1.5)
        np.testing.assert_array_equal(scan.data.compute(scheduler="sync"), VOXELS[:n])
    run = Dataset.from_path(folder, slices="1:3")
    np.testing.assert_array_equal(run.data.compute(scheduler="sync"), VOXELS[1:3])


def test_an_ome_tiff_of_several_files_that_is_not_whole_or_not_alone(tmp_path: Path) -> None:
    folder = ome_set(tmp_path / "set")
    with pytest.raises(UnsupportedFormatError, match=r"whose metadata is in part1.ome.tif: open"):
        Dataset.from_path(folder / "part0.ome.tif")
    tifffile.imwrite(folder / "z.tif", VOXELS[0])
    with pytest.raises(UnsupportedFormatError, match=r"and others, as z.tif: open part1"):
        Dataset.from_path(folder)
    (folder / "z.tif").unlink()
    (folder / "part2.ome.tif").rename(tmp_path / "kept")
    with pytest.raises(IncompleteSourceError, match=r"part2.ome.tif is missing"):
        Dataset.from_path(folder)
    (tmp_path / "kept").rename(folder / "part2.ome.tif")
    (folder / "part1.ome.tif").unlink()
    with pytest.raises(IncompleteSourceError, match=r"which is not a TIFF file of that folder"):
        Dataset.from_path(folder)


def test_slices_with_the_same_header_are_opened_by_it_and_others_by_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    for z, plane in enumerate(VOXELS):
        # One slice has its lines elsewhere, in a file of the same size.
        text = "a" * 9 if z != 3 else "b" * 9
        tifffile.imwrite(folder / f"s{z}.tif", plane, description=text, metadata=None)
    opened: list[str] = []
    original = tifffile.TiffFile.__init__

    def counted(self: Any, file: Any, *arguments: Any, **options: Any) -> None:
        opened.append(Path(file).name)
        original(self, file, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(tifffile.TiffFile, "__init__", counted)
        scan = Dataset.from_path(folder, **UM)
    assert set(opened) == {"s0.tif", "s3.tif"}
    np.testing.assert_array_equal(scan.data.compute(scheduler="sync"), VOXELS)
