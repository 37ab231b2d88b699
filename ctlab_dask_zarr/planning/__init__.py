"""What a write will do: pure values, computed before anything is touched."""
