"""Architectures as tables: scaling, costs, block strings, bad input."""

import pytest

from ev2 import errors
from ev2.models import arch


def test_list_models_is_sorted_and_has_the_promised_names():
    names = arch.list_models()
    assert names == sorted(names)
    assert set(names) == {
        *(f"efficientnetv2-{size}" for size in ("b0", "b1", "b2", "b3")),
        *(f"efficientnetv2-{size}" for size in ("s", "m", "l", "xl", "tiny")),
        *(f"efficientnet-b{size}" for size in range(8)),
        *(f"efficientnet-lite{size}" for size in range(5)),
        *(f"resnet{layers}" for layers in (50, 101, 152)),
    }


def test_s_is_table_4_of_the_paper():
    network = arch.get("efficientnetv2-s")
    # operator, expand, stride, channels, layers
    assert [
        (r.operator, r.expand, r.stride, r.out_channels, r.layers)
        for r in network.stages
    ] == [
        ("fused_mbconv", 1, 1, 24, 2),
        ("fused_mbconv", 4, 2, 48, 4),
        ("fused_mbconv", 4, 2, 64, 4),
        ("mbconv", 4, 2, 128, 6),
        ("mbconv", 6, 1, 160, 9),
        ("mbconv", 6, 2, 256, 15),
    ]
    assert [r.se_ratio for r in network.stages] == [0, 0, 0, 0.25, 0.25, 0.25]
    assert {r.kernel for r in network.stages} == {3}
    assert (network.stem_channels, network.head_channels) == (24, 1280)
    assert network.num_blocks == len(network.named_blocks) == 40


@pytest.mark.parametrize(
    "channels, width, v1, v2",
    [
        (32, 1.0, 32, 32),
        (16, 1.1, 16, 16),  # 17.6 -> 16, which keeps 91 %
        (16, 1.2, 24, 16),  # 19.2 -> 16, which keeps 83 %
        (32, 1.2, 40, 40),  # 38.4
        (48, 1.2, 56, 56),  # 57.6: up to 60 goes down
        (1280, 1.1, 1408, 1408),
        (20, 1.0, 24, 24),  # a half goes up
        (1, 1.0, 8, 8),  # never below 8
    ],
)
def test_round_channels(channels, width, v1, v2):
    assert arch.round_channels(channels, width, at_least_90_percent=True) == v1
    assert arch.round_channels(channels, width, at_least_90_percent=False) == v2


# Worked out by hand: width 1.2 and depth 1.4; width 1.4 and depth 1.8.
@pytest.mark.parametrize(
    "name, stem, channels, layers, head",
    [
        (
            *("efficientnetv2-b3", 40),
            *([16, 40, 56, 112, 136, 232], [2, 3, 3, 5, 7, 12], 1536),
        ),
        (
            *("efficientnet-b4", 48),
            *([24, 32, 56, 112, 160, 272, 448], [2, 4, 4, 6, 6, 8, 2], 1792),
        ),
    ],
)
def test_compound_scaling(name, stem, channels, layers, head):
    network = arch.get(name)
    assert network.stem_channels == stem
    assert [row.out_channels for row in network.stages] == channels
    assert [row.layers for row in network.stages] == layers
    assert network.head_channels == head


def test_evaluation_sizes():
    sizes = {name: arch.get(name).eval_image_size for name in arch.list_models()}
    assert [sizes[f"efficientnetv2-b{i}"] for i in range(4)] == [224, 240, 260, 300]
    assert [sizes[f"efficientnetv2-{s}"] for s in ("s", "m", "l", "xl")] == [
        *(384, 480, 480, 512)
    ]
    assert [sizes[f"efficientnet-b{i}"] for i in range(8)] == [
        *(224, 240, 260, 300, 380, 456, 528, 600)
    ]
    assert [sizes[f"efficientnet-lite{i}"] for i in range(5)] == [
        *(224, 240, 260, 280, 300)
    ]
    assert {sizes[f"resnet{n}"] for n in (50, 101, 152)} == {224}


def test_lite_is_v1_without_squeeze_excite_and_silu():
    lite, v1 = arch.get("efficientnet-lite4"), arch.get("efficientnet-b4")
    assert (lite.stem_channels, lite.head_channels) == (32, 1280)  # not scaled
    assert {row.se_ratio for row in lite.stages} == {0.0} and lite.activation == "relu6"
    assert [row.out_channels for row in lite.stages] == [
        row.out_channels for row in v1.stages
    ]
    layers = [row.layers for row in v1.stages]
    assert [row.layers for row in lite.stages] == [1, *layers[1:-1], 1]


def test_padding_is_the_networks_own_by_default():
    assert arch.get("efficientnet-b0").padding == "same"
    assert arch.get("resnet50").padding == "symmetric"
    assert arch.get("efficientnet-b0", padding="symmetric").padding == "symmetric"
    with pytest.raises(errors.InputError, match="model.padding: 'valid' is not known"):
        arch.get("efficientnet-b0", padding="valid")


def test_a_stage_gives_its_blocks():
    (row,) = arch.decode(["r3_k5_s2_e6_i24_o40_se0.25"])
    first, second, third = row.blocks
    assert (first.in_channels, first.out_channels, first.stride) == (24, 40, 2)
    assert (second.in_channels, second.out_channels, second.stride) == (40, 40, 1)
    assert second == third
    # Squeeze-and-excite width follows the block's input, not the expanded width.
    assert (first.se_channels, second.se_channels) == (6, 10)
    assert (first.hidden_channels, second.hidden_channels) == (144, 240)


@pytest.mark.parametrize("name", arch.list_models())
def test_block_strings_round_trip(name):
    network = arch.get(name)
    strings = arch.encode(network.stages)
    assert arch.decode(strings) == network.stages
    assert arch.encode(arch.decode(strings)) == strings
    assert arch.get(name, strings) == network


@pytest.mark.parametrize("ratio", [0.1, 1 / 3, 1e-5, 1.0])
def test_any_ratio_round_trips(ratio):
    (row,) = arch.decode(["r1_k3_s1_e1_i8_o8"])
    row = arch.StageSpec(**{**vars(row), "se_ratio": ratio})
    assert arch.decode(arch.encode([row])) == (row,)


def test_block_strings_are_the_released_notation():
    assert arch.encode(arch.get("efficientnetv2-s").stages) == (
        "r2_k3_s1_e1_i24_o24_c1",
        "r4_k3_s2_e4_i24_o48_c1",
        "r4_k3_s2_e4_i48_o64_c1",
        "r6_k3_s2_e4_i64_o128_se0.25",
        "r9_k3_s1_e6_i128_o160_se0.25",
        "r15_k3_s2_e6_i160_o256_se0.25",
    )


# In billions, as printed: the README of the released code for V2 (the paper says 8.8,
# 24 and 53 for S, M and L, and 94 for XL), the paper's Tables 7 and 11 for V1, and He
# et al., 2016, Table 1, for ResNets with the stride in the first 1x1.
@pytest.mark.parametrize(
    "name, printed, rel",
    [
        ("efficientnetv2-b0", 0.72, 0.01),
        ("efficientnetv2-b1", 1.2, 0.01),
        ("efficientnetv2-b2", 1.7, 0.01),
        ("efficientnetv2-b3", 3.0, 0.01),
        ("efficientnetv2-s", 8.4, 0.01),
        ("efficientnetv2-m", 24.7, 0.01),
        ("efficientnetv2-l", 56.3, 0.01),
        ("efficientnetv2-xl", 94, 0.01),
        ("efficientnet-b1", 0.7, 0.05),  # one digit is printed, or they count more
        ("efficientnet-b2", 1.0, 0.05),
        ("efficientnet-b3", 1.9, 0.05),
        ("efficientnet-b4", 4.2, 0.05),
        ("efficientnet-b5", 10, 0.05),
        ("efficientnet-b6", 19, 0.01),
        ("efficientnet-b7", 38, 0.01),
        ("resnet50", 3.8, 0.02),
        ("resnet101", 7.6, 0.01),
        ("resnet152", 11.3, 0.01),
    ],
)
def test_multiply_adds_are_the_published(name, printed, rel):
    network = arch.get(name)
    blocks = [block.replace("_c2", "_c3") for block in arch.encode(network.stages)]
    network = arch.get(name, blocks)
    counted = arch.count_multiply_adds(network, 1000)
    assert counted == pytest.approx(printed * 1e9, rel=rel)


# At 10 px: the stem, 3 to 16 channels, leaves 5x5; a stride leaves 3x3.
@pytest.mark.parametrize(
    "block, out, params, multiply_adds",
    [
        (
            "r1_k3_s1_e1_i16_o24_c1",  # one 3x3
            *(24, 9 * 16 * 24 + 48, 25 * 9 * 16 * 24),
        ),
        (
            "r2_k3_s2_e4_i16_o24_c1",  # 3x3 and 1x1, of 64 hidden, then of 96
            24,
            (9 * 16 * 64 + 128 + 64 * 24 + 48) + (9 * 24 * 96 + 192 + 96 * 24 + 48),
            9 * (9 * 16 * 64 + 64 * 24) + 9 * (9 * 24 * 96 + 96 * 24),
        ),
        (
            "r1_k3_s1_e1_i16_o16_se0.5_c1",  # 8 wide on the 16 of the input
            *(16, 9 * 16 * 16 + 32 + 16 * 8 + 8 + 8 * 16 + 16, 25 * 9 * 16 * 16 + 256),
        ),
        (
            "r1_k5_s2_e2_i16_o24_se0.25",  # 1x1 before the stride, 5x5 depthwise, 1x1
            24,
            (16 * 32 + 64) + (25 * 32 + 64) + (32 * 4 + 4 + 4 * 32 + 32) + 32 * 24 + 48,
            25 * 16 * 32 + 9 * 25 * 32 + 256 + 9 * 32 * 24,
        ),
        (
            "r1_k3_s1_e1_i16_o16",  # depthwise and 1x1 alone
            *(16, 9 * 16 + 32 + 16 * 16 + 32, 25 * 9 * 16 + 25 * 16 * 16),
        ),
    ],
)
def test_costs_by_hand(block, out, params, multiply_adds):
    network = arch.get("efficientnetv2-tiny", [block])
    pixels = 9 if "_s2" in block else 25
    params += 9 * 3 * 16 + 32 + (out * 256 + 512) + 257 * 10
    multiply_adds += 25 * 9 * 3 * 16 + pixels * out * 256 + 256 * 10
    assert arch.count_params(network, 10) == params
    assert arch.count_multiply_adds(network, 10, 10) == multiply_adds


def test_tokens_may_come_in_any_order():
    assert arch.decode(["c1_o48_i24_e4_s2_k3_r4"]) == arch.decode(
        ["r4_k3_s2_e4_i24_o48_c1"]
    )


@pytest.mark.parametrize(
    "string, complaint",
    [
        ("r1_k3_s1_e4_i16_o16_x3", "'x3' is not a token"),
        ("r1_k3_s1_e4_i16_o16_c5", "'c5' is not a token"),
        ("r1_k3_s1_e4.5_i16_o16", "'e4.5' is not a token"),
        ("r1_k3_s1_e4_i16_o16_r2", "'r2' repeats r"),
        ("r1_k3_s1_e4_i16", "o missing"),
        ("", "'' is not a token"),
        ("r0_k3_s1_e4_i16_o16", "layers 0 is not allowed; use 1 or more"),
        ("r1_k4_s1_e4_i16_o16", "kernel 4 is not allowed; use an odd number"),
        ("r1_k3_s3_e4_i16_o16", "stride 3 is not allowed; use 1 or 2"),
        ("r1_k3_s1_e4_i16_o16_se2", "se_ratio 2.0 is not allowed; use from 0 to 1"),
        ("r1_k3_s1_e4_i24_o16", "i24 is not the width that the stem"),
        ("r1_k3_s1_e4_i16_o16_c2", "bottleneck does not fit efficientnetv2-tiny"),
    ],
)
def test_a_bad_block_string_is_named(string, complaint):
    with pytest.raises(errors.InputError) as error:
        arch.get("efficientnetv2-tiny", [string])
    assert str(error.value).startswith(f"model.blocks[0] {string!r}: {complaint}")
    assert "\n" not in str(error.value)


def test_stages_must_chain():
    strings = ["r1_k3_s1_e1_i16_o24_c1", "r1_k3_s2_e4_i32_o32_c1"]
    with pytest.raises(errors.InputError, match=r"blocks\[1\].*use i24"):
        arch.get("efficientnetv2-tiny", strings)


def test_an_unknown_model_gets_the_nearest_names():
    with pytest.raises(errors.InputError) as error:
        arch.get("efficientnet_v2_s")
    message = str(error.value)
    assert "model.name: 'efficientnet_v2_s' is not known" in message
    assert "did you mean efficientnetv2-s" in message
    assert "resnet152" in message
