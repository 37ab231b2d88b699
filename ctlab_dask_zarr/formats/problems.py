"""What a validation finds, as values: one entry for each thing that is wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ctlab_dask_zarr.text import shown

__all__ = ["Problem", "describe_problems"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes
    ----------
    location
        Where: a file, a block, a key.
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
    """Return the messages, one a line, the first `limit` of them, and how many there are more.

    Examples
    --------
    >>> print(describe_problems([Problem("a", "gap", "one"), Problem("b", "gap", "two")], limit=1))
    one
    ... and 1 more
    """
    messages = [str(problem) for problem in problems]
    lines = messages[:limit]
    if len(messages) > limit:
        lines.append(f"... and {len(messages) - limit} more")
    return "\n".join(lines)
