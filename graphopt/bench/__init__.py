"""Timing compiled models beside other runtimes: interleaved in one process per model, medians with intervals."""
