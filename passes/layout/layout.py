"""Keep tensors in the blocked layout between the convolutions that use it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import ClassVar

import onnx_ir as ir

from graphopt.cost.model import CostModel
from graphopt.graph.edit import Editor, dims, is_custom
from graphopt.ops import DOMAIN
from graphopt.ops.layout import blocks
from graphopt.passes.layout.blockable import border, to_blocked_form
from graphopt.passes.layout.form import Form
from graphopt.passes.layout.selection import BLOCKED, selection_problem
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal
from graphopt.solve.selection import solve


@dataclass(frozen=True)
class Layout(Pass):
    """Convert between planar [N, C, H, W] and blocked [N, CB, H, W, b] tensors as rarely as it pays.

        y = FromBlocked(Conv2dBlocked(ToBlocked(x)))          y = FromBlocked(r)
        z = Relu(y)                                    ->     r = Relu(Conv2dBlocked(ToBlocked(x)))
        w = FromBlocked(Conv2dBlocked(ToBlocked(z)))          w = FromBlocked(Conv2dBlocked(r))

    Elementwise operators, Concat of channels (multiples of b), pooling, LRN, Pad, and the statistics and gradients of
    training can work on blocked tensors. Which of them do follows from the costs of the nodes and of the conversions
    (`graphopt.solve.selection`), so an operator between planar neighbours stays planar. `ToBlocked(FromBlocked(x))` of
    one block size cancels, and all consumers of a tensor share one conversion. Padded lanes may then hold any finite
    number: operators that could turn it into NaN or infinity stay planar. The block size is that of the model's
    `FromBlocked` nodes.
    """

    name: ClassVar[str] = "layout"

    costs: CostModel = field(default_factory=CostModel, compare=False, repr=False)

    def on(self, costs: CostModel) -> Layout:
        """The same pass with the cost model `costs`."""
        return replace(self, costs=costs)

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; refusals name operators beside blocked ones that cannot be blocked."""
        block = _block_size(model.graph)
        if block is None:
            return PassResult(model, False)
        editor = Editor(model, self.name)
        labelled = selection_problem(model.graph, block, self.costs, {})
        taken = solve(labelled.problem).chosen
        blocked = [
            options[index].writes == BLOCKED
            for options, index in zip(labelled.problem.alternatives, taken, strict=True)
        ]
        refusals = tuple(
            Refusal(str(node.name), reason)
            for node, reason in labelled.refusals.items()
            if node.domain != DOMAIN and any(_is_from_blocked(value) for value in node.inputs)
        )
        rewrite = _Rewrite(editor, block)
        for number, node in enumerate(labelled.nodes):
            if is_custom(node, "ToBlocked"):
                rewrite.share(node)
            elif node in labelled.forms and blocked[number]:
                rewrite.convert(node, labelled.forms[node])
        for node in reversed(model.graph):
            if is_custom(node, "FromBlocked", "ToBlocked") and not _used(node):
                editor.erase(node)
        return PassResult(model, editor.modified, refusals)


class _Rewrite:
    """One run of the pass. `conversions` maps (planar tensor, block size) to its ToBlocked output, so far."""

    def __init__(self, editor: Editor, block: int) -> None:
        self.editor = editor
        self.block = block
        self.conversions: dict[tuple[ir.Value, int], ir.Value] = {}

    def share(self, node: ir.Node) -> None:
        """Cancel a ToBlocked against the FromBlocked before it, or merge it with an earlier one of the same tensor."""
        planar, here = node.inputs[0], node.outputs[0]
        assert planar is not None
        existing = self._existing(planar, node.attributes.get_int("block", 0))
        if existing is None:
            self.conversions[planar, node.attributes.get_int("block", 0)] = here
        else:
            ir.convenience.replace_all_uses_with(here, existing)
            self.editor.erase(node)

    def convert(self, node: ir.Node, form: Form) -> None:
        """Replace `node` by its blocked twin between conversions; those without consumers are erased later."""
        inputs = []
        for index in form.data:
            planar = node.inputs[index]
            assert planar is not None
            inputs.append(self._existing(planar, self.block) or self._to_blocked(node, planar))
        twins = to_blocked_form(self.editor, node, form, inputs, self.block)
        for index, (y, twin) in enumerate(zip(node.outputs, twins, strict=False)):
            self.editor.replace(y, self._to_planar(node, y, twin) if index in form.outputs else twin)
        self.editor.erase(node)

    def _to_planar(self, node: ir.Node, y: ir.Value, twin: ir.Value) -> ir.Value:
        shape = dims(y)
        assert shape is not None
        return self.editor.insert(
            node,
            "FromBlocked",
            [twin],
            {"channels": shape[1]},
            shape=shape,
            dtype=y.dtype,
            name=f"{node.name}.from_blocked",
            output=f"{y.name}.planar",
            origin=[node],
            domain=DOMAIN,
        )

    def _existing(self, planar: ir.Value, block: int) -> ir.Value | None:
        """The blocked tensor that `planar` was converted from, or has been converted to, if any."""
        producer = planar.producer()
        if producer is not None and is_custom(producer, "FromBlocked") and border(producer, block):
            return producer.inputs[0]
        return self.conversions.get((planar, block))

    def _to_blocked(self, before: ir.Node, planar: ir.Value) -> ir.Value:
        shape = dims(planar)
        assert shape is not None
        n, c, h, w = shape
        blocked = self.editor.insert(
            before,
            "ToBlocked",
            [planar],
            {"block": self.block},
            shape=(n, blocks(c, self.block), h, w, self.block),
            dtype=planar.dtype,
            name=f"{before.name}.to_blocked",
            output=f"{planar.name}.blocked",
            origin=[before],
            domain=DOMAIN,
        )
        self.conversions[planar, self.block] = blocked
        return blocked


def _block_size(graph: ir.Graph) -> int | None:
    """Channels per block of the blocked tensors; the most frequent size when passes ran with different ones."""
    sizes = Counter(shape[4] for node in graph if is_custom(node, "FromBlocked") and (shape := dims(node.inputs[0])))
    return sizes.most_common(1)[0][0] if sizes else None


def _is_from_blocked(value: ir.Value | None) -> bool:
    return value is not None and is_custom(value.producer(), "FromBlocked")


def _used(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)
