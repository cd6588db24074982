"""Passes and pipelines: exports everything that a user-defined pass needs."""

from graphopt.pipeline.pass_base import Alternative, ByteSize, Choice, Pass, PassResult, Refusal, option
from graphopt.pipeline.pipeline import Event, Pipeline, PipelineResult, Step

__all__ = [
    "Alternative",
    "ByteSize",
    "Choice",
    "Event",
    "Pass",
    "PassResult",
    "Pipeline",
    "PipelineResult",
    "Refusal",
    "Step",
    "option",
]
