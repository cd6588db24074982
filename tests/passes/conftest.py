from collections.abc import Callable, Mapping, Sequence

import pytest

from graphopt.pipeline.observe import Check
from graphopt.pipeline.pass_base import Pass, PassResult
from graphopt.pipeline.pipeline import Event
from graphopt.verify.oracle import random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.text_models import listing, parse

Rewrite = Callable[..., tuple[str, PassResult]]


@pytest.fixture
def rewrite() -> Rewrite:
    """Runs a pass on text and returns (listing after, result), having checked the contract of every pass:

    the model stays valid, ONNX Runtime agrees on random inputs, and a second run modifies nothing.
    """

    def run(
        each: Pass, text: str, weights: Mapping[str, Sequence[int]] | None = None, opset: int = 20
    ) -> tuple[str, PassResult]:
        model = parse(text, weights, opset)
        before = listing(model), list(model.graph.initializers)
        feeds = random_inputs(model, 0)
        expected = run_onnxruntime(model, feeds)
        result = each(model)
        after = listing(model)
        assert result.modified == ((after, list(model.graph.initializers)) != before), (
            "the result lies about what was modified"
        )
        Check()(Event(1, each.name, model, None))
        require_equal(expected, run_onnxruntime(model, feeds), "after the pass")
        assert all(value.uses() or value.is_graph_output() for value in model.graph.initializers.values())
        second = each(model)
        assert not second.modified, listing(model)
        assert listing(model) == after
        assert isinstance(result, PassResult)
        return after, result

    return run
