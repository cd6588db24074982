"""Passes and pipelines. What a pass of one's own needs is here; the parts are in the files beside this one."""

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
