"""Codecs by the short names that people type: ``zstd:3``, ``blosc:zstd:5:bitshuffle``, ``none``."""

from __future__ import annotations

from typing import Any

__all__ = ["array_kwargs"]

_BLOSC_DEFAULTS = ["zstd", "5", "bitshuffle"]


def array_kwargs(codec: str) -> dict[str, Any]:
    """Return what `zarr.create_array` needs for a codec by its short name.

    Raises
    ------
    ValueError, IndexError
        It is none.

    Examples
    --------
    >>> array_kwargs("none")
    {'compressors': None}
    """
    name, *options = codec.split(":")
    compressors: Any
    if name == "none" and not options:
        compressors = None
    elif name == "zstd" and len(options) < 2:
        level = int(options[0]) if options else 0
        compressors = [{"name": "zstd", "configuration": {"level": level, "checksum": False}}]
    elif name == "gzip" and len(options) < 2:
        compressors = [
            {"name": "gzip", "configuration": {"level": int(options[0]) if options else 5}}
        ]
    elif name == "lz4" and not options:
        compressors = [{"name": "numcodecs.lz4", "configuration": {"acceleration": 1}}]
    elif name == "blosc" and len(options) <= len(_BLOSC_DEFAULTS):
        cname, level_text, shuffle = options + _BLOSC_DEFAULTS[len(options) :]
        from zarr.codecs import BloscCodec

        # By its class, so that zarr sets the type size from the array's dtype.
        settings: dict[str, Any] = {"cname": cname, "clevel": int(level_text), "shuffle": shuffle}
        compressors = [BloscCodec(**settings)]
    else:
        raise ValueError(codec)
    return {"compressors": compressors}
