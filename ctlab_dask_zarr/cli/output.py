"""What the commands print, and their exit codes; text from stores cannot control a terminal."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.errors import (
    ClusterError,
    CTLabError,
    VerificationError,
    WriteStoppedError,
)
from ctlab_dask_zarr.text import in_command, path_text, shown

if TYPE_CHECKING:
    from ctlab_dask_zarr import Dataset

#: Enough for the rows of shards of some dozens of threads.
_MANY_FILES = 1 << 16
#: Where the context of a command keeps the level of messages that was asked for.
LOG_LEVEL = "ctlab_dask_zarr.log_level"


def say(text: str, *, err: bool = False) -> None:
    """Print a line, a result to standard output or a message to standard error."""
    click.echo(shown(text), err=err)


def ask(question: str) -> None:
    """Ask on standard error, and end the command unless the answer is yes."""
    click.confirm(shown(question), abort=True, err=True)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Turn expected errors into one message and the exit code of their class.

    Warnings of this package are printed as plain lines, without file and line. Anything unexpected
    keeps its traceback and ends with exit code 1, as in Python.
    """

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            now = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
            say(f"{now} {in_command(record.getMessage())}", err=True)

    level = click.get_current_context().meta.get(LOG_LEVEL, "WARNING")
    handler = Handler(level)
    logging.getLogger("ctlab_dask_zarr").addHandler(handler)

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if handler.level <= logging.WARNING:
            say(in_command(str(message)), err=True)

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=UserWarning, module=r"ctlab_dask_zarr\b")
            warnings.showwarning = show
            yield
    except (CTLabError, OSError, ValueError) as error:
        # dask reads its files when it is imported.
        is_expected = not isinstance(error, ValueError) or isinstance(error, CTLabError)
        if not (is_expected or str(error).startswith("A dask config file")):
            raise
        if is_expected and click.get_current_context().find_root().params.get("debug"):
            raise
        say(f"ctlab-zarr: {in_command(f'{error}')}", err=True)
        sys.exit(error.exit_code if isinstance(error, CTLabError) else 1)
    finally:
        logging.getLogger("ctlab_dask_zarr").removeHandler(handler)


def allow_many_files() -> None:
    """Let this process, and those that it starts, have as many files open as the system allows.

    The usual limit of 1,024 is for programs that use ``select``. A row of shards may be more files.
    """
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, _MANY_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ImportError, OSError, ValueError):
        # A system without such limits, or one that allows no change.
        return


def verify_command_of(path: str, source: str) -> str:
    """Return the command that compares what was written with its source."""
    return f"ctlab-zarr verify {path_text(path)} --source {path_text(source)}"


def verify_written(
    path: str, dataset: Dataset, how: dict[str, Any], source: str, given: Sequence[str]
) -> None:
    """Compare what was written with its source, for which the options `given` were needed."""
    from ctlab_dask_zarr import verify

    same = f" with the same {', '.join(given)}" if given else ""
    try:
        problems = verify(path, dataset, **how)
    except (WriteStoppedError, ClusterError) as error:
        raise type(error)(
            f"{error}. {path} is complete and in its place, but not verified to the end: verify it "
            f"by `{verify_command_of(path, source)}`{same}"
        ) from error
    for problem in problems:
        say(str(problem), err=True)
    if problems:
        raise VerificationError(
            f"verification of {path} found {problems.count_text}. It stays in its place, but do "
            "not trust it: if the source is damaged, copy it again; then write it again with "
            "--overwrite"
        )
