"""Codecs by the short names that people type: ``zstd:3``, ``blosc:zstd:5:bitshuffle``, ``none``."""

from __future__ import annotations

from typing import Any

__all__ = ["array_kwargs"]

_BLOSC_DEFAULTS = ["zstd", "5", "bitshuffle"]
_BLOSC_CODECS = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
_BLOSC_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")


def array_kwargs(codec: str) -> dict[str, Any]:
    """Return the arguments of `zarr.create_array` for a codec by its short name.

    Raises
    ------
    ValueError
        No codec has this name.

    Examples
    --------
    >>> array_kwargs("none")
    {'compressors': None}
    """
    name, *options = codec.split(":")
    settings: dict[str, Any]
    if name == "none" and not options:
        return {"compressors": None}
    if name == "zstd" and len(options) < 2:
        settings = {"level": int(options[0]) if options else 0, "checksum": False}
    elif name == "gzip" and len(options) < 2:
        settings = {"level": int(options[0]) if options else 5}
    elif name == "lz4" and not options:
        name, settings = "numcodecs.lz4", {"acceleration": 1}
    elif name == "blosc" and len(options) <= len(_BLOSC_DEFAULTS):
        cname, level, shuffle = options + _BLOSC_DEFAULTS[len(options) :]
        if not (cname in _BLOSC_CODECS and int(level) in range(10) and shuffle in _BLOSC_SHUFFLES):
            raise ValueError(codec)
        # Without a type size: zarr takes it from the array's dtype.
        settings = {"cname": cname, "clevel": int(level), "shuffle": shuffle}
    else:
        raise ValueError(codec)
    return {"compressors": [{"name": name, "configuration": settings}]}
