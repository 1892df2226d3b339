"""Numbers that every part of the package agrees on."""

IGNORED_TARGET = -100  # no loss is taken of it, as throughout transformers
