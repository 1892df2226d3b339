"""`python -m spanbert_fast` is `spanbert-fast`, for torchrun and accelerate."""

import sys

from spanbert_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
