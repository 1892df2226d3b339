"""Arguments that a caller may pass, by mistake or on purpose, in place of valid ones."""

import random

import torch

DTYPES = (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.int8,
    torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool,
)  # fmt: skip
NUMBERS = (
    -(1 << 63), -(1 << 40), -(1 << 31), -1, 0, 1, 2, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31,
    1 << 40, 1 << 62, (1 << 63) - 1,
)  # fmt: skip
FLOATS = (
    float("nan"), float("inf"), float("-inf"), 0.0, -0.0, -1.0, 1e-300, 1e-40, 1e30, 3.4e38, 1e300,
)  # fmt: skip


def view_of(x: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """A view of the same values with other strides, with NaN (integers: 2^30) around them."""
    if x.dim() == 0 or x.is_meta:
        return x
    kind = draw.randrange(4)
    if kind == 0:
        order = list(range(x.dim()))
        draw.shuffle(order)
        back = [order.index(i) for i in range(x.dim())]
        return x.permute(order).contiguous().permute(back)
    steps = [draw.choice((1, 1, 2, 3)) for _ in x.shape]
    before = [draw.randrange(3) for _ in x.shape]
    sizes = [b + size * step for b, size, step in zip(before, x.shape, steps, strict=True)]
    if x.dtype.is_floating_point or x.dtype.is_complex:
        around = torch.full(sizes, float("nan"), dtype=x.dtype)
    else:
        around = torch.full(sizes, 1 << 30, dtype=torch.int64).to(x.dtype)
    places = tuple(slice(b, None, step) for b, step in zip(before, steps, strict=True))
    return around[places][tuple(slice(0, size) for size in x.shape)].copy_(x)


def expanded(x: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """One row or one element, expanded, sometimes to more memory than there is."""
    if x.dim() == 0 or x.numel() == 0:
        return x
    shape = list(x.shape)
    if draw.random() < 0.3:
        shape[draw.randrange(len(shape))] = 1 << 45
    one = x[:1] if draw.random() < 0.5 and shape[1:] == list(x.shape[1:]) else x.flatten()[:1]
    return (one if one.dim() == x.dim() else one.view((1,) * x.dim())).expand(shape)


def reshaped(x: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Another shape: a size off by one, 0 or doubled; a dimension more or less, or none."""
    kind = draw.randrange(8)
    if kind == 0 or x.dim() == 0:
        return x.unsqueeze(draw.randint(0, x.dim()))
    axis = draw.randrange(x.dim())
    if kind == 1:
        return x.flatten()
    if kind == 2:
        return x.flatten()[:1].sum().to(x.dtype) if x.numel() else x.new_zeros(())
    if kind == 3 and x.shape[axis]:
        return x.select(axis, 0)
    if kind == 4:
        return x.transpose(0, -1)
    if kind == 5:
        return torch.cat((x, x), axis)
    if kind == 6:
        return x.narrow(axis, 0, 0)
    return x.narrow(axis, 0, max(0, x.shape[axis] - 1))


def revalued(x: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """Other values: one, some or all extreme, or the same in another order."""
    if x.numel() == 0:
        return x
    x = x.contiguous().clone()
    flat = x.view(-1)
    if draw.random() < 0.15:
        return x.flip(0) if x.dim() else x
    if x.dtype.is_floating_point or x.dtype.is_complex:
        value = torch.tensor(draw.choice(FLOATS), dtype=torch.float64).to(x.dtype)
    elif x.dtype == torch.bool:
        value = draw.random() < 0.5
    else:
        bounds = torch.iinfo(x.dtype)
        near = int(flat[draw.randrange(len(flat))]) + draw.choice((-1, 1))
        value = max(bounds.min, min(bounds.max, draw.choice((*NUMBERS, near, near, near))))
    if draw.random() < 0.3:
        flat.fill_(value)
    else:
        for _ in range(draw.choice((1, 1, 3))):
            flat[draw.randrange(len(flat))] = value
    return x


def special(x: torch.Tensor, draw: random.Random) -> object:
    """A tensor of another kind, or an object that is no tensor."""
    kind = draw.randrange(9)
    if kind == 0:
        return x.to("meta")
    if kind == 1 and x.dim():
        return x.to_sparse()
    if kind == 2:
        return torch._neg_view(x) if x.dtype.is_floating_point else x
    if kind == 3:
        return None
    if kind == 4:
        return x.tolist()
    if kind == 5:
        return "a text"
    if kind == 6 and x.dtype.is_floating_point:
        return x.clone().requires_grad_()
    if kind == 7:
        with torch.inference_mode():
            return x.clone()
    return object()


def tensor(x: torch.Tensor, draw: random.Random) -> object:
    """A replacement for a tensor."""
    kind = draw.randrange(12)
    if kind < 2:
        return x.to(draw.choice(DTYPES))
    if kind < 5:
        return reshaped(x, draw)
    if kind < 9:
        return revalued(x, draw)
    if kind == 9:
        return expanded(x, draw)
    if kind == 10:
        return special(x, draw)
    return view_of(revalued(x, draw), draw)


def number(x: float, draw: random.Random) -> object:
    """A replacement for a number."""
    if draw.random() < 0.1:
        return draw.choice((None, "a text", [x], torch.tensor(3), 1j))
    if isinstance(x, float):
        return draw.choice(FLOATS)
    if isinstance(x, bool):
        return not x
    return draw.choice((*NUMBERS, x + 1, x - 1))


def argument(x: object, draw: random.Random) -> object:
    """A replacement for any argument."""
    if isinstance(x, torch.Tensor):
        return tensor(x, draw)
    if isinstance(x, torch.dtype):
        return draw.choice((*DTYPES, None, 3))
    if isinstance(x, (list, tuple)):
        changed = [number(y, draw) if draw.random() < 0.4 else y for y in x]
        longer = [*changed, draw.choice(NUMBERS)]
        return draw.choice((changed, longer, changed[:-1], [], sorted(x), list(x)[::-1], None))
    if not isinstance(x, (bool, int, float, type(None))):
        return x
    if x is None:
        return draw.choice((torch.zeros(3), torch.tensor(5), torch.zeros(0, dtype=torch.int64), 7))
    return number(x, draw)
