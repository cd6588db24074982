"""`graphopt passes` and `graphopt models`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from graphopt import models
from graphopt.graph import analysis
from graphopt.models.sizes import SIZES
from graphopt.pipeline.pipeline import Pipeline

Cli = Callable[..., Any]


def test_every_pass_is_listed_with_its_options(graphopt: Cli) -> None:
    from graphopt.passes import DEFAULT, DEFAULTS, PASSES

    document = graphopt("passes", "--json").document
    assert [each["name"] for each in document["passes"]] == list(PASSES)
    assert document["default"] == DEFAULT == str(Pipeline.parse(DEFAULT))
    assert document["defaults"] == DEFAULTS
    text = graphopt("passes").out
    for target, pipeline in DEFAULTS.items():
        assert str(Pipeline.parse(pipeline)) == pipeline
        assert f"Default pipeline for {target}: {pipeline}" in text
    for each in document["passes"]:
        for option in each["options"]:
            spelling = f"{each['name']}{{{option['name']}={option['default']}}}"
            assert str(Pipeline.parse(spelling)) == each["name"]


def test_every_model_is_listed(graphopt: Cli) -> None:
    document = graphopt("models", "--json").document
    assert [each["name"] for each in document["models"]] == list(models.names()) == list(SIZES)
    text = graphopt("models").out
    assert "resnet50" in text
    assert "25.6 M" in text


QUICK = ("lenet5", "lenet-digits", "mlp-digits", "light/squeezenet", "mlp", "wideresnet28-2")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in models.names()]


@pytest.mark.parametrize("name", NAMES)
def test_sizes_are_what_the_models_have(name: str) -> None:
    from graphopt import load

    model = load(f"zoo:{name}").model
    assert (analysis.parameters(model), analysis.flops(model)) == (SIZES[name].parameters, SIZES[name].flops)


def test_one_pass_is_shown_in_full(graphopt: Cli) -> None:
    document = graphopt("passes", "loss", "--json").document
    assert document["name"] == "loss"
    assert document["description"].startswith(document["summary"])
    assert "cross-entropy|nll|mse" in graphopt("passes", "loss").out
    assert "there is no pass maskes; did you mean masks" in graphopt("passes", "maskes").err


def test_differentiate_shows_which_operators_have_a_gradient(graphopt: Cli) -> None:
    document = graphopt("passes", "differentiate", "--json").document
    by_name = {each["operator"]: each for each in document["operators"]}
    assert by_name["Relu"] == {"operator": "Relu", "rule": "activations", "keeps": "y", "limits": ""}
    assert by_name["Einsum"]["limits"] == "no ellipsis, no diagonal"
    assert "ArgMax" in document["zero"]
    assert not set(document["zero"]) & set(by_name)
    text = graphopt("passes", "differentiate").out
    assert f"Operators with a gradient: {len(by_name)}" in text
