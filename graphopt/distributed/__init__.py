"""Pipelines of several ranks: partition, launcher, worker processes, transport, and failure detection."""
