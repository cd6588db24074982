"""Small arrays of a kernel are LLVM's, large ones the runtime's."""

from __future__ import annotations

import re
from typing import Any

import pytest
from tvm import te, tirx

from graphopt.targets.cpu import register_arrays
from graphopt.targets.cpu.build import compile_functions
from graphopt.targets.cpu.kernels import gemm
from graphopt.targets.cpu.machine import detect
from graphopt.targets.cpu.rules import apply


def assembly(function: Any) -> str:
    module = compile_functions({"k": function.with_attr("global_symbol", "k")}, detect(None, 2))
    return str(module.mod.inspect_source("asm"))


def reversed_twice(numbers: int) -> Any:
    """y = reverse(reverse(x)), the one in the middle an array of the kernel."""
    x = te.placeholder([tirx.IntImm("int64", numbers)], "float32", name="x")
    middle = te.compute((numbers,), lambda i: x[numbers - 1 - i], name="middle")
    return te.create_prim_func([x, te.compute((numbers,), lambda i: middle[numbers - 1 - i], name="y")])


@pytest.mark.parametrize(
    ("numbers", "taken"), [(register_arrays.LARGEST // 4, False), (register_arrays.LARGEST // 4 + 1, True)]
)
def test_by_size(numbers: int, taken: bool) -> None:
    assert ("TVMBackendAllocWorkspace" in assembly(reversed_twice(numbers))) == taken


def test_sums_of_a_tile_stay_in_registers_beside_prefetches() -> None:
    machine = detect(None, 2)
    tile = max(gemm.every_tile(14, 128, machine, "float32"), key=lambda each: each.rows * each.width)
    shapes = ((1, 2 * tile.rows, 64), (1, 128 // tile.width, 64, tile.width))
    a, b = (
        te.placeholder([tirx.IntImm("int64", extent) for extent in shape], "float32", name=name)
        for name, shape in zip("ab", shapes, strict=True)
    )
    product = gemm.compute(a, b, (2 * tile.rows, 128), (0, 1, 1), tile.rows)
    function, note = apply(te.create_prim_func([a, b, product]), machine)
    assert note == ""
    text = assembly(function)
    assert "prefetch" in text
    stores = re.findall(r"\tvmov\w+\t%[yz]mm\d+, (?!.*rsp).*\)\n", text)
    assert len(stores) == tile.rows * tile.width // machine.lanes("float32")  # each sum once, into the result
