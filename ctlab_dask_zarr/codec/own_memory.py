"""Memory that is handed on as it lies."""

from __future__ import annotations

import numpy as np


class OwnMemory:
    """A `bytearray` of which its maker has kept nothing, as an array: ``np.asarray(OwnMemory(m))``.

    NumPy does not say of an array over a `bytearray` who else may write to it. Here the references
    to this object, which is the base of the array, and those to the array do.
    """

    def __init__(self, memory: bytearray) -> None:
        self._seen = np.frombuffer(memory, np.uint8)
        self.__array_interface__ = self._seen.__array_interface__
