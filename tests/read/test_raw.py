"""Raw voxels with and without a header become volumes; what does not fit is told with figures."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest

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
from ctlab_dask_zarr.read import deflated
from tests.builders import UM, assert_opens_as, random_voxels, run_here

VOXELS = random_voxels((6, 40, 50))


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "i2", ">i4", "u4", ">f4", "f8"])
@pytest.mark.parametrize("offset", [None, 37])
def test_a_file_described_by_hand(tmp_path: Path, dtype: str, offset: int | None) -> None:
    voxels = VOXELS.astype(np.dtype(dtype).newbyteorder("="))
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(offset or 0) + voxels.astype(dtype).tobytes())
    assert_opens_as(path, voxels, shape=(6, 40, 50), dtype=dtype, offset=offset)
    order = "big" if dtype.startswith(">") else "little"
    name = np.dtype(dtype).newbyteorder("=").name
    assert_opens_as(path, voxels, shape=[6, 40, 50], dtype=name, byte_order=order, offset=offset)


def test_a_file_of_another_size_is_told_with_both_figures(tmp_path: Path) -> None:
    path = tmp_path / "a.vol"
    path.write_bytes(VOXELS.tobytes()[:-2])
    with pytest.raises(IncompleteSourceError, match=r"holds 23,998 bytes.* make 24,000"):
        Dataset.from_path(path, shape=(6, 40, 50), dtype="uint16", **UM)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "has no header: say what it holds with shape="),
        ({"shape": (6, 40, 50)}, "dtype="),
        ({"shape": (6, 40, 50), "dtype": "u2", "byte_order": "middle"}, "neither 'little' nor"),
        ({"shape": (6, 0, 50), "dtype": "u2"}, "two or three numbers"),
        ({"shape": (6,), "dtype": "u2"}, "two or three numbers"),
        ({"shape": (6, 40, 50), "dtype": "grey"}, "not a dtype"),
        ({"shape": (6, 40, 50), "dtype": "c8"}, "not of integers or floats"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path: Path, options: Any, text: str) -> None:
    (tmp_path / "a.raw").write_bytes(VOXELS.tobytes())
    with pytest.raises(InvalidArgumentError, match=text):
        Dataset.from_path(tmp_path / "a.raw", **UM, **options)


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
def test_nrrd_of_another_program(tmp_path: Path, encoding: str, name: str, dtype: str) -> None:
    voxels = VOXELS.astype(dtype)
    header = {
        "encoding": encoding, "space units": ["mm", "mm", "mm"], "space": "left-posterior-superior",
        "space directions": np.diag([0.0015, 0.002, 0.003]), "space origin": [1.0, 2.0, 3.0],
    }  # fmt: skip
    nrrd.write(str(tmp_path / name), voxels, header, index_order="C")
    scan = assert_opens_as(tmp_path / name, voxels)
    scan = Dataset.from_path(tmp_path / name)
    assert scan.voxel_size == pytest.approx((0.003, 0.002, 0.0015))
    assert (str(scan.voxel_unit), scan.origin) == ("mm", (3.0, 2.0, 1.0))


def test_nrrd_of_slices_in_files_and_of_spacings(tmp_path: Path) -> None:
    for number, page in enumerate(VOXELS, 1):
        (tmp_path / f"s{number:03d}.raw").write_bytes(b"head" + page.astype(">u2").tobytes())
    common = (
        "NRRD0004\n# made by hand\ntype: ushort\ndimension: 3\nsizes: 50 40 6\nencoding: raw\n"
        "endian: big\nspacings: 1 2 3\nbyte skip: -1\n"
    )
    (tmp_path / "a.nhdr").write_text(common + "data file: s%03d.raw 1 6 1\n")
    names = "".join(f"s{n:03d}.raw\n" for n in range(1, 7))
    (tmp_path / "b.nhdr").write_text(common + f"data file: LIST\n{names}")
    for path in (tmp_path / "a.nhdr", tmp_path / "b.nhdr"):
        assert_opens_as(path, VOXELS)
        assert Dataset.from_path(path, voxel_unit="um").voxel_size == (3.0, 2.0, 1.0)
        with pytest.raises(MetadataError, match=r"does not say the unit .*\(3.0, 2.0, 1.0\)"):
            Dataset.from_path(path)
    (tmp_path / "s004.raw").unlink()
    with pytest.raises(IncompleteSourceError, match=r"s004.raw does not exist, which the header"):
        Dataset.from_path(tmp_path / "a.nhdr", **UM)


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("is_local", [False, True])
def test_metaimage(tmp_path: Path, is_compressed: bool, is_local: bool) -> None:
    data = VOXELS.tobytes()
    data = zlib.compress(data) if is_compressed else data
    header = (
        "ObjectType = Image\nNDims = 3\nDimSize = 50 40 6\nElementType = MET_USHORT\n"
        f"ElementSpacing = 1 2 3\nOffset = 4 5 6\nCompressedData = {is_compressed}\n"
        "BinaryDataByteOrderMSB = False\n"
    )
    if is_local:
        text = header + "ElementDataFile = LOCAL\n"
        (tmp_path / "a.mha").write_bytes(text.encode() + data)
    else:
        (tmp_path / "a.mha").write_text(header + "ElementDataFile = a.zraw\n")
        (tmp_path / "a.zraw").write_bytes(data)
    assert_opens_as(tmp_path / "a.mha", VOXELS)
    scan = Dataset.from_path(tmp_path / "a.mha", voxel_unit="mm")
    assert scan.voxel_size == (3.0, 2.0, 1.0)


def test_a_compressed_stream_is_read_from_where_it_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deflated, "_STEP_NBYTES", 5000)
    monkeypatch.setattr(deflated, "_READ_NBYTES", 700)
    head = "NRRD0004\ntype: ushort\ndimension: 3\nsizes: 50 40 6\nencoding: gzip\nendian: little\n"
    half = len(VOXELS.tobytes()) // 2
    streams = gzip.compress(VOXELS.tobytes()[:half]) + gzip.compress(VOXELS.tobytes()[half:])
    (tmp_path / "b.nrrd").write_bytes(head.encode() + b"\n" + zlib.compress(VOXELS.tobytes()))
    (tmp_path / "a.nrrd").write_bytes(head.encode() + b"\n" + gzip.compress(VOXELS.tobytes()))
    for name in ("a.nrrd", "b.nrrd"):
        source = Dataset.from_path(tmp_path / name, **UM).source
        for z in (4, 1, 5, 0, 3, 2):
            np.testing.assert_array_equal(source[z], VOXELS[z])
    (tmp_path / "two.nrrd").write_bytes(head.encode() + b"\n" + streams)
    with pytest.raises(IncompleteSourceError, match=r"holds 12,000 bytes of voxels, inflated"):
        Dataset.from_path(tmp_path / "two.nrrd", **UM)
    cut = (tmp_path / "b.nrrd").read_bytes()[:-3000]
    (tmp_path / "b.nrrd").write_bytes(cut)
    with pytest.raises(IncompleteSourceError, match=r"b.nrrd is damaged: .*it ends after"):
        Dataset.from_path(tmp_path / "b.nrrd", **UM).data.compute()


BAD = {
    "type": ("type: block", "voxels of type 'block' are not read"),
    "encoding": ("encoding: hex", "encoding 'hex' is not read, only raw and gzip"),
    "sizes": ("sizes: 50 forty 6", "sizes is '50 forty 6'"),
    "colours": ("sizes: 3 50 40 6", "axes of lengths 3 x 50 x 40 x 6 are not read"),
    "endian": ("endian: ", "endian is '', which has to be"),
    "size": ("sizes: 50 40 7", "make 28,000"),
    "skip": ("line skip: 2", "line skip"),
}


@pytest.mark.parametrize(("line", "text"), BAD.values(), ids=BAD)
def test_a_bad_header_is_named(tmp_path: Path, line: str, text: str) -> None:
    lines = ["type: ushort", "dimension: 3", "sizes: 50 40 6", "encoding: raw", "endian: little"]
    key = line.split(":")[0]
    lines = [line if old.split(":")[0] == key else old for old in lines]
    lines += [line] if line not in lines else []
    path = tmp_path / "a.nrrd"
    path.write_bytes("\n".join(["NRRD0005", *lines, "", ""]).encode() + VOXELS.tobytes())
    with pytest.raises(
        (MetadataError, UnsupportedFormatError, IncompleteSourceError), match=text
    ) as caught:
        Dataset.from_path(path, **UM)
    assert str(path) in str(caught.value)


def test_a_header_and_a_description_at_once_are_refused(tmp_path: Path) -> None:
    nrrd.write(str(tmp_path / "a.nrrd"), VOXELS, index_order="C")
    with pytest.raises(InvalidArgumentError, match="leave dtype out"):
        Dataset.from_path(tmp_path / "a.nrrd", dtype="u2", **UM)
    with pytest.raises(DatasetNotFoundError, match="does not exist"):
        Dataset.from_path(tmp_path / "b.raw", shape=(1, 2), dtype="u1", **UM)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr"])
def test_written_verified_and_found_changed(tmp_path: Path, name: str) -> None:
    nrrd.write(str(tmp_path / name), VOXELS, {"encoding": "gzip"}, index_order="C")
    scan = Dataset.from_path(tmp_path / name, **UM)
    dataset_to_zarr(scan, tmp_path / "o.zarr", chunks=(4, 8, 8), shards=(4, 32, 32))
    np.testing.assert_array_equal(dataset_from_zarr(tmp_path / "o.zarr").data.compute(), VOXELS)
    assert not verify(tmp_path / "o.zarr", scan)
    nrrd.write(str(tmp_path / name), VOXELS[:, ::-1], {"encoding": "gzip"}, index_order="C")
    with pytest.raises(IncompleteSourceError, match="changed since"):
        scan.data.compute()


def test_the_command_line_takes_a_description(tmp_path: Path) -> None:
    (tmp_path / "scan.dat").write_bytes(bytes(16) + VOXELS.astype(">u2").tobytes())
    source = [tmp_path / "scan.dat", "--shape", "6,40,50", "--dtype", "uint16"]
    source += ["--byte-order", "big", "--offset", "16"]
    done = run_here("convert", *source[:1], tmp_path / "a.zarr", *source[1:])
    assert done.returncode == 1
    assert "does not say the voxel size" in done.stderr
    assert not (tmp_path / "a.zarr").exists()
    done = run_here("convert", *source[:1], tmp_path / "a.zarr", *source[1:], "--voxel-size", "2um")
    assert done.returncode == 0, done.stderr
    scan = dataset_from_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(scan.data.compute(), VOXELS)
    assert (scan.voxel_size, str(scan.voxel_unit)) == ((2.0,) * 3, "um")
    done = run_here("verify", tmp_path / "a.zarr", "--source", source[0], *source[1:])
    assert done.returncode == 0, done.stderr + done.stdout
