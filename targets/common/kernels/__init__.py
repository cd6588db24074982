"""Helpers for the TE definitions and schedule rules of every target."""
