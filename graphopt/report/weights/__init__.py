"""What is said of weights: how sparse they are, what was pruned, how small they are stored, how fast blocks are."""
