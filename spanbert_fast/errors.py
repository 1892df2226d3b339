"""Errors that end a command with one line. Each message stands alone and names the file."""


class UsageError(ValueError):
    """The request cannot be met; the command line exits with 2."""


class DataError(ValueError):
    """The content of a file is wrong; the command line exits with 1."""
