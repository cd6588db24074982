"""Execution of a program in this process: sessions, stages, feeds and outputs, fallback models."""
