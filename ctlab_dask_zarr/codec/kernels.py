"""Functions compiled by numba, each for the types that it is called with."""

from __future__ import annotations

import hashlib
import threading
from functools import cache
from types import FunctionType
from typing import Any

import numba
import numpy as np
from llvmlite import binding  # type: ignore[import-untyped]
from numba import types

__all__ = ["compiled_for"]

#: By the kinds of their arguments.
_kernels: dict[tuple[object, ...], Any] = {}
#: Threads that begin together would otherwise each make, and compile, a kernel of their own.
_making_kernels = threading.Lock()


def compiled_for(function: Any, arguments: tuple[Any, ...]) -> Any:
    """Return a function compiled for the types of these arguments.

    All that numba makes a difference of is in their kinds, which cost far less to find: a row of
    small chunks is halved in less time than numba takes to name its types.
    """
    kind: tuple[object, ...] = (
        function,
        *(
            (a.dtype, a.ndim, a.flags.num) if isinstance(a, np.ndarray) else type(a)
            for a in arguments
        ),
    )
    kernel = _kernels.get(kind)
    if kernel is None:
        with _making_kernels:
            kernel = _kernels[kind] = _kernel(function, tuple(map(numba.typeof, arguments)))
    return kernel


@cache
def _kernel(function: Any, signature: tuple[types.Type, ...]) -> Any:
    """Return a function compiled for these types and kept in files of its own.

    numba numbers the machine code of all types that a function was called with, as they come.
    Processes that compile for different types at one moment take the same number, and afterwards
    one type is given the code of the other: voxels would be wrong, without an error. So each set of
    types has a function of its own name; each kind of processor too, since nodes share folders.
    """
    processor = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
    digest = hashlib.sha256(f"{signature} {processor}".encode()).hexdigest()[:16]
    name = f"{function.__name__}_{digest}"
    own = FunctionType(function.__code__, function.__globals__, name)
    own.__qualname__ = name
    try:
        return numba.njit(nogil=True, cache=True)(own)
    except RuntimeError:
        # Neither beside its file nor in a home folder can anything be kept, as in a container
        # that is read-only: compiled anew by each process then.
        return numba.njit(nogil=True)(own)
