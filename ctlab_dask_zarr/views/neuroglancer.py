"""A store in Neuroglancer: what is shown and how, and the server that it is read from.

The client, a web page, comes from the Python package ``neuroglancer``, since compute nodes have no
Internet; that package's own server is not used. It would be a second port to forward, of another
origin, and its page keeps its state on the server, while here the address holds it.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from ctlab_dask_zarr.codec.sample import contrast_of
from ctlab_dask_zarr.errors import MissingExtraError, UnsupportedFormatError
from ctlab_dask_zarr.formats.units import VoxelUnit
from ctlab_dask_zarr.read.source import open_volume
from ctlab_dask_zarr.read.zarr import ZarrVolume
from ctlab_dask_zarr.store.storage import local_path
from ctlab_dask_zarr.views.labels import LabelImage, read_label_images
from ctlab_dask_zarr.views.server import FolderServer
from ctlab_dask_zarr.views.slices import extents_of, read_mid_slices
from ctlab_dask_zarr.volume import Volume

__all__ = ["LABEL_DTYPES", "SHOWN_DTYPES", "build_state", "serve_store"]

#: What WebGL textures hold (datasource/zarr of Neuroglancer).
SHOWN_DTYPES = frozenset(
    {*("uint8", "uint16", "uint32", "uint64"), *("int8", "int16", "int32"), "float32"}
)
#: Of labels and segmentations (layer/segmentation): what has values that are names.
LABEL_DTYPES = SHOWN_DTYPES - {"float32"}
#: The client finds its server by a path of this form (python_integration/api.ts): it is a folder
#: there, and an event stream beside it tells the page that the server is still there.
_CLIENT = "v/client"
_CLIENT_EVENTS = "events/client"
#: Pixels of a panel that the longest edge of the volume is fitted to. The window is not known when
#: the address is made: on a screen of 1366 x 768 each of its four panels is some 280 high.
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
    """Serve a store, and only that, for Neuroglancer in a browser on this machine.

    The server's ``url`` leads to Neuroglancer with the store opened: contrast from percentiles of
    a coarse level without the mask, one layer for each label image. It serves until it is closed.

    Parameters
    ----------
    path
        A Zarr store.
    port
        On 127.0.0.1; 0 takes a free one.
    neuroglancer
        Address of another Neuroglancer; by default the one of the package ``neuroglancer``.
    on_left_out
        Is told of each label image that cannot be shown, and why.

    Raises
    ------
    MissingExtraError
        The package ``neuroglancer`` is not installed, and no other Neuroglancer is given.
    UnsupportedFormatError
        It is no Zarr store, or one of a data type that Neuroglancer does not show.
    """
    dataset = open_volume(path)
    if not isinstance(dataset.source, ZarrVolume):
        raise UnsupportedFormatError(
            f"{os.fspath(path)} is no Zarr store: `ctlab-zarr convert` makes one of it, and "
            "`ctlab-zarr preview` draws it as it is"
        )
    root = local_path(dataset.source.path)
    known = LABEL_DTYPES if dataset.is_discrete else SHOWN_DTYPES
    if str(dataset.dtype) not in known:
        what = "labels of " if dataset.is_discrete else ""
        raise UnsupportedFormatError(
            f"Neuroglancer does not show {what}{dataset.dtype}, only {', '.join(sorted(known))}"
        )
    labels = []
    for image in read_label_images(dataset):
        obstacle = _obstacle(image, dataset)
        if obstacle is None:
            labels.append(image)
        else:
            on_left_out(f"the label image {image.name!r} is left out: {obstacle}")
    grey = None if dataset.is_discrete else _contrast(dataset)
    # A name that began with a dot would not be served.
    name = os.path.basename(root).lstrip(".") or "store"
    client = {} if neuroglancer else {_CLIENT: _client_folder()}
    server = FolderServer(client | {name: root}, port=port, event_paths=frozenset({_CLIENT_EVENTS}))
    page = neuroglancer or f"{server.folder_url(_CLIENT)}index.html"
    state = build_state(dataset, server.folder_url(name), grey=grey, labels=labels)
    server.redirects[""] = f"{page}#!{quote(json.dumps(state))}"
    return server


def _obstacle(image: LabelImage, dataset: Volume) -> str | None:
    """Return why a label image cannot be shown over a volume; None if it can."""
    labels = image.dataset
    if len(labels.shape) != len(dataset.shape):
        return f"it has {len(labels.shape)} axes, and the volume has {len(dataset.shape)}"
    if str(labels.dtype) not in LABEL_DTYPES:
        return f"Neuroglancer shows no labels of {labels.dtype}; write them as uint32 or int32"
    return None


def build_state(
    dataset: Volume,
    url: str,
    *,
    grey: tuple[float, float] | None,
    labels: Sequence[LabelImage] = (),
) -> dict[str, Any]:
    """Return the state of Neuroglancer in which a store is seen.

    Parameters
    ----------
    dataset
        Opened from the store.
    url
        Where the store is served, ending in a slash.
    grey
        The values that are black and white; None for labels and segmentations, in colours.
    labels
        Label images of the store, each a layer over the volume.
    """
    scales = _scales(dataset)
    # Zoom counts in the shortest edge of a voxel.
    longest = max(extents_of(dataset)) / min(dataset.voxel_size)
    title = os.path.basename(url.rstrip("/"))
    layers = [_layer(unquote(title), dataset, url, grey)]
    for image in labels:
        label_url = f"{url}labels/{quote(image.name)}/"
        layers.append(_layer(image.name, image.dataset, label_url, None, image.colors, 0.5))
    names = list(reversed(dataset.dimension_names))
    return {
        "title": unquote(title),
        # The first two are shown to the right and downwards: x and y.
        "dimensions": {name: scales[name] for name in names},
        "position": list(reversed(_middle(dataset))),
        "crossSectionScale": longest / _PANEL_PIXELS,
        "projectionScale": longest * 1.6,
        # As transparent as the mask is, and not the grey of voxels.
        "crossSectionBackgroundColor": "#000000",
        "layers": layers,
        "layout": "4panel" if len(names) == 3 else "xy",
    }


def _layer(
    name: str,
    dataset: Volume,
    url: str,
    grey: tuple[float, float] | None,
    colors: Mapping[int, tuple[int, int, int]] | None = None,
    alpha: float = 1.0,
) -> dict[str, Any]:
    source: dict[str, Any] = {"url": f"{url}|zarr3:"}
    if _is_plain_array(dataset):
        # What a group says in its OME metadata has to be said here.
        source["transform"] = {"outputDimensions": _scales(dataset)}
    if grey is None:
        return {
            "type": "segmentation",
            "name": name,
            "source": source,
            "selectedAlpha": alpha,
            "segmentColors": {
                str(value): "#{:02x}{:02x}{:02x}".format(*color)
                for value, color in (colors or {}).items()
            },
            "equivalences": _equivalences(dataset),
        }
    return {
        "type": "image",
        "name": name,
        "source": source,
        "opacity": 1.0,
        "shader": _shader(dataset),
        "shaderControls": {"normalized": {"range": list(grey)}},
    }


def _equivalences(dataset: Volume) -> list[list[str]]:
    """Return which segments are the same to Neuroglancer: the mask is background.

    It hides no segment but 0, and of equivalent ones takes the smallest.
    """
    mask_value = dataset.mask_value
    # A mask value may be one of another dtype: of the image whose labels these are.
    if mask_value is None or not 0 < mask_value <= np.iinfo(dataset.dtype).max:
        return []
    return [["0", str(int(mask_value))]]


def _shader(dataset: Volume) -> str:
    if dataset.mask_value is None:
        return _SHADER.format(mask="")
    kind = dataset.dtype.kind
    literal = f"{float(dataset.mask_value)!r}" if kind == "f" else f"{int(dataset.mask_value)}"
    literal += "u" if kind == "u" else ""
    condition = f"  if (toRaw(getDataValue()) == {literal}) {{ emitTransparent(); return; }}\n"
    return _SHADER.format(mask=condition)


def _contrast(dataset: Volume) -> tuple[float, float]:
    """Return the contrast of the mid-slices, at about the resolution of a screen."""
    slices = read_mid_slices(dataset, max(extents_of(dataset)) / _PANEL_PIXELS)
    voxels = np.concatenate([part.voxels.ravel() for part in slices])
    return contrast_of(voxels, dataset.mask_value)


def _scales(dataset: Volume) -> dict[str, list[Any]]:
    """Return length and unit of a voxel along each axis, as Neuroglancer's dimensions."""
    factor, unit = 1.0, ""
    if dataset.voxel_unit != VoxelUnit.VOXEL:
        factor, unit = dataset.voxel_unit.conversion_factor(VoxelUnit.M), "m"
    pairs = zip(dataset.dimension_names, dataset.voxel_size, strict=True)
    return {name: [size * factor, unit] for name, size in pairs}


def _middle(dataset: Volume) -> list[float]:
    """Return the middle of the volume in voxels, where its metadata places it."""
    finest = dataset.levels[0]
    origin = [t / s for t, s in zip(finest.origin, finest.voxel_size, strict=True)]
    return [o + n / 2 for o, n in zip(origin, dataset.shape, strict=True)]


def _is_plain_array(dataset: Volume) -> bool:
    return not dataset.source.array_path


def _client_folder() -> str:
    """Return the folder of Neuroglancer's client.

    Only found, not imported: the package would load its own server and the clients of several
    clouds.
    """
    spec = importlib.util.find_spec("neuroglancer")
    for folder in (spec and spec.submodule_search_locations) or ():
        client = os.path.join(folder, "static", "client")
        if os.path.isfile(os.path.join(client, "index.html")):
            return client
    raise MissingExtraError(
        "Neuroglancer is not installed: `pip install 'ctlab-dask-zarr[view]'`, or give the address "
        "of another one (--neuroglancer URL)"
    )
