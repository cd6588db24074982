"""Passes on sparse weights."""
