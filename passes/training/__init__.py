"""From a model to its training step: the loss, gradients, masks."""
