"""One public, differentiable function per op: validation, dispatch, autograd."""
