"""Memory that the CPU kernels keep from one step to the next."""

from spanbert_fast._extension import _C


def release_memory() -> int:
    """Give the memory that the CPU kernels keep back to the system.

    Results of 2 MiB and more (activations, gradients of tables, scores of the loss) come from a
    store of the process, and return to it when their last tensor goes: the system would take
    such memory away and hand it out again page by page, which takes longer than many ops. The store
    holds at most 512 MiB, and gives the oldest back beyond. Tensors that are in use are not in it.

        >>> import spanbert_fast
        >>> spanbert_fast.release_memory() >= 0
        True

    Returns:
        The bytes given back; 0 where the package has no extension, which keeps nothing.
    """
    return 0 if _C is None else _C.release_memory()
