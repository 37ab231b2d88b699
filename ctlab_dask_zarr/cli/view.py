"""``ctlab-zarr view``: a store in Neuroglancer, in the browser of this machine or through ssh."""

from __future__ import annotations

import click

from ctlab_dask_zarr.cli.errors import exit_codes
from ctlab_dask_zarr.cli.output import say

__all__ = ["view_command"]


@click.command("view")
@click.argument("path", type=click.Path())
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="On 127.0.0.1.  [default: a free one]"
)
@click.option("--no-browser", is_flag=True, help="Only print the address.")
@click.option("--neuroglancer", metavar="URL", default=None,
              help="Another Neuroglancer than the one of the extra 'view'.")  # fmt: skip
def view_command(path: str, port: int, no_browser: bool, neuroglancer: str | None) -> None:
    """Show the store at PATH in Neuroglancer, until Ctrl-C.

    The store, and nothing else, is served read-only on this machine's loopback address, below a
    secret part of the address. Volume and label images are layers; contrast is set up. Label
    images of a data type that Neuroglancer does not have are left out, and named.
    """
    with exit_codes():
        from ctlab_dask_zarr.views.neuroglancer import serve_store

        server = serve_store(
            path,
            port=port,
            neuroglancer=neuroglancer,
            on_left_out=lambda text: say(text, err=True),
        )
    with server:
        say(server.url)
        _say_how(server.port)
        if not no_browser:
            _open_browser(server.url)
        _wait()


def _say_how(port: int) -> None:
    import socket

    say(
        "Whoever has this address can read the store. From another machine, first:\n"
        f"  ssh -N -L {port}:127.0.0.1:{port} {socket.gethostname()}\n"
        "Ctrl-C ends it.",
        err=True,
    )


def _open_browser(url: str) -> None:
    import os
    import sys
    import webbrowser

    # Without a screen a text browser would be started, and take this terminal.
    if sys.platform in ("darwin", "win32") or {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        webbrowser.open(url)


def _wait() -> None:
    import threading

    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        say("ended", err=True)
