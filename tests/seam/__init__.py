"""The Flask side beside a client that plays the grid, and the commands in Python."""
