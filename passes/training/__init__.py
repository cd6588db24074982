"""From a model with a loss to a training step."""
