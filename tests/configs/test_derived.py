"""pytest tests/configs/test_derived.py

What follows from the recipes of the paper's chain, against numbers worked out by hand:
steps, epochs, learning rates, sizes; and each recipe's plan is printed.
"""

import math

import pytest

from configs import finetune, imagenet1k, imagenet1k_ft, imagenet21k, transfer
from ev2 import errors, progressive
from ev2.train import initialize as initial
from ev2.train import optimizer as optim
from ev2.train import plan

EVAL_SIZES = {"s": 384, "m": 480, "l": 480, "xl": 512}


def _stages(config):
    return progressive.make_stages(config, config.data.num_train_images)


def _rates(config):
    """Highest and last learning rate."""
    stages = _stages(config)
    rate = optim.make_learning_rate(config, stages, config.data.num_train_images)
    last = stages[-1].last_step
    early = min(last, 20_000)  # every peak is at the end of a short warm-up
    return max(rate(step) for step in range(early)), rate(last - 1)


@pytest.mark.parametrize(
    ("get_config", "arg", "steps", "peak", "end"),
    [
        # images * epochs / batch; peak: per 256 images * batch / 256
        (imagenet1k, "s", 109_474, 0.256, 0.256 * 0.97**145),
        (imagenet1k, "s,recipe=released", 107_336, 0.256, 0.256 * 0.97**145),
        (imagenet21k, "s", 186_704, 0.128, 0.0),
        (imagenet21k, "l,epochs=30", 93_352, 0.128, 0.0),
        (imagenet21k, "xl,recipe=released", 186_332, 0.128, 0.0),
        (imagenet1k_ft, "m", 37_534, 0.001, 0.0),
        (imagenet1k_ft, "m,recipe=released", 36_801, 0.001, 0.001),
        (transfer, "cifar10,s", 10_000, 0.001, 0.0),
        (transfer, "flowers,l", 10_000, 0.001, 0.0),
        (transfer, "cars,m,recipe=released", 10_000, 0.001, 0.001),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_steps_and_rates(get_config, arg, steps, peak, end):
    config = get_config.get_config(arg)
    assert _stages(config)[-1].last_step == steps
    highest, last = _rates(config)
    # The stairs of 350 epochs begin before the warm-up ends.
    assert highest == pytest.approx(peak, rel=1e-2 if config.epochs == 350 else 1e-4)
    assert last == pytest.approx(end, rel=1e-6, abs=peak * 1e-6)


# Images * epochs / batch, whole steps, worked out by hand.
STEPS = {
    **{("imagenet1k", m, "paper"): 109_474 for m in ("s", "m", "l", "xl")},
    **{("imagenet1k", m, "released"): 107_336 for m in ("s", "m", "l", "xl")},
    **{("imagenet21k", m, "paper"): 186_704 for m in imagenet21k.MODELS},
    **{("imagenet21k", m, "released"): 186_332 for m in imagenet21k.MODELS},
    **{("imagenet21k", f"{m},epochs=30", "paper"): 93_352 for m in imagenet21k.MODELS},
    **{("imagenet21k", "s,epochs=30", "released"): 93_166},
    **{("imagenet1k_ft", m, "paper"): 37_534 for m in imagenet1k_ft.MODELS},
    **{("imagenet1k_ft", m, "released"): 36_801 for m in imagenet1k_ft.MODELS},
    **{
        ("transfer", f"{name},{model}", recipe): 10_000
        for name in transfer.SETS
        for model in transfer.MODELS
        for recipe in transfer.RECIPES
    },
}


@pytest.mark.parametrize(("file", "arg", "recipe"), STEPS)
def test_every_recipe_prints_its_plan(file, arg, recipe):
    modules = (imagenet1k, imagenet21k, imagenet1k_ft, transfer)
    by_name = {module.__name__.rpartition(".")[2]: module for module in modules}
    config = by_name[file].get_config(f"{arg},recipe={recipe}")
    table = plan.make_plan(config)
    steps = STEPS[file, arg, recipe]
    stages = table["stages"]
    assert table["steps"] == steps == stages[-1]["last_step"]
    assert [s["first_step"] for s in stages] == [0, *(s["last_step"] for s in stages)][
        :-1
    ]
    images = config.data.num_train_images
    assert table["epochs"] == pytest.approx(steps * config.batch_size / images)
    if config.epochs:
        assert 0 <= config.epochs - table["epochs"] < config.batch_size / images
    text = plan.format_table(table)
    assert f"{steps:,}" in text and f"{images:,} training images" in text
    for stage in stages:
        assert f" {stage['image_size']} " in text


@pytest.mark.parametrize(
    ("arg", "epochs"),
    [
        # 5,120,000 images
        ("cifar10,s", 102.4),
        ("cifar100,m", 102.4),
        ("flowers,l", 5_120_000 / 2_040),
        ("cars,s", 5_120_000 / 8_144),
    ],
)
def test_transfer_is_ten_thousand_steps_of_512_whatever_the_set(arg, epochs):
    table = plan.make_plan(transfer.get_config(arg))
    assert (table["steps"], table["stages"][0]["batch_size"]) == (10_000, 512)
    assert table["epochs"] == pytest.approx(epochs)
    assert "10,000" in plan.format_table(table)


# Counts of Table 9.
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cifar10", (50_000, 10_000, 10)),
        ("cifar100", (50_000, 10_000, 100)),
        ("flowers", (2_040, 6_149, 102)),
        ("cars", (8_144, 8_041, 196)),
    ],
)
@pytest.mark.parametrize("recipe", transfer.RECIPES)
def test_transfer_sets_are_table_9(name, counts, recipe):
    config = transfer.get_config(f"{name},m,recipe={recipe},seed=4")
    data = config.data
    found = (data.num_train_images, data.num_eval_images, data.num_classes)
    assert found == counts and config.seed == 4
    assert data.train_split == ("train+validation" if name == "flowers" else "train")


@pytest.mark.parametrize("model", imagenet1k_ft.MODELS)
@pytest.mark.parametrize("recipe", imagenet1k_ft.RECIPES)
def test_fine_tunes_have_one_size_that_of_evaluation(model, recipe):
    args = [(imagenet1k_ft, model)]
    if model != "xl":
        args.append((transfer, f"cifar10,{model}"))
    for module, names in args:
        config = module.get_config(f"{names},recipe={recipe}")
        (stage,) = _stages(config)
        assert stage.image_size == config.eval.image_size == EVAL_SIZES[model]
        assert config.data.eval_crop == "resize"
        assert (config.ema.decay, config.loss.label_smoothing) == (0.9996, 0.1)
        assert stage.strengths["drop_path"] == 0.2


@pytest.mark.parametrize("arg", ["cifar10,s", "flowers,m", "cars,l"])
def test_what_transfer_regularizes(arg):
    paper = transfer.get_config(arg)
    released = transfer.get_config(f"{arg},recipe=released")
    assert paper.optimizer.weight_decay == 0.0
    assert released.optimizer.weight_decay == 1e-5
    for config in (paper, released):
        assert (config.data.augment, config.data.cutout) == ("none", 0.5)
        assert config.progressive.mixup == config.progressive.cutmix == (0.0, 0.0)
        assert config.data.crop_area == (1.0, 1.0) and config.data.flip
    assert _stages(released)[0].strengths["dropout"] == 1e-6
    assert (
        _stages(paper)[0].strengths["dropout"]
        == {"s": 0.3, "m": 0.4, "l": 0.5}[arg[-1]]
    )
    assert released.data.mean == (127.5,) * 3
    # 1 epoch of 1,020 images that are 2,040
    warmup = 0.5 if arg.startswith("flowers") else 1.0
    assert released.optimizer.warmup_epochs == warmup


def test_the_fine_tune_to_imagenet1k_keeps_table_6_in_the_paper_alone():
    paper, released = (
        imagenet1k_ft.get_config(f"l,recipe={recipe}")
        for recipe in ("paper", "released")
    )
    (stage,) = _stages(paper)
    assert list(stage.strengths.values()) == [0.5, 25.0, 0.4, 0.0, 0.2]
    assert paper.data.augment == "randaugment" and paper.data.cutout == 0.0
    (stage,) = _stages(released)
    assert list(stage.strengths.values()) == [1e-6, 0.0, 0.0, 0.0, 0.2]
    assert released.data.augment == "none" and released.data.cutout == 0.5
    for config in (paper, released):
        assert config.optimizer.weight_decay == 1e-5


@pytest.mark.parametrize("model", imagenet21k.MODELS)
def test_imagenet21k_in_the_paper_and_in_the_released_code(model):
    paper = imagenet21k.get_config(model)
    sizes = [stage.image_size for stage in _stages(paper)]
    assert sizes == [128, 185, 243, 300] if model == "s" else [128, 212, 296, 380]
    assert (paper.data.num_eval_images, paper.data.num_classes) == (100_000, 21_841)
    released = imagenet21k.get_config(f"{model},recipe=released")
    (stage,) = _stages(released)
    assert stage.image_size == released.eval.image_size == 224
    assert list(stage.strengths.values()) == [1e-6, 0.0, 0.0, 0.0, 0.0]
    data = released.data
    assert (data.num_train_images, data.num_eval_images) == (12_720_275, 100_357)
    assert (data.num_classes, data.augment, data.cutout) == (21_843, "none", 0.0)
    for config in (paper, released):
        assert config.loss.label_smoothing == 0.0 and config.data.max_labels > 1
        assert config.optimizer.schedule == "cosine"


@pytest.mark.parametrize("recipe", ["imagenet1k_ft", "transfer", "finetune"])
def test_what_needs_a_checkpoint_says_so_and_plans_without(recipe, tmp_path):
    modules = {"imagenet1k_ft": imagenet1k_ft, "transfer": transfer}
    config = (modules | {"finetune": finetune})[recipe].get_config()
    if recipe == "finetune":
        config.data.update({"source": "synthetic", "num_train_images": 400})
    table = plan.make_plan(config)
    assert f"{table['steps']:,}" in plan.format_table(table)
    with pytest.raises(errors.InputError, match="init.checkpoint: this recipe starts"):
        initial.open_checkpoint(config, str(tmp_path))


@pytest.mark.parametrize(
    ("module", "arg", "message"),
    [
        (imagenet21k, "b0", "imagenet21k.py: there is no model 'b0'; choose one of s,"),
        (
            imagenet21k,
            "s,epochs=90",
            "imagenet21k.py: 'epochs=90' is not known; choose",
        ),
        (
            imagenet1k_ft,
            "s,m",
            "imagenet1k_ft.py: 'm' is not known; choose one of recipe=paper",
        ),
        (transfer, "s", "transfer.py: there is no dataset 's'; choose one of cifar10,"),
        (transfer, "cars", "transfer.py: there is no model ''; choose one of s, m, l"),
        (
            transfer,
            "cars,s,seed=x",
            "transfer.py: 'seed=x' is not known; choose one of",
        ),
    ],
)
def test_unknown_arguments_are_one_line(module, arg, message):
    with pytest.raises(ValueError) as error:
        module.get_config(arg)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_released_fine_tune_is_the_longer_of_15_epochs_and_10_000_steps():
    config = imagenet1k_ft.get_config("s,recipe=released")
    epochs = math.floor(15 * config.data.num_train_images / config.batch_size)
    assert max(epochs, 10_000) == _stages(config)[-1].last_step
