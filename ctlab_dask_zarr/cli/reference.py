"""What `convert` takes as the command of anu_ctlab_io does: formats by name, and the dask graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ctlab_dask_zarr.cli.options import option

if TYPE_CHECKING:
    from ctlab_dask_zarr import Dataset


def _zarr_alone(context: click.Context, parameter: click.Parameter, name: str | None) -> None:
    if name not in (None, "auto", "zarr"):
        raise click.UsageError(
            f"`convert` writes Zarr, and not {name}: `ctlab-zarr export` writes other formats"
        )


#: Not in the help: what the options of this command say in other words, or what it finds by itself.
REFERENCE = (
    option(
        "--input-format filetype", "Kind of SOURCE.", hidden=True,
        type=click.Choice(["auto", "netcdf", "zarr"], case_sensitive=False),
    ),
    option(
        "--output-format", "Kind of DESTINATION.", hidden=True, expose_value=False,
        callback=_zarr_alone, type=click.Choice(["auto", "zarr", "netcdf", "raw"],
                                                case_sensitive=False),
    ),
)  # fmt: skip


def write_graph(dataset: Dataset, destination: str, arguments: dict[str, Any], path: str) -> None:
    """Write the tasks of a conversion, and which needs which, in the language of Graphviz."""
    if not path.endswith(".dot"):
        raise click.UsageError(
            f"--dask-graph writes the language of Graphviz: name the file FILE.dot, and draw it by "
            f"`dot -Tsvg FILE.dot -o {path}`"
        )
    from dask.core import get_dependencies

    from ctlab_dask_zarr import dataset_to_zarr

    delayed = dataset_to_zarr(dataset, destination, **arguments, compute=False)
    assert delayed is not None
    tasks = dict(delayed.__dask_graph__())
    number = {key: n for n, key in enumerate(tasks)}
    with open(path, "w") as file:
        file.write("digraph {\n")
        for key, n in number.items():
            name = str(key).replace("\\", "\\\\").replace('"', '\\"')
            file.write(f'  {n} [label="{name}"]\n')
            needed = sorted(number[other] for other in get_dependencies(tasks, key))
            file.writelines(f"  {other} -> {n}\n" for other in needed)
        file.write("}\n")
