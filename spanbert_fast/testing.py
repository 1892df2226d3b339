"""Comparisons for tests of kernels (contract C5)."""

import torch


def assert_no_worse_than(
    ours: torch.Tensor,
    peer: torch.Tensor,
    truth: torch.Tensor,
    *,
    floor: float,
    factor: float = 2.0,
    name: str = "result",
) -> None:
    """Raise unless max|ours - truth| <= factor * max|peer - truth| + floor.

    Args:
        ours: what is tested.
        peer: the same computation by PyTorch in the same dtype as `ours`.
        truth: the same computation in a higher precision (fp64 on CPU, fp32 on a GPU).
        floor: absolute slack, for a peer that happens to be exact; say at the call why it is
            what it is.
        name: what to call the tensor in the error.
    """
    if ours.shape != truth.shape or peer.shape != truth.shape:
        raise AssertionError(
            f"{name}: shapes differ: ours {tuple(ours.shape)}, peer {tuple(peer.shape)}, "
            f"truth {tuple(truth.shape)}"
        )
    if not torch.isfinite(ours).all():
        raise AssertionError(f"{name}: not finite at {(~torch.isfinite(ours)).sum()} elements")
    if truth.numel() == 0:
        return
    error = (ours.to(truth.dtype) - truth).abs().max().item()
    allowed = factor * (peer.to(truth.dtype) - truth).abs().max().item() + floor
    if not error <= allowed:
        raise AssertionError(f"{name}: error {error:.3e} is above the allowed {allowed:.3e}")


def assert_bitwise_equal(ours: torch.Tensor, expected: torch.Tensor, name: str = "result") -> None:
    """Raise unless both tensors have one dtype, one shape and the same bits."""
    if ours.dtype != expected.dtype or ours.shape != expected.shape:
        raise AssertionError(
            f"{name}: expected {expected.dtype} {tuple(expected.shape)}, "
            f"got {ours.dtype} {tuple(ours.shape)}"
        )
    same = torch.equal(
        ours.contiguous().reshape(-1).view(torch.uint8),
        expected.contiguous().reshape(-1).view(torch.uint8),
    )
    if not same:
        differ = (ours != expected).nonzero()
        where = tuple(differ[0].tolist()) if len(differ) else "bits of equal values"
        raise AssertionError(f"{name}: {len(differ)} of {ours.numel()} differ, first at {where}")
