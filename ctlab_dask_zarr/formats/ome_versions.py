"""Versions of OME-Zarr, of which all but 0.5 are read, and 0.6 written, by way of its words.

Specifications: https://ngff.openmicroscopy.org/0.4/ and https://ngff.openmicroscopy.org/0.6/ .
Until 0.4 the metadata lie flat among the attributes of the group. From 0.6 on axes belong to named
coordinate systems, and a level has one transformation from its array to one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ctlab_dask_zarr.errors import MetadataError, UnsupportedFormatError

#: What an attribute of a group is called that is OME's, and of which kind the group then is.
_FLAT = ("multiscales", "plate", "well", "labels", "image-label", "bioformats2raw.layout", "omero")
_WITH_SYSTEMS = ("0.6", "0.6rc0")
#: Of which nothing is written here.
OLD_VERSIONS = ("0.1", "0.2", "0.3", "0.4")
_READ = (*OLD_VERSIONS, "0.5", *_WITH_SYSTEMS)
#: Of versions before axes had names in the metadata.
_FIRST_AXES = "tczyx"
_PLACED = "coordinateTransformations"
#: The coordinate system of voxels along their axes, by the name that other writers give it.
_INTRINSIC = "intrinsic"


def with_ome(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a group with its OME metadata below ``ome``, as 0.5 has them.

    So a store that was moved from Zarr v2 to v3 with its attributes as they were is read as well.
    """
    flat = {key: attributes[key] for key in _FLAT if key in attributes}
    if "ome" in attributes or not flat:
        return dict(attributes)
    said = flat.get("multiscales") or flat.get("plate") or flat.get("well")
    first = said[0] if isinstance(said, list) and said else said
    version = first.get("version") if isinstance(first, Mapping) else None
    return {**attributes, "ome": {"version": version or "0.4", **flat}}


def refuse_other_version(ome: Mapping[str, Any]) -> None:
    """Raise `UnsupportedFormatError` for a version that is not read here."""
    version = ome.get("version")
    if version not in _READ:
        raise UnsupportedFormatError(
            f"OME-Zarr version {version!r} is not read here, only {_READ[0]} to {_READ[-2]}"
        )


def example_inside(ome: Mapping[str, Any]) -> str:
    """Return where an image of a plate, or of a converted file, lies; empty where it is not said.

    Of a plate it is the first field of the first well that is listed.
    """
    plate = ome.get("plate")
    wells = plate.get("wells") if isinstance(plate, Mapping) else None
    if isinstance(wells, list) and wells and isinstance(wells[0], Mapping) and "path" in wells[0]:
        return f", as {wells[0]['path']}/0"
    is_converted = "bioformats2raw.layout" in ome or "well" in ome
    return ", as 0" if is_converted else ""


def plain_multiscale(ome: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first multiscale of an ``ome`` attribute of any version, as 0.5 would say it.

    Coordinate systems but that of the levels are left out: see `other_systems`. A part that is
    missing or misspelt raises what Python raises for it.
    """
    multiscale: Mapping[str, Any] = ome["multiscales"][0]
    if ome["version"] not in _WITH_SYSTEMS:
        axes = multiscale.get("axes", _FIRST_AXES) if ome["version"] < "0.4" else multiscale["axes"]
        named = [{"name": axis} if isinstance(axis, str) else axis for axis in axes]
        return {**multiscale, "axes": named}
    rest = {k: v for k, v in multiscale.items() if k not in ("coordinateSystems", _PLACED)}
    system = _system_of_levels(multiscale)
    datasets = [
        {**dataset, _PLACED: [*_steps(dataset.get(_PLACED) or [])]}
        for dataset in multiscale["datasets"]
    ]
    return {**rest, "axes": system["axes"], "datasets": datasets}


def _system_of_levels(multiscale: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the coordinate system in which the levels are placed."""
    found: list[Mapping[str, Any]] = multiscale["coordinateSystems"]
    transforms = multiscale["datasets"][0].get(_PLACED) or []
    name = transforms[0]["output"]["name"] if transforms else found[0]["name"]
    for system in found:
        if system["name"] == name:
            return system
    names = ", ".join(str(system["name"]) for system in found)
    raise MetadataError(f"the levels are placed in {name!r}; the coordinate systems are {names}")


def _steps(transforms: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield transformations one after another; a sequence is what it holds."""
    for transform in transforms:
        if transform["type"] == "sequence":
            yield from _steps(transform["transformations"])
        else:
            yield {k: v for k, v in transform.items() if k not in ("input", "output")}


def other_systems(ome: Mapping[str, Any]) -> tuple[str, ...]:
    """Return how an image is placed in further coordinate systems: ``"rotation to 'scanner'"``."""
    if ome["version"] not in _WITH_SYSTEMS:
        return ()
    placed = ome["multiscales"][0].get(_PLACED) or []
    return tuple(f"{t['type']} to {t['output']['name']!r}" for t in placed)


def with_multiscale(ome: Mapping[str, Any], multiscale: Mapping[str, Any]) -> dict[str, Any]:
    """Return an ``ome`` attribute with another first multiscale, given as 0.5 would say it.

    What only its own version can say is kept.
    """
    _, *others = ome.get("multiscales") or [None]
    if ome["version"] not in _WITH_SYSTEMS:
        return {**ome, "multiscales": [multiscale, *others]}
    before: Mapping[str, Any] = next(iter(ome.get("multiscales") or []), {})
    system = {"name": _INTRINSIC, **(_system_of_levels(before) if before else {})}
    systems = [s for s in before.get("coordinateSystems", []) if s["name"] != system["name"]]
    kept = {_PLACED: before[_PLACED]} if _PLACED in before else {}
    rest = {key: value for key, value in multiscale.items() if key not in ("axes", "datasets")}
    placed = {
        **rest,
        "coordinateSystems": [{**system, "axes": multiscale["axes"]}, *systems],
        "datasets": [_placed(dataset, system["name"]) for dataset in multiscale["datasets"]],
        **kept,
    }
    return {**ome, "multiscales": [placed, *others]}


def _placed(dataset: Mapping[str, Any], system: str) -> dict[str, Any]:
    """Return a level whose scale, or scale and translation, are one transformation."""
    ends = {"input": {"path": dataset["path"]}, "output": {"name": system}}
    steps = dataset[_PLACED]
    step = steps[0] if len(steps) == 1 else {"type": "sequence", "transformations": list(steps)}
    return {**dataset, _PLACED: [{**step, **ends}]}
