"""What the commands print: text of stores and URLs does nothing to a terminal."""

from __future__ import annotations

import click

from ctlab_dask_zarr.text import shown

__all__ = ["ask", "say"]


def say(text: str, *, err: bool = False) -> None:
    """Print a line, a result to standard output or a message to standard error."""
    click.echo(shown(text), err=err)


def ask(question: str) -> None:
    """Ask on standard error, and end the command where the answer is not yes."""
    click.confirm(shown(question), abort=True, err=True)
