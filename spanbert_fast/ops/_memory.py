"""Memory that the CPU kernels keep from one step to the next."""

from spanbert_fast._extension import _C


def release_memory() -> int:
    """Give the memory that the CPU kernels keep back to the system.

    Results of 2 MiB and more (activations, gradients of tables, scores of the loss) are allocated
    from a store of the process. Their memory returns there when their last tensor is freed, because
    the system would map it again page by page, which takes longer than many ops. The store holds at
    most 512 MiB and frees its oldest blocks beyond that. It does not hold tensors in use.

        >>> import spanbert_fast
        >>> spanbert_fast.release_memory() >= 0
        True

    Returns:
        The bytes given back; 0 if the package has no extension, since nothing is kept then.
    """
    return 0 if _C is None else _C.release_memory()
