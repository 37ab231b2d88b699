"""A store in Neuroglancer: what is shown and how, and the server that serves it.

The client, a web page, comes from the Python package ``neuroglancer``, because compute nodes have
no Internet. The package's own server is not used: users would have to forward a second port, and it
keeps the state of its page, which is in the address here.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from ctlab_dask_zarr.codec.values import contrast_of
from ctlab_dask_zarr.errors import MissingExtraError, UnsupportedFormatError
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.read.source import open_volume
from ctlab_dask_zarr.read.zarr_source import ZarrSource
from ctlab_dask_zarr.store.paths import local_path
from ctlab_dask_zarr.text import install_text
from ctlab_dask_zarr.views.labels import LabelImage, read_label_images
from ctlab_dask_zarr.views.server import FolderServer
from ctlab_dask_zarr.views.slices import extents_of, read_mid_slices
from ctlab_dask_zarr.volume import Volume

#: The data types of WebGL textures (datasource/zarr of Neuroglancer).
SHOWN_DTYPES = frozenset(
    {*("uint8", "uint16", "uint32", "uint64"), *("int8", "int16", "int32"), "float32"}
)
#: The data types of labels and segmentations (layer/segmentation).
LABEL_DTYPES = SHOWN_DTYPES - {"float32"}
#: Of OME-Zarr, whose metadata the client of the Python package reads (2.41).
_SHOWN_VERSIONS = ("0.4", "0.5")
#: The client expects these paths (python_integration/api.ts): its own folder, and an event stream
#: by which the page notices that the server is still running.
_CLIENT = "v/client"
_CLIENT_EVENTS = "events/client"
#: The longest edge of the volume fills this many pixels of a panel. The size of the window is not
#: known when the address is made: on a screen of 1366 x 768 a panel is about 280 pixels high.
_PANEL_PIXELS = 250
_SHADER = """#uicontrol invlerp normalized
void main() {{
{mask}  emitGrayscale(normalized());
}}
"""


def serve_store(
    path: str | os.PathLike[str],
    *,
    port: int = 0,
    neuroglancer: str | None = None,
    on_left_out: Callable[[str], None] = lambda text: None,
) -> FolderServer:
    """Serve a store, and nothing else, for Neuroglancer in a browser on this machine.

    The server's ``url`` opens Neuroglancer with the store. The contrast is set from percentiles of
    a coarse level without masked voxels; each label image is a layer of its own. The server runs
    until it is closed.

    Parameters
    ----------
    path
        A Zarr store.
    port
        On 127.0.0.1; 0 takes a free one.
    neuroglancer
        Address of a Neuroglancer; by default that of the package ``neuroglancer`` is used.
    on_left_out
        Called with a sentence for each label image that cannot be shown.

    Raises
    ------
    MissingExtraError
        The package ``neuroglancer`` is not installed, and no other Neuroglancer is given.
    UnsupportedFormatError
        It is not a Zarr store, or Neuroglancer does not show its data type.
    """
    volume = open_volume(path)
    if not isinstance(volume.source, ZarrSource):
        raise UnsupportedFormatError(
            f"{os.fspath(path)} is not a Zarr store: `ctlab-zarr convert` makes one from it, and "
            "`ctlab-zarr preview` draws it as it is"
        )
    if volume.source.ome_version not in _SHOWN_VERSIONS and volume.source.space is not None:
        raise UnsupportedFormatError(
            f"{os.fspath(path)} is OME-Zarr {volume.source.ome_version} with axes of channels or "
            "times, which Neuroglancer does not read: `ctlab-zarr convert` makes 0.5 of it"
        )
    root = local_path(volume.source.location)
    known = LABEL_DTYPES if volume.is_discrete else SHOWN_DTYPES
    if str(volume.dtype) not in known:
        what = "labels of " if volume.is_discrete else ""
        raise UnsupportedFormatError(
            f"Neuroglancer does not show {what}{volume.dtype}, only {', '.join(sorted(known))}"
        )
    labels = []
    for image in read_label_images(volume):
        obstacle = _obstacle(image.volume, volume)
        if obstacle is None:
            labels.append(image)
        else:
            on_left_out(f"the label image {image.name!r} is left out: {obstacle}")
    contrast = None if volume.is_discrete else _contrast(volume)
    # The server does not serve names that begin with a dot.
    name = os.path.basename(root).lstrip(".") or "store"
    client = {} if neuroglancer else {_CLIENT: _client_folder()}
    server = FolderServer(client | {name: root}, port=port, event_paths=frozenset({_CLIENT_EVENTS}))
    page = neuroglancer or f"{server.folder_url(_CLIENT)}index.html"
    state = _state(name, volume, server.folder_url(name), contrast, labels)
    server.redirects[""] = f"{page}#!{quote(json.dumps(state))}"
    return server


def _obstacle(labels: Volume, volume: Volume) -> str | None:
    """Return why labels cannot be shown over a volume; None if they can."""
    if len(labels.shape) != len(volume.shape):
        return f"it has {len(labels.shape)} axes, and the volume has {len(volume.shape)}"
    if str(labels.dtype) not in LABEL_DTYPES:
        return f"Neuroglancer does not show labels of {labels.dtype}; write them as uint32 or int32"
    return None


def _contrast(volume: Volume) -> tuple[float, float]:
    """Return the contrast of the mid-slices, at about the resolution of a screen."""
    slices = read_mid_slices(volume, max(extents_of(volume)) / _PANEL_PIXELS)
    voxels = np.concatenate([part.voxels.ravel() for part in slices])
    return contrast_of(voxels, volume.mask_value)


def _state(
    name: str,
    volume: Volume,
    url: str,
    contrast: tuple[float, float] | None,
    labels: Sequence[LabelImage],
) -> dict[str, Any]:
    """Return Neuroglancer's state for a store at `url`; without contrast it is shown in colours."""
    # Zoom counts in the shortest edge of a voxel.
    longest = max(extents_of(volume)) / min(volume.voxel_size)
    places = zip(volume.origin, volume.voxel_size, volume.shape, strict=True)
    first = {"name": name, "source": _source(volume, url)}
    if contrast is None:
        layers = [first | _colored(volume, {}, 1.0)]
    else:
        controls = {"normalized": {"range": list(contrast)}}
        grey = {"type": "image", "opacity": 1.0, "shaderControls": controls}
        layers = [first | grey | {"shader": _shader(volume)}]
    for image in labels:
        source = _source(image.volume, f"{url}labels/{quote(image.name)}/")
        colored = _colored(image.volume, image.colors, 0.5)
        layers.append({"name": image.name, "source": source} | colored)
    return {
        "title": name,
        # The first two axes are shown to the right and downwards: x and y.
        "dimensions": dict(reversed(_dimensions(volume).items())),
        "position": [o / v + n / 2 for o, v, n in places][::-1],
        "crossSectionScale": longest / _PANEL_PIXELS,
        "projectionScale": longest * 1.6,
        # Masked voxels are transparent: the background must not look like a grey voxel.
        "crossSectionBackgroundColor": "#000000",
        "layers": layers,
        "layout": "4panel" if len(volume.shape) == 3 else "xy",
    }


def _source(volume: Volume, url: str) -> dict[str, Any]:
    stored = volume.source
    assert isinstance(stored, ZarrSource)
    kind = f"zarr{stored.stored.zarr_format}"
    if stored.ome_version in _SHOWN_VERSIONS:
        return {"url": f"{url}|{kind}:"}
    # A plain array has no OME metadata with this, and those of 0.6 are not known to the client that
    # is served here: it gets the finest level.
    path = f"{quote(stored.array_path)}/" if stored.array_path else ""
    transform: dict[str, Any] = {"outputDimensions": _dimensions(volume)}
    if any(volume.origin):
        shifts = [o / size for o, size in zip(volume.origin, volume.voxel_size, strict=True)]
        unit = np.eye(len(shifts))
        transform["matrix"] = np.column_stack([unit, shifts]).tolist()
        # Otherwise the matrix is of voxels without size, and not in those of the other dimensions.
        transform["inputDimensions"] = transform["outputDimensions"]
    return {"url": f"{url}{path}|{kind}:", "transform": transform}


def _dimensions(volume: Volume) -> dict[str, list[Any]]:
    """Return length and unit of a voxel along each axis."""
    factor, unit = 1.0, ""
    if volume.voxel_unit != VoxelUnit.VOXEL:
        factor, unit = volume.voxel_unit.conversion_factor(VoxelUnit.M), "m"
    pairs = zip(volume.dimension_names, volume.voxel_size, strict=True)
    return {name: [size * factor, unit] for name, size in pairs}


def _colored(
    volume: Volume, colors: Mapping[int, tuple[int, int, int]], alpha: float
) -> dict[str, Any]:
    """Return how labels are shown: masked voxels count as background."""
    mask_value = volume.mask_value
    equivalences = []
    # The mask value may not fit the dtype: labels can have kept the data type of their image.
    if mask_value is not None and 0 < mask_value <= np.iinfo(volume.dtype).max:
        # Neuroglancer hides only segment 0, and shows equivalent segments as the smallest of them.
        equivalences = [["0", str(int(mask_value))]]
    return {
        "type": "segmentation",
        "selectedAlpha": alpha,
        "segmentColors": {str(n): "#{:02x}{:02x}{:02x}".format(*rgb) for n, rgb in colors.items()},
        "equivalences": equivalences,
    }


def _shader(volume: Volume) -> str:
    if volume.mask_value is None:
        return _SHADER.format(mask="")
    kind = volume.dtype.kind
    literal = f"{float(volume.mask_value)!r}" if kind == "f" else f"{int(volume.mask_value)}"
    literal += "u" if kind == "u" else ""
    condition = f"  if (toRaw(getDataValue()) == {literal}) {{ emitTransparent(); return; }}\n"
    return _SHADER.format(mask=condition)


def _client_folder() -> str:
    """Find Neuroglancer's client without importing the package, which would load its server."""
    spec = importlib.util.find_spec("neuroglancer")
    for folder in (spec and spec.submodule_search_locations) or ():
        client = os.path.join(folder, "static", "client")
        if os.path.isfile(os.path.join(client, "index.html")):
            return client
    raise MissingExtraError(
        f"Neuroglancer is not installed: {install_text('view')}; or pass the address of another "
        "one (--neuroglancer URL)"
    )
