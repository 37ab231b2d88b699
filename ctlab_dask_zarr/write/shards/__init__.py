"""What a task writes: shards, and the parts that levels are made of."""
