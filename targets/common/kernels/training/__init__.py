"""Definitions of the backward pass that all targets share."""
