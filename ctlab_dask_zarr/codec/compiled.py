"""Machine code for `kernels`, made by numba: kept on disk, and made beside the work at first.

numba is loaded with this module, and not before there is enough to do.
"""

from __future__ import annotations

import base64
import hashlib
import os
import pickle
import subprocess
import sys
import threading
from functools import cache
from types import FunctionType
from typing import Any

import numba
import numpy as np
from llvmlite import binding  # type: ignore[import-untyped]

from ctlab_dask_zarr.codec.kernels import halve_every_chunk

#: Machine code, by the kinds of its arguments.
loaded: dict[tuple[object, ...], Any] = {}
#: Processes that compile, by the kinds of arguments.
_compilers: dict[tuple[object, ...], subprocess.Popen[bytes]] = {}
#: Threads that begin together would otherwise each make, and compile, a kernel of their own.
_making_kernels = threading.Lock()
_COMPILE = (
    "import sys; from ctlab_dask_zarr.codec.compiled import compile_for; compile_for(sys.argv[1])"
)


def kernel_for(arguments: tuple[Any, ...], *, waits: bool) -> Any | None:
    """Return `halve_every_chunk` compiled for the types of these arguments.

    Where that is not done yet, a process of its own begins with it, and None is returned; unless
    the caller `waits`. Types are looked up by their kinds, which tell the same and are found far
    faster: a strip of small chunks is halved in less time than numba takes to name its types.
    """
    kind = tuple(
        (a.dtype, a.ndim, a.flags.num) if isinstance(a, np.ndarray) else type(a) for a in arguments
    )
    if kind not in loaded:
        with _making_kernels:
            signature = tuple(map(numba.typeof, arguments))
            kernel = _kernel(signature)
            if not (waits or _is_kept(kernel) or _is_compiled_beside(kind, signature)):
                return None
            loaded[kind] = kernel
    return loaded[kind]


def _is_kept(kernel: Any) -> bool:
    """Whether machine code is on disk, or can never be there."""
    folder = kernel.stats.cache_path
    if folder is None:
        return True
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return False
    return any(f".{kernel.__name__}-" in name and name.endswith(".nbc") for name in names)


def _is_compiled_beside(kind: tuple[object, ...], signature: tuple[Any, ...]) -> bool:
    """Have another process compile; return whether that has ended, well or not."""
    if getattr(sys, "frozen", False):
        return True  # this is no interpreter, but an application
    if kind not in _compilers:
        types = base64.b64encode(pickle.dumps(signature)).decode()
        try:
            _compilers[kind] = subprocess.Popen(
                [sys.executable, "-c", _COMPILE, types],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError:
            return True
    return _compilers[kind].poll() is not None


def is_compiling() -> bool:
    """Whether a process beside this one compiles."""
    return any(process.poll() is None for process in list(_compilers.values()))


def compile_for(types: str) -> None:
    """Compile for types as `_is_compiled_beside` tells them, and keep that on disk."""
    _kernel(pickle.loads(base64.b64decode(types))).compile(pickle.loads(base64.b64decode(types)))


@cache
def _kernel(signature: tuple[Any, ...]) -> Any:
    """Return `halve_every_chunk` for these types, kept in files of its own.

    numba numbers the machine code of a function in the order in which types come. Two processes
    that compile for different types at the same time take the same number, and afterwards one type
    gets the code of the other: voxels would be wrong, without an error. So each set of types has a
    function with a name of its own; each kind of processor too, since nodes share folders.
    """
    processor = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
    digest = hashlib.sha256(f"{signature} {processor}".encode()).hexdigest()[:16]
    name = f"{halve_every_chunk.__name__}_{digest}"
    own = FunctionType(halve_every_chunk.__code__, halve_every_chunk.__globals__, name)
    own.__qualname__ = name
    try:
        return numba.njit(nogil=True, cache=True)(own)
    except RuntimeError:
        # Nothing can be kept, neither beside the file nor in a home folder, as in a container that
        # is read-only: each process compiles anew.
        return numba.njit(nogil=True)(own)
