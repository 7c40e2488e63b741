"""python -m pytest tests/test_progressive.py

Stages against the paper's tables and against sums done by hand.
"""

import itertools

import pytest
from ml_collections import ConfigDict

from ev2 import errors, progressive
from ev2.config import default_config

PAPER_IMAGES = 1_281_167  # ImageNet's training set
RELEASED_IMAGES = 1_256_144  # the released code's 98 % of it
NAMES = [strength.name for strength in progressive.STRENGTHS]


def make_config(**changes) -> ConfigDict:
    """The defaults with keys changed; `progressive__stages` is progressive.stages."""
    config = default_config()
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in changes.items()}
    )
    return config


def make_stages(num_train_images=PAPER_IMAGES, **changes):
    return progressive.make_stages(make_config(**changes), num_train_images)


def read(stage, name):
    """A strength by its name, or a field of the stage."""
    return stage.strengths[name] if name in NAMES else getattr(stage, name)


def column(stages, name):
    return [read(stage, name) for stage in stages]


def check_contiguous(stages, total_steps):
    assert stages[0].first_step == 0 and stages[0].first_image == 0
    assert column(stages, "index") == list(range(len(stages)))
    for before, after in itertools.pairwise(stages):
        assert before.last_step == after.first_step
        assert before.images_seen(before.last_step) == after.first_image
    assert all(stage.last_step > stage.first_step for stage in stages)
    assert stages[-1].last_step == total_steps


# Table 6's pairs, and what Algorithm 1 makes of them (tables of the paper; sizes to
# the nearest pixel).
PAPER_ROWS = {
    "s": (
        {"image_size": (128, 300), "dropout": (0.1, 0.3), "randaugment": (5.0, 15.0)},
        {
            "image_size": [128, 185, 243, 300],
            "dropout": [0.1, 0.1667, 0.2333, 0.3],
            "randaugment": [5, 8.3333, 11.6667, 15],
            "mixup": [0, 0, 0, 0],
        },
    ),
    "m": (
        {
            "image_size": (128, 380),
            "dropout": (0.1, 0.4),
            "randaugment": (5.0, 20.0),
            "mixup": (0.0, 0.2),
        },
        {
            "image_size": [128, 212, 296, 380],
            "dropout": [0.1, 0.2, 0.3, 0.4],
            "randaugment": [5, 10, 15, 20],
            "mixup": [0, 0.0667, 0.1333, 0.2],
        },
    ),
    "l": (
        {
            "image_size": (128, 380),
            "dropout": (0.1, 0.5),
            "randaugment": (5.0, 25.0),
            "mixup": (0.0, 0.4),
        },
        {
            "image_size": [128, 212, 296, 380],
            "dropout": [0.1, 0.2333, 0.3667, 0.5],
            "randaugment": [5, 11.6667, 18.3333, 25],
            "mixup": [0, 0.1333, 0.2667, 0.4],
        },
    ),
}


@pytest.mark.parametrize("size", PAPER_ROWS)
def test_algorithm_1_gives_the_papers_stages(size):
    pairs, expected = PAPER_ROWS[size]
    stages = make_stages(**{f"progressive__{k}": v for k, v in pairs.items()})
    for name, values in expected.items():
        assert column(stages, name) == pytest.approx(values, abs=5e-5), name
    assert column(stages, "drop_path") == [0.2] * 4
    # The ends are the numbers of the config, to the last bit.
    for name, (first, last) in pairs.items():
        assert (read(stages[0], name), read(stages[-1], name)) == (first, last)


@pytest.mark.parametrize(
    "pair, expected",
    [
        ((128, 300), [171, 214, 257, 300]),
        ((128, 384), [192, 256, 320, 384]),
        ((128, 192), [144, 160, 176, 192]),
        ((16, 21), [17, 18, 19, 21]),  # cut off: 17.25, 18.5, 19.75, 21
    ],
)
def test_released_rule_moves_sizes_ahead_and_not_strengths(pair, expected):
    stages = make_stages(
        progressive__size_rule="released",
        progressive__image_size=pair,
        progressive__randaugment=(5.0, 10.0),
    )
    assert column(stages, "image_size") == expected
    assert column(stages, "randaugment") == pytest.approx([5, 20 / 3, 25 / 3, 10])


def test_half_a_pixel_is_rounded_up():
    stages = make_stages(progressive__stages=3, progressive__image_size=(10, 13))
    assert column(stages, "image_size") == [10, 12, 13]  # 11.5
    stages = make_stages(progressive__stages=5, progressive__image_size=(10, 16))
    assert column(stages, "image_size") == [10, 12, 13, 15, 16]  # 11.5, 13, 14.5


@pytest.mark.parametrize(
    "num_train_images, total", [(PAPER_IMAGES, 109_474), (RELEASED_IMAGES, 107_336)]
)
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4, 7])
def test_stages_cover_the_run(num_train_images, total, num_stages):
    stages = make_stages(num_train_images, progressive__stages=num_stages)
    assert len(stages) == num_stages
    check_contiguous(stages, total)
    assert column(stages, "first_step") == [
        total * i // num_stages for i in range(num_stages)
    ]
    assert stages[-1].images_seen(stages[-1].last_step) == total * 4096


def test_steps_may_be_given_instead_of_epochs():
    stages = make_stages(epochs=0.0, steps=10, progressive__stages=3)
    assert [(s.first_step, s.last_step) for s in stages] == [(0, 3), (3, 6), (6, 10)]


def test_one_stage_runs_at_the_last_values():
    for rule in progressive.SIZE_RULES:
        (stage,) = make_stages(progressive__stages=1, progressive__size_rule=rule)
        assert (
            stage.image_size,
            stage.strengths["dropout"],
            stage.strengths["randaugment"],
        ) == (300, 0.3, 15.0)


def test_not_adaptive_moves_the_size_alone():
    stages = make_stages(progressive__adaptive=False)
    assert column(stages, "image_size") == [128, 185, 243, 300]
    assert column(stages, "dropout") == [0.3] * 4
    assert column(stages, "randaugment") == [15.0] * 4


@pytest.mark.parametrize("adaptive", [True, False])
def test_fixed_is_one_stage_at_the_last_values(adaptive):
    (stage,) = make_stages(
        progressive__schedule="fixed", progressive__adaptive=adaptive
    )
    assert (stage.first_step, stage.last_step) == (0, 109_474)
    assert (
        stage.image_size,
        stage.strengths["dropout"],
        stage.strengths["randaugment"],
    ) == (300, 0.3, 15.0)


def test_constant_strength_is_constant_to_the_last_bit():
    stages = make_stages(progressive__stages=11, progressive__dropout=(0.3, 0.3))
    assert set(column(stages, "dropout")) == {0.3}


def test_strengths_are_floats_in_a_fixed_order():
    stage = make_stages(progressive__mixup=(0, 1))[0]
    assert list(stage.strengths) == NAMES
    assert all(type(value) is float for value in stage.strengths.values())


def test_random_draws_a_size_every_8_epochs():
    stages = make_stages(progressive__schedule="random")
    check_contiguous(stages, 109_474)
    assert len(stages) == 44  # 350 epochs hold 43 whole periods and a part
    period = 8 * PAPER_IMAGES / 4096
    assert column(stages, "first_step") == [int(period * k) for k in range(44)]
    assert set(column(stages, "image_size")) == {128, 185, 243, 300}
    # Strengths follow the size: each pair is a row of the progressive schedule.
    rows = {(128, 5.0), (185, 25 / 3), (243, 35 / 3), (300, 15.0)}
    seen = {(s.image_size, s.strengths["randaugment"]) for s in stages}
    assert {(n, round(r, 9)) for n, r in seen} == {(n, round(r, 9)) for n, r in rows}


def test_random_is_decided_by_the_seed():
    first = make_stages(progressive__schedule="random")
    assert first == make_stages(progressive__schedule="random")
    assert first != make_stages(progressive__schedule="random", seed=1)


def test_random_without_adaptive_keeps_the_last_strengths():
    stages = make_stages(progressive__schedule="random", progressive__adaptive=False)
    assert len(set(column(stages, "image_size"))) == 4
    assert set(column(stages, "dropout")) == {0.3}


def test_batch_size_by_stage_shares_images_equally():
    stages = make_stages(
        1000, epochs=8.0, progressive__stages=4, progressive__batch_size=(50, 40, 30, 7)
    )
    # 2,000 images each: 40, 50, 66 and 285 whole batches.
    assert [s.last_step - s.first_step for s in stages] == [40, 50, 66, 285]
    assert column(stages, "batch_size") == [50, 40, 30, 7]
    assert column(stages, "first_image") == [0, 2000, 4000, 5980]
    assert stages[2].images_seen(100) == 4000 + 10 * 30
    check_contiguous(stages, 441)


def test_batch_size_goes_with_the_size():
    sizes = {"progressive__stages": 2, "progressive__batch_size": (64, 16)}
    stages = make_stages(1024, progressive__schedule="random", epochs=160.0, **sizes)
    assert {(s.image_size, s.batch_size) for s in stages} == {(128, 64), (300, 16)}
    check_contiguous(stages, stages[-1].last_step)
    (stage,) = make_stages(1024, progressive__schedule="fixed", epochs=2.0, **sizes)
    assert (stage.batch_size, stage.last_step) == (16, 128)


def test_random_leaves_out_a_last_draw_of_less_than_a_batch():
    stages = make_stages(
        100,
        epochs=17.0,  # periods of 800, 800 and 100 images
        progressive__schedule="random",
        progressive__stages=1,
        progressive__batch_size=(128,),
    )
    assert column(stages, "last_step") == [6, 12]


def test_a_run_shorter_than_its_stages_is_refused():
    with pytest.raises(errors.InputError) as error:
        make_stages(epochs=0.0, steps=3)
    assert str(error.value) == (
        "epochs: 0 (steps: 3) with 1281167 training images and batch_size 4096 is 3 "
        "steps for 4 stages, and each stage needs at least 1; raise epochs, or lower "
        "progressive.stages or the batch size"
    )
