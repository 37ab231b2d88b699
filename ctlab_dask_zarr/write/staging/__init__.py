"""The staging folder: what is asked, what is there, what remains, and the commit."""
