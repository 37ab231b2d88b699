"""The shard codec, both directions: inner chunks, the shard around them, and zarr for the rest."""
