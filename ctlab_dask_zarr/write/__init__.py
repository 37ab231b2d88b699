"""Writing, in the order of the flow: layout, plan, shard, graph, commit."""
