"""Where and how a graph runs: graphs of sources, clusters, progress, stopping."""
