"""Shared by the tests of the antecedent ops: documents of mentions, and their values."""

import torch

# mentions of each document
DOCUMENTS = {
    "one mention": [1],
    "ragged": [3, 0, 70, 1, 9],
    "longer than a tile": [300, 45],
    "only empty": [0, 0],
    "none": [],
}


def cumulative(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def tensors_of(mentions: int, features: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries, keys, mention scores and distance scores; pairs score about 0 +- 3."""
    shapes = ((mentions, features), (mentions, features), (mentions,), (mentions, 10))
    scale = features**-0.25
    return [
        (scale * torch.randn(shape) * (1.4 if len(shape) == 2 else 1)).to(dtype) for shape in shapes
    ]


def clusters_of(mentions: int) -> torch.Tensor:
    """A third of the mentions in no cluster, the others in clusters of about four."""
    clusters = torch.randint(0, max(1, mentions // 6), (mentions,))
    return clusters.masked_fill(torch.rand(mentions) < 0.3, -1)
