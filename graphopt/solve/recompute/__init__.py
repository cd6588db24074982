"""Which operations run again, and where, so that a sequence of operations fits into a budget of memory."""
