"""Parameters and operations of every model in the zoo, so that listing them builds none.

Both are what `graphopt.graph.analysis` counts after loading; tests/cli/test_listings.py counts again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """Elements of all floating point weights; operations of one run, two per multiply-add."""

    parameters: int
    flops: int


SIZES = {
    "lenet5": Size(61_706, 852_370),
    "alexnet": Size(61_100_840, 1_430_168_424),
    "vgg16": Size(138_357_544, 30_973_787_624),
    "resnet18": Size(11_700_072, 3_640_490_984),
    "resnet50": Size(25_620_328, 8_228_746_216),
    "wideresnet28-2": Size(1_471_466, 430_901_770),
    "googlenet": Size(6_642_160, 3_022_261_608),
    "mobilenetv2": Size(3_543_234, 627_968_776),
    "densenet121": Size(8_063_496, 5_724_784_872),
    "unet": Size(7_769_921, 24_210_440_192),
    "mlp": Size(29_374_464, 58_746_880),
    "mlp-b128": Size(29_374_464, 7_519_600_640),
    "lstm": Size(10_572_416, 2_114_368_000),
    "bilstm": Size(3_656_721, 475_240_100),
    "bert-base": Size(109_187_331, 22_421_374_720),
    "gpt2-small": Size(162_349_058, 32_301_023_232),
    "vit-b16": Size(86_567_657, 35_246_074_168),
    "lenet-digits": Size(13_706, 188_298),
    "mlp-digits": Size(85_002, 169_994),
    "light/bvlc_alexnet": Size(60_965_224, 1_317_231_728),
    "light/densenet121": Size(8_146_152, 5_749_220_584),
    "light/inception_v1": Size(6_998_552, 2_890_612_992),
    "light/inception_v2": Size(11_234_792, 4_068_487_952),
    "light/resnet50": Size(25_610_152, 8_217_637_232),
    "light/shufflenet": Size(1_420_152, 260_960_992),
    "light/squeezenet": Size(1_235_496, 706_628_160),
    "light/vgg19": Size(143_667_240, 39_299_972_976),
    "light/zfnet512": Size(87_250_536, 2_986_346_192),
    "seeded/bvlc_alexnet": Size(60_965_224, 1_317_231_728),
    "seeded/densenet121": Size(8_146_152, 5_749_220_584),
    "seeded/inception_v1": Size(6_998_552, 2_890_612_992),
    "seeded/inception_v2": Size(11_234_792, 4_068_487_952),
    "seeded/resnet50": Size(25_610_152, 8_217_637_232),
    "seeded/shufflenet": Size(1_420_152, 260_960_992),
    "seeded/squeezenet": Size(1_235_496, 706_628_160),
    "seeded/vgg19": Size(143_667_240, 39_299_972_976),
    "seeded/zfnet512": Size(87_250_536, 2_986_346_192),
    "layer/conv3x3-64x56": Size(36_864, 231_211_008),
    "layer/conv3x3-128x28": Size(147_456, 231_211_008),
    "layer/conv3x3-256x14": Size(589_824, 231_211_008),
    "layer/conv3x3-512x7": Size(2_359_296, 231_211_008),
    "layer/gemm-1024": Size(1_048_576, 2_147_483_648),
    "layer/gemm-4096": Size(16_777_216, 137_438_953_472),
    "layer/gemm-4096-fp16": Size(16_777_216, 137_438_953_472),
}
