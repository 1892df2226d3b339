"""The ops in plain PyTorch, one file per op, written to be read first.

Dtype-agnostic and differentiable by autograd: call them in float64 for the truth that every
kernel is compared with. They import torch and nothing else of this package.
"""
