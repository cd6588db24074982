"""Keep tensors blocked between the convolutions that want them so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from graphopt.costs import Machine
from graphopt.ops import DOMAIN
from graphopt.ops.layout import blocks
from graphopt.passes._blockable import Form, border, layout_problem, to_blocked_form
from graphopt.passes._edit import Editor, dims, is_custom
from graphopt.pipeline import Pass, PassResult, Refusal, option
from graphopt.solve.layout import solve


@dataclass(frozen=True)
class Layout(Pass):
    """Convert between planar [N, C, H, W] and blocked [N, CB, H, W, b] tensors as rarely as it pays.

        y = FromBlocked(Conv2dBlocked(ToBlocked(x)))          y = FromBlocked(r)
        z = Relu(y)                                    ->     r = Relu(Conv2dBlocked(ToBlocked(x)))
        w = FromBlocked(Conv2dBlocked(ToBlocked(z)))          w = FromBlocked(Conv2dBlocked(r))

    Elementwise operators, Concat of channels (multiples of b), pooling, LRN and Pad can work on blocked tensors. Which
    of them do is a minimum cut over the cost of their work and of the conversions (`graphopt.solve.layout`), so an
    operator between planar neighbours stays planar. `ToBlocked(FromBlocked(x))` of one block size cancels, and all
    consumers of a tensor share one conversion. Padded lanes may then hold anything finite: operators that could make
    NaN or infinity of them are left planar.
    """

    name: ClassVar[str] = "layout"

    block: int = option(16, "channels per block, the vector width in floats")
    machine: Machine = field(default_factory=Machine)

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; refusals name operators beside blocked ones that cannot be blocked."""
        if not any(border(node, self.block) for node in model.graph):
            return PassResult(model, False)
        editor = Editor(model, self.name)
        labelled = layout_problem(model.graph, self.block, self.machine, {})
        blocked = solve(labelled.problem).blocked
        refusals = tuple(
            Refusal(str(node.name), reason)
            for node, reason in labelled.refusals.items()
            if node.domain != DOMAIN and any(_is_from_blocked(value) for value in node.inputs)
        )
        conversions: dict[ir.Value, ir.Value] = {}
        for number, node in enumerate(labelled.nodes):
            if is_custom(node, "ToBlocked") and border(node, self.block):
                self._share(editor, node, conversions)
            elif node in labelled.forms and blocked[number]:
                self._convert(editor, node, labelled.forms[node], conversions)
        for node in reversed(labelled.nodes):
            if node.graph is not None and border(node, self.block) and not _used(node):
                editor.erase(node)
        for node in reversed(model.graph):
            if is_custom(node, "FromBlocked") and not _used(node):
                editor.erase(node)
        return PassResult(model, editor.modified, refusals)

    def _share(self, editor: Editor, node: ir.Node, conversions: dict[ir.Value, ir.Value]) -> None:
        """Cancel a ToBlocked against the FromBlocked before it, or merge it with an earlier one of the same tensor."""
        planar, here = node.inputs[0], node.outputs[0]
        assert planar is not None
        existing = self._blocked(planar) or conversions.get(planar)
        if existing is None:
            conversions[planar] = here
        else:
            ir.convenience.replace_all_uses_with(here, existing)
            editor.erase(node)

    def _blocked(self, planar: ir.Value) -> ir.Value | None:
        """The blocked tensor that `planar` was converted from, if any."""
        producer = planar.producer()
        if producer is not None and is_custom(producer, "FromBlocked") and border(producer, self.block):
            return producer.inputs[0]
        return None

    def _convert(self, editor: Editor, node: ir.Node, form: Form, conversions: dict[ir.Value, ir.Value]) -> None:
        """Replace `node` by its blocked twin between conversions; the needless ones go later."""
        inputs = []
        for index in form.data:
            planar = node.inputs[index]
            assert planar is not None
            inputs.append(self._blocked(planar) or conversions.get(planar) or self._to_blocked(editor, node, planar))
            if self._blocked(planar) is None:
                conversions[planar] = inputs[-1]
        twin = to_blocked_form(editor, node, form, inputs, self.block)
        y = node.outputs[0]
        shape = dims(y)
        assert shape is not None
        planar_again = editor.insert(
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
        editor.swap(node, planar_again)

    def _to_blocked(self, editor: Editor, before: ir.Node, planar: ir.Value) -> ir.Value:
        shape = dims(planar)
        assert shape is not None
        n, c, h, w = shape
        return editor.insert(
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


def _is_from_blocked(value: ir.Value | None) -> bool:
    return value is not None and is_custom(value.producer(), "FromBlocked")


def _used(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)
