import subprocess
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

import onnx_ir as ir
import pytest

from graphopt.cost.model import CostModel
from graphopt.cost.roofline import Machine
from graphopt.errors import ModelError, PipelineError
from graphopt.passes import DEFAULT, PASSES, Fuse, Layout, SelectConv
from graphopt.passes.conv.select_conv import Algorithm
from graphopt.pipeline.pass_base import ByteSize, Option, Pass, PassResult, Refusal, option
from graphopt.pipeline.pipeline import Event, Pipeline
from graphopt.pipeline.spelling import load_pass


class Colour(StrEnum):
    RED = "red"
    DARK_BLUE = "dark-blue"


@dataclass(frozen=True)
class Paint(Pass):
    """Every kind of option."""

    name: ClassVar[str] = "paint"
    colour: Colour = option(Colour.RED, "one of them")
    colours: tuple[Colour, ...] = option((), "some of them")
    max_bytes: ByteSize = option(ByteSize(1 << 20), "a size")
    ratio: float = option(0.5, "a float")
    count: int = option(1, "an int")
    thick: bool = option(False, "a bool")
    hidden: dict[str, int] = field(default_factory=dict)

    def call(self, model: ir.Model) -> PassResult:
        return PassResult(model, False, (Refusal("n", "no reason"),))


def model() -> ir.Model:
    return ir.from_onnx_text('<ir_version: 11, opset_import: ["": 20]> g (float[2] x) => (float[2] y) { y = Relu(x) }')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "normalize",
        DEFAULT,
        "select-conv{algorithms=blocked+winograd2,max-workspace=256KiB,max-error=1e-07,block=8},layout",
        "fuse{attention=false}",
    ],
)
def test_spelling_goes_round(text: str) -> None:
    assert str(Pipeline.parse(text)) == text


def test_spelling_leaves_defaults_out_and_allows_spaces() -> None:
    text = " normalize , select-conv{ block = 0 , max-workspace = 256MiB }"
    assert str(Pipeline.parse(text)) == "normalize,select-conv"


def test_values_reach_the_fields() -> None:
    (each,) = Pipeline.parse("select-conv{algorithms=blocked+im2col,max-workspace=1GiB}").passes
    assert each == SelectConv(algorithms=(Algorithm.BLOCKED, Algorithm.IM2COL), max_workspace=ByteSize(1 << 30))


def test_every_kind_of_option() -> None:
    texts = {"colour": "dark-blue", "colours": "red+red", "max-bytes": "3KiB", "ratio": "2", "count": "-3", "thick": ""}
    paint = Paint.from_options(texts)
    assert paint == Paint(Colour.DARK_BLUE, (Colour.RED, Colour.RED), ByteSize(3072), 2.0, -3, True)
    assert str(paint) == "paint{colour=dark-blue,colours=red+red,max-bytes=3KiB,ratio=2.0,count=-3,thick=true}"
    assert Paint.options()[2] == Option("max-bytes", "size", "1MiB", "a size")
    assert [o.name for o in Paint.options()] == ["colour", "colours", "max-bytes", "ratio", "count", "thick"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"colour": "green"}, "option colour of pass paint is 'green'; it must be one of red, dark-blue"),
        ({"max-bytes": "12 parsecs"}, "it must be a size such as 256MiB"),
        ({"count": "1.5"}, "it must be of type int"),
        ({"thick": "maybe"}, "it must be true or false"),
        ({"color": "red"}, "pass paint has no option color; did you mean colour or colours?"),
        ({"hidden": "1"}, "pass paint has no option hidden"),
    ],
)
def test_bad_options(texts: dict[str, str], message: str) -> None:
    with pytest.raises(PipelineError) as error:
        Paint.from_options(texts)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fuze", "there is no pass fuze; did you mean fuse?"),
        ("zzz", f"there is no pass zzz; there are {', '.join(sorted(PASSES))}"),
        ("normalize{x=1}", "pass normalize has no option x; it has none"),
        ("fuse{", "cannot read the pipeline at 'fuse{'"),
        ("fuse layout", "cannot read the pipeline at 'fuse layout'"),
        ("fuse,", "cannot read the pipeline at ''"),
        (",fuse", "cannot read the pipeline at ',fuse'"),
    ],
)
def test_bad_spellings(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as error:
        Pipeline.parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize(("size", "text"), [(0, "0B"), (1, "1B"), (1536, "1536B"), (2048, "2KiB"), (3 << 30, "3GiB")])
def test_byte_size(size: int, text: str) -> None:
    assert str(ByteSize(size)) == text
    assert ByteSize.parse(text) == size


def test_steps_and_events() -> None:
    events: list[Event] = []
    result = Pipeline((Paint(), Fuse())).run(model(), [events.append])
    assert [(e.index, e.name) for e in events] == [(0, "input"), (1, "paint"), (2, "fuse")]
    assert [e.step for e in events[1:]] == list(result.steps)
    first = result.steps[0]
    assert (first.spelling, first.modified, first.refusals) == ("paint", False, (Refusal("n", "no reason"),))
    assert first.seconds >= 0


@dataclass(frozen=True)
class Broken(Pass):
    name: ClassVar[str] = "broken"

    def call(self, model: ir.Model) -> PassResult:
        raise KeyError("oops")


@dataclass(frozen=True)
class Complaining(Pass):
    name: ClassVar[str] = "complaining"

    def call(self, model: ir.Model) -> PassResult:
        raise ModelError("the model is odd")


def test_a_pass_that_fails_is_named() -> None:
    with pytest.raises(PipelineError, match="pass broken failed on this model"):
        Pipeline((Broken(),)).run(model())
    with pytest.raises(ModelError, match="the model is odd"):
        Pipeline((Complaining(),)).run(model())


@pytest.mark.parametrize("name", PASSES)
def test_table(name: str) -> None:
    loaded = load_pass(name)
    assert loaded.name == name
    assert loaded.__doc__
    assert loaded == getattr(__import__("graphopt.passes", fromlist=["x"]), loaded.__name__)
    assert hash(loaded()) == hash(loaded())


def test_the_table_imports_no_pass() -> None:
    code = "import sys, graphopt.passes; sys.exit(any(m.startswith('graphopt.passes.') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_a_pipeline_gets_its_costs() -> None:
    costs = CostModel(Machine(vector_lanes=8))
    normalize, select, layout = Pipeline.parse("normalize,select-conv{max-error=1e-07},layout").on(costs).passes
    assert normalize == Pipeline.parse("normalize").passes[0]
    assert isinstance(select, SelectConv)
    assert isinstance(layout, Layout)
    assert select.costs is layout.costs is costs
    assert (select.max_error, select.lanes) == (1e-7, 8)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_options_are_finite(text: str) -> None:
    with pytest.raises(PipelineError, match="it must be a finite number"):
        Pipeline.parse(f"select-conv{{max-error={text}}}")
