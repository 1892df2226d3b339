"""Errors that end a command with one line: each message stands alone and names the file."""


class UsageError(ValueError):
    """What was asked for cannot be done; the command line exits with 2."""


class DataError(ValueError):
    """What a file holds is wrong; the command line exits with 1."""
