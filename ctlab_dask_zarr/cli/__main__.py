"""``python -m ctlab_dask_zarr.cli``, the same as ``ctlab-zarr``."""

from ctlab_dask_zarr.cli import main

main(prog_name="ctlab-zarr")
