"""How the documentation is built: ``sphinx-build docs build/docs``."""

from ctlab_dask_zarr import __version__

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
# Links to files beside this folder, as cluster-configs/; a test of the house follows all of them.
suppress_warnings = ["myst.xref_missing"]
html_theme = "furo"
html_title = "ctlab_dask_zarr"
# The tests run the notebooks; here their pages only show what they say.
nb_execution_mode = "off"
myst_heading_anchors = 3
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
