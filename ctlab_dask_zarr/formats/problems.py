"""What a check finds: one `Problem` for each thing that is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ctlab_dask_zarr.errors import UnsupportedFormatError
from ctlab_dask_zarr.text import shown


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    location
        A file, a block or a key.
    kind
        A short word for programs, such as ``'missing'`` or ``'truncated'``.
    message
        A sentence for people: what is wrong and what to do about it.
    """

    location: str
    kind: str
    message: str

    def __str__(self) -> str:
        return shown(self.message)


def describe_problems(problems: Iterable[Problem], *, limit: int = 20) -> str:
    """Return the first `limit` messages, one a line, and how many more there are."""
    messages = [str(problem) for problem in problems]
    more = [f"... and {len(messages) - limit} more"] if len(messages) > limit else []
    return "\n".join(messages[:limit] + more)


def refuse_larger(path: str, nbytes: int, limit: int) -> None:
    """Raise `UnsupportedFormatError` for an object of more than `limit` bytes."""
    if nbytes > limit:
        raise UnsupportedFormatError(
            f"{path} has {nbytes:,} bytes, and may have {limit:,}: it is damaged, or made to fill "
            "the memory, and is not read"
        )
