"""How people look at a dataset."""
