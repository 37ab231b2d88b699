"""Inflate zlib streams of a known length, without holding the GIL.

``deflate`` wraps libdeflate, the fastest of the libraries measured (``docs/design``), and returns
a buffer of its own that NumPy can use as it is. Python's ``zlib`` stands in for it where it is
not installed.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer  # In Python's own library from 3.12.

__all__ = ["inflate"]

try:
    from deflate import DeflateError, zlib_decompress
except ImportError:
    DeflateError = zlib.error  # type: ignore[misc,assignment]

    def zlib_decompress(data: Buffer, originalsize: int) -> bytearray:
        # Not more, whatever the stream would become.
        return bytearray(zlib.decompressobj().decompress(data, originalsize + 1))


def inflate(compressed: bytes | memoryview, nbytes: int) -> bytearray:
    """Return the `nbytes` bytes that a zlib stream holds.

    Raises
    ------
    ValueError
        The stream is damaged, or holds another number of bytes.
    """
    try:
        data = zlib_decompress(compressed, nbytes)
    except DeflateError as error:
        raise ValueError(f"its zlib stream is damaged ({error})") from error
    if len(data) != nbytes:
        raise ValueError(f"its zlib stream holds {len(data)} bytes instead of {nbytes}")
    return data
