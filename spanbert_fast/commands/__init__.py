"""The subcommands of `spanbert-fast`, one file each: `parser()` and `run(arguments)`."""
