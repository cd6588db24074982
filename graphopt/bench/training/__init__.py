"""Training steps beside PyTorch: the same model, weights, data and optimizer."""
