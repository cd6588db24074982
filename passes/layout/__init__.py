"""Keep tensors in blocked layouts where that costs least."""
