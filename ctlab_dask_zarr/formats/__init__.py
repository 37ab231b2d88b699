"""What files say, both directions. Pure: no dask, no stores, no file access."""
