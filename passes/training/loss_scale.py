"""Scale the loss, so that gradients of 16 bits do not vanish, and skip the update where they overflow.

    differentiated is loss * scale; the update divides by scale, and is made only if all gradients are finite

The dynamic scale begins at 2^16; it doubles after 2000 steps without overflow and halves at each overflow, as
`torch.amp.GradScaler` does (Micikevicius et al. 2018, "Mixed precision training"), between 1 and 2^24.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.graph.edit import Editor
from graphopt.graph.state import LOSS, Role, mark
from graphopt.passes.training.emit import Emitter
from graphopt.passes.training.step import Step

SCALE = "graphopt.loss_scale"
"""The name of the scale: a state value if it is dynamic, else a constant; a float32 scalar."""
CLEAN = "graphopt.clean_steps"
"""The state value that counts the steps since the scale changed, an int64 scalar."""
UNSCALED = "graphopt.unscaled-loss"
"""Metadata key of a graph whose loss output is scaled: the name of the loss before it was."""

START, INTERVAL, GROWTH, BACKOFF = 2.0**16, 2000, 2.0, 0.5
LEAST, MOST = 1.0, 2.0**24


def loss_of(graph: ir.Graph) -> ir.Value:
    """The output that is the loss.

    Raises:
        ModelError: there is none.
    """
    loss = next((output for output in graph.outputs if output.name == graph.metadata_props.get(LOSS)), None)
    if loss is None:
        raise ModelError("the loss is to be scaled, but the model has none; run loss before mixed-precision")
    return loss


def scale_loss(model: ir.Model, rule: str, fixed: float | None) -> None:
    """Add the output `<loss>.scaled`, which becomes the loss that is differentiated; `fixed` is the scale if it stays.

    Raises:
        ModelError: the model has no loss.
    """
    graph = model.graph
    loss = loss_of(graph)
    editor = Editor(model, rule)
    scale = editor.constant(np.asarray(START if fixed is None else fixed, np.float32), SCALE)
    if fixed is None:
        mark(scale, Role.COUNTER)
        mark(editor.constant(np.zeros((), np.int64), CLEAN), Role.COUNTER)
    scaled = editor.insert(
        None, "Mul", [loss, scale], shape=(), dtype=loss.dtype, name=f"{loss.name}.scale", output=f"{loss.name}.scaled"
    )
    graph.outputs.append(scaled)
    graph.metadata_props[LOSS], graph.metadata_props[UNSCALED] = str(scaled.name), str(loss.name)


def scale_of(graph: ir.Graph) -> ir.Value | None:
    """The scale of a loss that is scaled."""
    return graph.initializers[SCALE] if UNSCALED in graph.metadata_props else None


def unscale_loss(editor: Editor) -> None:
    """The output that was scaled goes, and the loss is the one before it again."""
    graph = editor.graph
    scaled = next(output for output in graph.outputs if output.name == graph.metadata_props[LOSS])
    graph.outputs.remove(scaled)
    producer = scaled.producer()
    if producer is not None and not scaled.uses():
        editor.erase(producer)
    graph.metadata_props[LOSS] = graph.metadata_props.pop(UNSCALED)


def adapt_scale(step: Step, emit: Emitter, finite: ir.Value) -> None:
    """What a dynamic scale is after the step, in which all gradients were `finite` or not."""
    scale, clean = (step.editor.graph.initializers.get(name) for name in (SCALE, CLEAN))
    if clean is None or scale is None:
        return  # it is fixed
    counted = emit("Add", clean, 1)
    grows = emit("Equal", counted, INTERVAL)
    grown = emit("Where", grows, emit("Min", emit("Mul", scale, GROWTH), MOST), scale)
    step.becomes(scale, emit("Where", finite, grown, emit("Max", emit("Mul", scale, BACKOFF), LEAST)))
    stays = emit("And", finite, emit("Not", grows))
    step.becomes(clean, emit("Where", stays, counted, 0))
