"""Scripts without a main guard: worker processes import them, and would start workers again."""

from __future__ import annotations

import ast
import linecache
import multiprocessing
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import LocalCluster

__all__ = ["started_cluster"]


@contextmanager
def started_cluster(options: Mapping[str, Any]) -> Iterator[LocalCluster]:
    """Start a local cluster; say what to do in a script whose workers would start it again."""
    from distributed import LocalCluster

    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A worker that imports the script to begin with: its parent says what is wrong.
        sys.exit(1)
    try:
        cluster = LocalCluster(**options)
    except RuntimeError:
        if not _is_at_top_level():
            raise
        # Ends the script with these lines alone: a traceback would show how clusters are started.
        raise SystemExit(
            "No worker could start: each begins by running this script, which starts workers again."
            "\nPut what the script does, from the start of the cluster on, below a main guard:"
            '\n    if __name__ == "__main__":'
        ) from None
    with cluster:
        yield cluster


def _is_at_top_level() -> bool:
    """Whether the script that is run does this at its top level, and not below a main guard."""
    main = vars(sys.modules["__main__"])
    for frame, line in traceback.walk_stack(None):
        if frame.f_globals is main and frame.f_code.co_name == "<module>":
            source = "".join(linecache.getlines(frame.f_code.co_filename))
            return any(
                statement.lineno <= line <= (statement.end_lineno or line)
                and not isinstance(statement, ast.If)
                for statement in ast.parse(source).body
            )
    return False
