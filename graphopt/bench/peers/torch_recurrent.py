"""LSTM for torch: its weights in torch's order, as separate constants.

ONNX keeps [input, output, forget, cell] gates of all directions in one tensor, torch [input, forget, cell, output] in
four tensors for each direction.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_X, _W, _R, _B, _LENGTHS, _H, _C, _PEEPHOLES = range(8)
_ORDER = (0, 2, 3, 1)


def rearranged(nodes: Sequence[Any], constants: MutableMapping[str, Any]) -> None:
    """Rewrite LSTM nodes in place: LSTM(x, w, r, b, _, h, c) -> LSTM(x, h, c, weights of torch...).

    A node that torch's LSTM cannot compute is left unchanged, and refused later.

    Args:
        nodes: nodes of an onnx.GraphProto.
        constants: by name; adds torch's weights and removes those that no node reads any more.
    """
    replaced: set[str] = set()
    for node in nodes:
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        weights = [constants.get(inputs[place]) for place in (_W, _R, _B)]
        if (
            node.op_type != "LSTM"
            or any(weight is None for weight in weights)
            or inputs[_LENGTHS]
            or inputs[_PEEPHOLES]
        ):
            continue
        tensors = _split(*weights)
        names = [f"{node.output[0] or node.name}/torch/{number}" for number in range(len(tensors))]
        constants.update(zip(names, tensors, strict=True))
        replaced.update(inputs[_W : _B + 1])
        del node.input[:]
        node.input.extend([inputs[_X], inputs[_H], inputs[_C], *names])
    read = {name for node in nodes for name in node.input}
    for name in replaced - read:
        del constants[name]


def _split(w: Any, r: Any, b: Any) -> list[Any]:
    """w[D, 4H, I], r[D, 4H, H], b[D, 8H] -> per direction the weights of x and h, and both biases."""
    tensors = []
    for direction in range(len(w)):
        biases = np.split(b[direction], 2)
        for matrix in (w[direction], r[direction], *biases):
            gates = np.split(matrix, 4)
            tensors.append(np.concatenate([gates[place] for place in _ORDER]))
    return tensors


def lstm(attributes: Mapping[str, Any], outputs: int) -> Any:
    """The function of a rearranged node: x[T, N, I] -> y[T, D, N, H], and the last h and c [D, N, H]."""
    both = attributes.get("direction", "forward") == "bidirectional"
    hidden, directions = attributes["hidden_size"], 2 if both else 1

    def run(x: Tensor, h: Tensor | None, c: Tensor | None, *weights: Tensor) -> tuple[Tensor, ...]:
        zeros = x.new_zeros(directions, x.shape[1], hidden)
        state = zeros if h is None else h, zeros if c is None else c
        y, last_h, last_c = torch._VF.lstm(x, state, weights, True, 1, 0.0, False, both, False)
        split = y.reshape(*y.shape[:2], directions, hidden).permute(0, 2, 1, 3)
        return (split, last_h, last_c)[:outputs]

    return run
