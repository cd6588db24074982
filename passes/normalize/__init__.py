"""Rewrite each operation to one canonical form."""
