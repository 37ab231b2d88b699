"""The public functions that write, add to, check and copy datasets."""
