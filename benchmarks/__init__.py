"""The same work by this package and by what a user would pick instead, side by side."""
