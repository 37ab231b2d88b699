"""How the documentation is built: ``sphinx-build docs build/docs``."""

import click
from sphinx.application import Sphinx

from ctlab_dask_zarr import __version__
from ctlab_dask_zarr.cli import main

project = "ctlab_dask_zarr"
author = "ctlab_dask_zarr authors"
release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_theme = "furo"
html_title = "ctlab_dask_zarr"
# So that pages show cards, plans and progress.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 240
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False


def add_help(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the help of every command to the page of the commands."""
    if page != "commands":
        return
    parent = click.Context(main, info_name="ctlab-zarr")
    for name, command in main.commands.items():
        context = click.Context(command, info_name=name, parent=parent, max_content_width=100)
        source[0] += f"\n## {name}\n\n```text\n{command.get_help(context)}\n```\n"


def setup(app: Sphinx) -> None:
    """Connect what Sphinx asks while it builds."""
    app.connect("source-read", add_help)
