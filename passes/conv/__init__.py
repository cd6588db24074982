"""Choose the algorithm, layout and tile of every convolution."""
