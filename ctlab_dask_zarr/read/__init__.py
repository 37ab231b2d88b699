"""Reading: Zarr stores and mango netCDF, lazily; nothing here ever writes."""
