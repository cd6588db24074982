"""Functions of the backward pass, where a kernel needs to see the whole operation: gradients, masks, kept gates."""
