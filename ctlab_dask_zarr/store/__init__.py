"""Where bytes are: files, object stores, and what stands in a store."""
