"""Where and how it runs: source graphs, clusters, progress, stopping, settings."""
