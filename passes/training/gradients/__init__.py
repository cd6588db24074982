"""The gradients of operators: a rule for each, in a file for each family."""
