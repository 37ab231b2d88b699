"""What is done with stores that are there: edit, copy, look how far a write is, throw it away."""
