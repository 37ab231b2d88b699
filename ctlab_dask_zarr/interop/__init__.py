"""To other libraries: xarray, and filters that leave the mask out."""
