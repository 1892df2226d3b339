"""`unpad`'s gather is `pad`'s sibling and lives beside it."""

from spanbert_fast.kernels.pad import unpad_fwd

__all__ = ["unpad_fwd"]
