"""Training data: arrays by input, checked against the model, cut into shuffled batches ahead of the step."""
