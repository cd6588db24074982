import dataclasses

import pytest

from graphopt.cost import roofline
from graphopt.cost.roofline import ConvShape, Machine

MACHINE = Machine()
VGG = ConvShape(n=1, c=256, h=56, w=56, o=256, kh=3, kw=3, oh=56, ow=56)


def test_flops_count_two_per_multiply_add() -> None:
    assert VGG.flops == 2 * 256 * 256 * 9 * 56 * 56
    assert dataclasses.replace(VGG, group=256).flops == 2 * 256 * 9 * 56 * 56


def test_winograd_beats_direct_on_a_large_plane_and_f4_beats_f2() -> None:
    direct = roofline.blocked(MACHINE, VGG, 16, 16)
    assert roofline.winograd(MACHINE, VGG, 4, 16) < roofline.winograd(MACHINE, VGG, 2, 16) < direct
    assert direct < roofline.im2col(MACHINE, VGG) < roofline.planar(MACHINE, VGG)


def test_larger_weights_make_winograd_lose_on_a_small_plane() -> None:
    small = ConvShape(n=1, c=512, h=4, w=4, o=512, kh=3, kw=3, oh=4, ow=4)
    assert roofline.winograd(MACHINE, small, 4, 16) > roofline.blocked(MACHINE, small, 16, 16)


@pytest.mark.parametrize("axis", [2, 3])
def test_winograd_along_one_axis_multiplies_once_per_tap(axis: int) -> None:
    row = ConvShape(n=1, c=256, h=1, w=504, o=256, kh=1, kw=5, oh=1, ow=500)
    if axis == 2:
        row = dataclasses.replace(row, h=504, w=1, kh=5, kw=1, oh=500, ow=1)
    products, transforms = 2 * 8 * 125 * 256 * 256, 125 * (256 * 8 * 8 + 256 * 4 * 8)
    flops = products / roofline.WINOGRAD_PRODUCT_RATE + transforms / roofline.WINOGRAD_TRANSFORM_RATE
    of_four, of_two = (roofline.winograd(MACHINE, row, m, 16) for m in (4, 2))
    assert of_four == pytest.approx(flops / MACHINE.peak_flops)
    assert of_four < of_two < roofline.blocked(MACHINE, row, 16, 16)
    assert roofline.winograd_workspace(row, 4, 16) == 8 * 125 * (256 + 256) * 4


def test_padded_lanes_are_paid() -> None:
    narrow = dataclasses.replace(VGG, c=17)
    full = dataclasses.replace(VGG, c=32)
    assert roofline.blocked(MACHINE, narrow, 16, 16) == pytest.approx(roofline.blocked(MACHINE, full, 16, 16))


@pytest.mark.parametrize("m", [2, 4])
def test_workspaces(m: int) -> None:
    shape = ConvShape(n=2, c=20, h=9, w=9, o=30, kh=3, kw=3, oh=9, ow=9)
    tiles = 2 * (-(-9 // m)) ** 2
    assert roofline.winograd_workspace(shape, m, 16) == (m + 2) ** 2 * tiles * (32 + 32) * 4
    assert roofline.im2col_workspace(shape) == 2 * 20 * 9 * 81 * 4


def test_a_faster_machine_is_faster() -> None:
    fast = Machine(peak_flops=MACHINE.peak_flops * 2, bandwidth=MACHINE.bandwidth * 2)
    assert roofline.blocked(fast, VGG, 16, 16) == pytest.approx(roofline.blocked(MACHINE, VGG, 16, 16) / 2)
    assert roofline.transform(fast, 100) == pytest.approx(roofline.transform(MACHINE, 100) / 2)
