"""Random and hostile calls of every op: each returns, or raises a Python exception."""
