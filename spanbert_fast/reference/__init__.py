"""The ops in plain PyTorch, one file per op, written to be read first.

They take any dtype and are differentiable by autograd. Called in float64, they give the truth that
every kernel is compared with. They import torch, and nothing else of this package.
"""
