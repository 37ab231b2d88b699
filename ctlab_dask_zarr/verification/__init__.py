"""Whether a dataset on disk is what it says, and what its source has."""
