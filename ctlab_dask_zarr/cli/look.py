"""Commands that show something: info, preview, view, check, config."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import click

from ctlab_dask_zarr.cli.options import JSON, STORAGE, option, with_options
from ctlab_dask_zarr.cli.output import exit_codes, say
from ctlab_dask_zarr.text import nbytes_text


@click.command("info")
@click.argument("path", type=click.Path())
@with_options(*STORAGE, JSON)
def info_command(path: str, as_json: bool) -> None:
    """Show what the dataset at PATH is; no voxels are read."""
    with exit_codes():
        from ctlab_dask_zarr import info

        facts = asdict(info(path))
    # Leave out what only another kind of source has.
    of_zarr = {"levels", "labels", "shards", "chunks", "codecs"}
    left_out = {"blocks"} if facts["blocks"] is None else of_zarr
    facts = {name: value for name, value in facts.items() if name not in left_out}
    if as_json:
        if facts.get("labels") is not None:
            facts["labels"] = [{"name": k, "n_levels": n} for k, n in facts["labels"].items()]
        say(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        for number, line in enumerate(_lines(name, value, facts["voxel_unit"])):
            title = "" if number else name.replace("_", " ")
            say(f"{title:<{width}}  {line}")


def _lines(name: str, value: Any, voxel_unit: str) -> list[str]:
    """Return a fact for people, one line or several."""
    if value is None:
        return ["not known"]
    if name == "levels":
        return [
            f"{_by(level['shape'])}, voxel {_by(level['voxel_size'])} {voxel_unit}"
            for level in value
        ]
    if name == "labels":
        value = [f"{label} (levels: {n_levels})" for label, n_levels in value.items()]
    if name in ("axes", "codecs", "history", "labels"):
        return [", ".join(value) or "none"]
    if name == "nbytes":
        return [f"{value} ({nbytes_text(value)})"]
    unit = f" {voxel_unit}" if name in ("field_of_view", "voxel_size", "origin") else ""
    return [(_by(value) if isinstance(value, tuple) else str(value)) + unit]


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(f"{n:.6g}" if isinstance(n, float) else str(n) for n in numbers)


@click.command("preview")
@click.argument("path", type=click.Path())
@with_options(*STORAGE)
@option(
    "-o --output",
    "The picture to write; its ending chooses the format, for example .png.",
    required=True,
    type=click.Path(dir_okay=False),
)
@option(
    "--size",
    "Pixels along the longest edge of the volume.",
    type=click.IntRange(16, 16384),
    default=512,
    show_default=True,
)
@option(
    "--labels",
    "Draw this label image; may be repeated.  [default: all]",
    metavar="NAME",
    multiple=True,
)
@option("--no-labels", "Draw no label images.", is_flag=True)
def preview_command(
    path: str, output: str, size: int, labels: tuple[str, ...], no_labels: bool
) -> None:
    """Draw three orthogonal slices through the middle of the dataset at PATH.

    PATH is a Zarr store, a mango netCDF file or a folder of its blocks. The picture has a scale
    bar, the contrast ignores masked voxels, and labels are drawn in colours. Only what the slices
    cross is read, at the coarsest level that is fine enough.
    """
    if labels and no_labels:
        raise click.UsageError("--labels and --no-labels exclude one another")
    with exit_codes():
        from ctlab_dask_zarr import preview

        preview(path, output, size=size, labels=() if no_labels else labels or None)
    say(output)


@click.command("view")
@click.argument("path", type=click.Path())
@option(
    "--port", "Port on 127.0.0.1.  [default: a free one]", type=click.IntRange(0, 65535), default=0
)
@option("--no-browser", "Only print the address.", is_flag=True)
@option(
    "--neuroglancer",
    "Address of a Neuroglancer to use instead of the installed one.",
    metavar="URL",
)
def view_command(path: str, port: int, no_browser: bool, neuroglancer: str | None) -> None:
    """Show the store at PATH in Neuroglancer, until Ctrl-C.

    Only the store is served, read-only, on this machine's loopback address; a part of the address
    is secret. The volume and its label images are layers, and the contrast is set. Label images
    whose data type Neuroglancer does not show are left out, and named.

    The Neuroglancer that is installed (2.41) knows OME-Zarr 0.4 and 0.5; of 0.6 it gets the
    finest level.
    """
    with exit_codes():
        from ctlab_dask_zarr import serve_store

        server = serve_store(
            path,
            port=port,
            neuroglancer=neuroglancer,
            on_left_out=lambda text: say(text, err=True),
        )
    # The address comes last: a user may press Ctrl-C as soon as it is there.
    try:
        with server:
            say(
                "Whoever has this address can read the store. From another machine, first:\n"
                f"  ssh -N -L {server.port}:127.0.0.1:{server.port} {socket.gethostname()}\n"
                "Ctrl-C ends it.",
                err=True,
            )
            say(server.url)
            if not no_browser:
                _open_browser(server.url)
            threading.Event().wait()
    except KeyboardInterrupt:
        say("ended", err=True)


def _open_browser(url: str) -> None:
    import webbrowser

    # Without a screen, a text browser would start and take over this terminal.
    if sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        webbrowser.open(url)


@click.command("check")
@click.argument("path", type=click.Path())
@with_options(*STORAGE, JSON)
def check_command(path: str, as_json: bool) -> None:
    """Say for each known reader what it will not show of the store at PATH.

    Only metadata is read; `verify` says whether the store is complete.
    """
    with exit_codes():
        from ctlab_dask_zarr import check_readers

        reports = check_readers(path)
    if as_json:
        say(json.dumps([asdict(report) for report in reports]))
        return
    width = max(len(report.reader) for report in reports)
    for report in reports:
        say(f"{report.reader:<{width}}  {report.verdict}")
        for remark in report.remarks:
            say(f"{'':<{width}}  - {remark}")


@click.command("config")
@with_options(JSON)
@option("--example", "Print the defaults with comments, as the start of a file.", is_flag=True)
def config_command(as_json: bool, example: bool) -> None:
    """Show the settings in force, and where each comes from.

    They are dask's configuration, in YAML files of the folder ~/.config/dask/:

    ctlab-zarr config --example > ~/.config/dask/ctlab-zarr.yaml

    and in environment variables, as DASK_CTLAB_ZARR__LEVELS=auto.
    """
    with exit_codes():
        if example:
            say((files("ctlab_dask_zarr") / "ctlab-zarr.yaml").read_text().rstrip("\n"))
            return
        from ctlab_dask_zarr import settings_in_force

        found = settings_in_force()
    if as_json:
        say(json.dumps([setting._asdict() for setting in found]))
        return
    width = max(len(setting.name) for setting in found)
    for name, value, origin in found:
        text = json.dumps(value) if isinstance(value, list | tuple | dict) else str(value)
        say(f"{name:<{width}}  {'not set' if value is None else text}  ({origin})")
