"""The kind of source that is an array of an HDF5 file: NeXus, Data Exchange, or any other."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ctlab_dask_zarr.errors import (
    CTLabError,
    DatasetNotFoundError,
    IncompleteSourceError,
    InvalidArgumentError,
    UnsupportedFormatError,
)
from ctlab_dask_zarr.formats.datatype import DataType
from ctlab_dask_zarr.formats.level import Shape
from ctlab_dask_zarr.formats.units import VoxelUnit, chosen_voxel_size
from ctlab_dask_zarr.read.files import SourceFile, slab_blocks
from ctlab_dask_zarr.read.hdf5_source import HDF5Source, load_filters
from ctlab_dask_zarr.read.lazy import lazy_array
from ctlab_dask_zarr.read.netcdf_header import HDF5_MAGIC, hdf5_storage
from ctlab_dask_zarr.read.netcdf_storage import ByHDF5, Chunked, open_hdf5
from ctlab_dask_zarr.store.paths import local_path
from ctlab_dask_zarr.text import install_text, shown
from ctlab_dask_zarr.volume import Volume

NAME = "HDF5"
DESCRIPTION = "HDF5 (FILE.h5::/path/of/the/array)"

#: Between the path of a file and that of an array in it.
_SEPARATOR = "::"
_ENDINGS = (".h5", ".hdf5", ".hdf", ".nxs", ".nx")
#: An HDF5 file may begin after a block of the user's own, of 512 bytes or a power of two of that.
_USER_BLOCKS = (0, 512, 1024, 2048)
_MAX_LISTED = 20
#: Steps of an axis that differ by less than this are rounded, and the axis is regular.
_ROUNDING = 1e-3
#: An attribute that ImageJ's plugin for HDF5, ilastik and others write: z, y, x in micrometres.
_ELEMENT_SIZE = "element_size_um"


def can_open(path: str) -> bool:
    """Whether a path, or what is before ``::`` in it, is an HDF5 file."""
    try:
        with open(_split(path)[0], "rb") as file:
            for begin in _USER_BLOCKS:
                file.seek(begin)
                if file.read(8) == HDF5_MAGIC:
                    return True
    except OSError:
        pass
    return False


def looks_like(path: str) -> bool:
    """Whether a path has the name of an HDF5 file, or of an array in one."""
    return _SEPARATOR in path or path.lower().endswith(_ENDINGS)


def is_ours(path: str) -> bool:
    """Return False: what the CTLab's programs write into HDF5 is mango netCDF."""
    return False


def _split(path: str) -> tuple[str, str]:
    """Return the path of the file, and that of the array in it; empty where it is not given."""
    file, _, dataset = path.partition(_SEPARATOR)
    return file, dataset and "/" + dataset.strip("/")


def open_volume(
    path: str | os.PathLike[str],
    *,
    datatype: DataType | str | None = None,
    parse_history: bool = True,
    chunks: Any = None,
    voxel_size: Sequence[float] | float | None = None,
    voxel_unit: VoxelUnit | str | None = None,
    **kwargs: Any,
) -> Volume:
    """Open an array of an HDF5 file lazily.

    Parameters
    ----------
    path
        ``FILE.h5::/exchange/data``, or the file alone if it holds one array of three axes.
    datatype
        The mango data type, if the voxels are one.
    chunks
        Blocks of the dask array; by default slabs of about 32 MiB of whole stored chunks.
    voxel_size, voxel_unit
        Instead of what the file says: the axes of NXdata (their positions and ``units``), an
        attribute ``element_size_um`` of the array, or NXtomo's pixel size of the sample or, where
        its beam does not magnify, of the detector.
    **kwargs
        For `dask.array.from_array`.

    Raises
    ------
    DatasetNotFoundError
        There is no such file, or no such array in it.
    UnsupportedFormatError
        The array is not of integers or floats, has not two or three axes, or needs a filter that
        is not installed.
    InvalidArgumentError
        The file holds several arrays, which are listed.
    IncompleteSourceError
        The file is damaged, or lacks files of a virtual dataset.
    VoxelSizeError
        The voxel size or its unit is not known.
    """
    local, dataset = _split(local_path(path))
    if not os.path.isfile(local):
        raise DatasetNotFoundError(f"{local} is not a file" if os.path.exists(local) else
                                   f"{local} does not exist")  # fmt: skip
    load_filters()
    try:
        with open_hdf5(local) as file:
            source, own_size, own_unit = _described(file, local, dataset)
    except CTLabError:
        raise
    except (OSError, RuntimeError) as error:
        raise IncompleteSourceError(
            f"{local} cannot be read by HDF5 ({error}): copy it again from where it was made"
        ) from error
    ndim = len(source.shape)
    stored = own_size, own_unit
    size, unit = chosen_voxel_size(source.location, ndim, stored, voxel_size, voxel_unit)
    return Volume(
        lazy_array(source, "hdf5", _blocks(source) if chunks is None else chunks, kwargs),
        dimension_names=("z", "y", "x")[-ndim:],
        voxel_unit=unit,
        voxel_size=size,
        datatype=datatype,
        source=source,
    )


def _described(
    file: Any, local: str, wanted: str
) -> tuple[HDF5Source, Sequence[float] | None, VoxelUnit | None]:
    """Return an array of a file as a source, and what the file says of its voxel size."""
    import h5py

    path = wanted or _only_array(file, local)
    array = file.get(path)
    if not isinstance(array, h5py.Dataset):
        what = "is a group" if array is not None else "does not exist"
        raise DatasetNotFoundError(
            f"{path} {what} in {local}, which holds the arrays {_listed(_arrays(file))}"
        )
    where = f"{local}{_SEPARATOR}{path}"
    if array.dtype.kind not in "iuf" or array.ndim not in (2, 3):
        raise UnsupportedFormatError(
            f"{where} has the type {array.dtype} and the shape {array.shape}, where two or three "
            "axes of integers or floats are read"
        )
    _refuse_filters(array, where)
    order, size, unit = _axes(array)
    others = _virtual_files(array, local) if array.is_virtual else []
    folder, name = os.path.split(local)
    source = HDF5Source(
        "HDF5",
        folder,
        tuple(SourceFile.at(folder, other) for other in [name, *others]),
        tuple(array.shape[axis] for axis in order),
        array.dtype.newbyteorder("="),
        dataset=path,
        order=order,
        storage=_storage(file, array),
        is_swapped=not array.dtype.isnative,
    )
    return source, size, unit


def _storage(file: Any, array: Any) -> Any:
    """Return how the array is stored; what is contiguous or chunked is read without HDF5."""
    if array.ndim == 3:
        return hdf5_storage(file, array)
    return ByHDF5(tuple(array.chunks or array.shape))


def _arrays(file: Any) -> list[tuple[str, Any]]:
    """Return path and array of everything that may be a volume."""
    import h5py

    found: list[tuple[str, Any]] = []

    def look(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == 3 and item.dtype.kind in "iuf":
            found.append((f"/{name}", item))

    file.visititems(look)
    return found


def _only_array(file: Any, local: str) -> str:
    """Return the path of the one array of three axes, or raise `InvalidArgumentError`."""
    found = _arrays(file)
    if len(found) == 1:
        return found[0][0]
    if not found:
        raise UnsupportedFormatError(f"{local} holds no array of three axes of integers or floats")
    raise InvalidArgumentError(
        f"{local} holds several arrays: say which with {os.path.basename(local)}{_SEPARATOR}PATH. "
        f"They are {_listed(found)}"
    )


def _listed(found: Sequence[tuple[str, Any]]) -> str:
    texts = [f"{path} {item.shape} {item.dtype}" for path, item in found[:_MAX_LISTED]]
    more = [f"{len(found) - _MAX_LISTED} more"] if len(found) > _MAX_LISTED else []
    return shown(", ".join(texts + more)) or "of three axes: none"


def _refuse_filters(array: Any, where: str) -> None:
    """Raise `UnsupportedFormatError` if HDF5 cannot undo a filter here."""
    import h5py

    plist = array.id.get_create_plist()
    for index in range(plist.get_nfilters()):
        code, _, _, name = plist.get_filter(index)
        if not h5py.h5z.filter_avail(code):
            text = shown(name.decode("latin-1", "replace")) or "without a name"
            raise UnsupportedFormatError(
                f"{where} is compressed by filter {code} ({text}), which HDF5 does not have here: "
                + install_text("hdf5")
            )


def _virtual_files(array: Any, local: str) -> list[str]:
    """Return the other files of a virtual dataset, or raise if one is not there.

    HDF5 would give fill values in place of its voxels.
    """
    folder = os.path.dirname(local)
    names = dict.fromkeys(part.file_name for part in array.virtual_sources())
    names.pop(".", None)
    missing = [name for name in names if not os.path.isfile(os.path.join(folder, name))]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise IncompleteSourceError(
            f"{local} is a virtual dataset, and {shown(missing[0])}{more} of its files are missing "
            f"in {folder}: put them back"
        )
    return [name for name in names if os.path.join(folder, name) != local]


def _axes(array: Any) -> tuple[Shape, Sequence[float] | None, VoxelUnit | None]:
    """Return which stored axes are z, y and x, their lengths and unit, as NXdata tells them."""
    group = array.parent
    plain = tuple(range(array.ndim))
    sizes = array.attrs.get(_ELEMENT_SIZE)
    if sizes is not None and np.shape(sizes) == (array.ndim,) and (np.asarray(sizes) > 0).all():
        return plain, [float(n) for n in sizes], VoxelUnit.UM
    names = _texts(group.attrs.get("axes", array.attrs.get("axes")))
    if len(names) != array.ndim:
        return plain, *_pixel_size(array)
    wanted = ("z", "y", "x")[-array.ndim :]
    lower = [name.lower() for name in names]
    is_named = sorted(lower) == sorted(wanted)
    order = tuple(lower.index(name) for name in wanted) if is_named else plain
    steps = [_step(group, names[axis], array.shape[axis]) for axis in order]
    units = {unit for _, unit in steps}
    if any(step is None for step, _ in steps) or len(units) != 1:
        return order, *_pixel_size(array)
    return order, [step for step, _ in steps if step is not None], units.pop()


def _pixel_size(array: Any) -> tuple[Sequence[float] | None, VoxelUnit | None]:
    """Return the pixel size that NXtomo gives of the sample, or else of the detector, for all axes.

    It is none where the array is the frames of the detector, of which one axis is an angle; where
    pixels are not square; where there are several detectors; or where the beam magnifies.
    """
    entry = array
    while entry.name != "/" and _class_of(entry) != "NXentry":
        entry = entry.parent
    instrument = next(_groups_of(entry, "NXinstrument"), entry)
    detectors = list(_groups_of(instrument, "NXdetector"))
    if len(detectors) != 1 or any(detectors[0].get(key) == array for key in detectors[0]):
        return None, None
    for group in (*_groups_of(entry, "NXsample"), detectors[0]):
        found = [_length(group.get(f"{axis}_pixel_size")) for axis in "yx"]
        if None not in found:
            (y, unit), (x, other) = (one for one in found if one is not None)
            is_square = unit is other and abs(y - x) <= _ROUNDING * x
            if not is_square or (group == detectors[0] and _magnifies(instrument, group)):
                return None, None
            return [x] * array.ndim, unit
    return None, None


def _magnifies(instrument: Any, detector: Any) -> bool:
    """Whether the source is so near that a voxel is smaller than a pixel by 1 % or more."""
    source: Any = next(_groups_of(instrument, "NXsource"), {})
    to_detector, to_source = (_length(group.get("distance")) for group in (detector, source))
    if to_detector is None or to_source is None:
        return False
    metres = [abs(n) * unit.conversion_factor(VoxelUnit.M) for n, unit in (to_detector, to_source)]
    return metres[0] >= 1e-2 * metres[1]


def _class_of(item: Any) -> str:
    return "".join(_texts(item.attrs.get("NX_class")))


def _groups_of(parent: Any, name: str) -> Iterator[Any]:
    """Yield the groups of a NeXus class in another one; what a link does not lead to is left."""
    import h5py

    for key in parent if isinstance(parent, h5py.Group) else ():
        item = parent.get(key)
        if isinstance(item, h5py.Group) and _class_of(item) == name:
            yield item


def _length(item: Any) -> tuple[float, VoxelUnit] | None:
    """Return a field of one number, not 0, and its unit of length; None where it is none."""
    import h5py

    if not isinstance(item, h5py.Dataset) or item.size != 1 or item.dtype.kind not in "iuf":
        return None
    value = float(np.asarray(item[...]).reshape(-1)[0])
    try:
        unit = VoxelUnit.from_str("".join(_texts(item.attrs.get("units"))))
    except ValueError:
        return None
    if unit is VoxelUnit.VOXEL or not math.isfinite(value) or value == 0:
        return None
    return value, unit


def _step(group: Mapping[str, Any], name: str, n: int) -> tuple[float | None, VoxelUnit | None]:
    """Return the distance of the positions along an axis, if they are regular, and its unit."""
    import h5py

    axis = group.get(name)
    if not isinstance(axis, h5py.Dataset) or axis.shape != (n,) or n < 2:
        return None, None
    if axis.dtype.kind not in "iuf":
        return None, None
    steps = np.diff(axis[...].astype(float))
    step = abs(float(steps.mean()))
    if not math.isfinite(step) or not step or np.abs(np.abs(steps) - step).max() > _ROUNDING * step:
        return None, None
    try:
        unit = VoxelUnit.from_str("".join(_texts(axis.attrs.get("units"))))
    except ValueError:
        return step, None
    return step, None if unit is VoxelUnit.VOXEL else unit


def _texts(value: Any) -> list[str]:
    """Return an attribute of text as a list; NeXus has also names with colons between them."""
    parts = np.atleast_1d([] if value is None else value).tolist()
    texts = [p.decode("utf-8", "replace") if isinstance(p, bytes) else str(p) for p in parts]
    return [t for text in texts for t in text.split(":")] if len(texts) == 1 else texts


def _blocks(source: HDF5Source) -> tuple[tuple[int, ...], ...]:
    """Return slabs of whole stored chunks."""
    unit = 1
    if source.ndim == 3 and isinstance(source.storage, Chunked | ByHDF5):
        unit = min(source.storage.chunk_shape[source.order[0]], source.shape[0])
    return slab_blocks(source.shape, source.dtype.itemsize, unit)
