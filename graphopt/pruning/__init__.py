"""Prune a user's model: the model as it was given (`model`), and how sparse each of its layers becomes (`budget`)."""
