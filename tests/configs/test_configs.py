"""python -m pytest tests/configs/test_configs.py

Every recipe builds, is locked, and gives stages; one training step of each is in
tests/configs/test_recipes.py.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from configs import (
    demo,
    finetune,
    folder,
    imagenet1k,
    imagenet1k_ft,
    imagenet21k,
    transfer,
)
from ev2 import progressive
from ev2.config import default_config
from ev2.models import arch
from ev2.train import workdir

ROOT = pathlib.Path(__file__).parents[2]

RECIPES = {
    "defaults": default_config,
    "demo": demo.get_config,
    "folder": folder.get_config,
    "folder:efficientnetv2-s": lambda: folder.get_config("efficientnetv2-s"),
    "finetune": finetune.get_config,
    "finetune:efficientnetv2-m": lambda: finetune.get_config("efficientnetv2-m"),
} | {
    f"imagenet1k:{model},recipe={recipe}": (
        lambda arg=f"{model},recipe={recipe}": imagenet1k.get_config(arg)
    )
    for recipe, rows in imagenet1k.ROWS.items()
    for model in rows
}
CHAIN = [
    *((imagenet21k, model) for model in imagenet21k.MODELS),
    *((imagenet1k_ft, model) for model in imagenet1k_ft.MODELS),
    *((transfer, f"{name},{m}") for name in transfer.SETS for m in transfer.MODELS),
]
RECIPES |= {
    f"{module.__name__}:{names},recipe={recipe}": (
        lambda module=module, arg=f"{names},recipe={recipe}": module.get_config(arg)
    )
    for module, names in CHAIN
    for recipe in ("paper", "released")
}

# Of recipes that declare no count: ImageNet1k, Fashion-MNIST as shipped, and a folder
# of 40 images less a tenth.
NUM_TRAIN_IMAGES = {"tfds": 1_281_167, "embedded": 12_000, "folder": 36}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_builds_locked_and_has_stages(name):
    config = RECIPES[name]()
    assert config.is_locked
    with pytest.raises(AttributeError):
        config.progressive.image_sise = (128, 300)
    with pytest.raises(KeyError):
        config["batchsize"] = 1
    assert config.model.name in arch.list_models()
    num_images = config.data.num_train_images or NUM_TRAIN_IMAGES[config.data.source]
    stages = progressive.make_stages(config, num_images)
    assert stages[-1].image_size == config.progressive.image_size[1]
    assert stages[-1].image_size <= config.eval.image_size


def _leaves(config):
    return workdir.flatten(config.to_dict(), ".")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_adds_no_key(name):
    def keys(config):
        return {key: type(value) for key, value in _leaves(config).items()}

    assert keys(RECIPES[name]()) == keys(default_config())


@pytest.mark.parametrize("name", RECIPES)
def test_values_are_plain(name):
    for key, value in _leaves(RECIPES[name]()).items():
        assert isinstance(value, int | float | str | tuple), key


def test_every_key_has_a_comment_beside_or_above_it():
    lines = (ROOT / "ev2/config.py").read_text().splitlines()
    exempt = ("ConfigDict()", "= _")  # sections
    undocumented = []
    for above, line in zip(lines, lines[1:], strict=False):
        is_key = " = " in line and line.startswith("    ") and "." in line.split("=")[0]
        if not is_key or any(word in line for word in exempt):
            continue
        # One comment may stand for a block of keys that belong together.
        if "#" not in line and "#" not in above and " = " not in above:
            undocumented.append(line.strip())
    assert not undocumented


# Table 6, read from the paper rather than from the recipe.
@pytest.mark.parametrize(
    "model, sizes, dropout, randaugment, mixup, eval_size",
    [
        ("s", (128, 300), (0.1, 0.3), (5, 15), (0, 0), 384),
        ("m", (128, 380), (0.1, 0.4), (5, 20), (0, 0.2), 480),
        ("l", (128, 380), (0.1, 0.5), (5, 25), (0, 0.4), 480),
    ],
)
def test_paper_recipe_is_table_6(model, sizes, dropout, randaugment, mixup, eval_size):
    config = imagenet1k.get_config(model)
    assert config.progressive.image_size == sizes
    assert config.progressive.dropout == dropout
    assert config.progressive.randaugment == randaugment
    assert config.progressive.mixup == mixup
    assert config.progressive.cutmix == (0, 0)
    assert config.progressive.drop_path == (0.2, 0.2)
    assert config.eval.image_size == eval_size
    assert (config.batch_size, config.epochs) == (4096, 350)
    assert config.model.bn_momentum == 0.99


@pytest.mark.parametrize(
    "model, sizes, dropout, randaugment, mix",
    [
        ("s", [171, 214, 257, 300], 0.2, (5, 10), 0),
        ("m", [192, 256, 320, 384], 0.3, (5, 15), 0.2),
        ("l", [192, 256, 320, 384], 0.4, (5, 20), 0.5),
        ("xl", [192, 256, 320, 384], 0.4, (5, 20), 0.5),
        ("b0", [144, 160, 176, 192], 0.2, (0, 0), 0),
    ],
)
def test_released_recipe_is_the_released_code(model, sizes, dropout, randaugment, mix):
    config = imagenet1k.get_config(f"{model},recipe=released")
    stages = progressive.make_stages(config, config.data.num_train_images)
    assert [stage.image_size for stage in stages] == sizes
    assert {stage.strengths["dropout"] for stage in stages} == {dropout}
    assert config.progressive.randaugment == randaugment
    assert config.progressive.mixup == config.progressive.cutmix == (0, mix)
    assert stages[-1].last_step == 107_336
    assert (config.model.bn_momentum, config.model.bn_group_images) == (0.9, 1024)


def test_small_networks_train_at_one_size_in_the_paper():
    sizes = {"b0": 192, "b3": 240, "v1-b0": 224, "v1-b7": 600, "resnet50": 224}
    for model, size in sizes.items():
        config = imagenet1k.get_config(model)
        (stage,) = progressive.make_stages(config, config.data.num_train_images)
        assert stage.image_size == size


@pytest.mark.parametrize("recipe, variant", [("paper", "standard"), ("released",) * 2])
def test_small_v2_networks_have_autoaugment_and_the_preprocessing_of_v1(
    recipe, variant
):
    for model in ("b0", "b1", "b2", "b3"):
        data = imagenet1k.get_config(f"{model},recipe={recipe}").data
        assert (data.augment, data.randaugment_variant) == ("autoaugment", variant)
        assert (data.interpolation, data.crop_area) == ("bicubic", (0.08, 1.0))
        assert data.mean == imagenet1k.IMAGENET_MEAN
    assert imagenet1k.get_config(f"s,recipe={recipe}").data.augment == "randaugment"


def test_table_12_is_one_override_away():
    config = imagenet1k.get_config("v1-b4")
    config.progressive.schedule = "progressive"
    stages = progressive.make_stages(config, config.data.num_train_images)
    assert [stage.image_size for stage in stages] == [128, 212, 296, 380]


@pytest.mark.parametrize(
    "arg, message",
    [
        ("b9", "imagenet1k.py: there is no model 'b9'; choose one of s, m"),
        ("s,recipe=best", "imagenet1k.py: 'recipe=best' is not known; choose one of"),
        ("s,size=300", "imagenet1k.py: 'size=300' is not known; choose one of recipe"),
        ("resnet50,recipe=released", "imagenet1k.py: there is no model 'resnet50'"),
        ("", "imagenet1k.py: there is no model ''"),
    ],
)
def test_unknown_argument_lists_what_is_allowed(arg, message):
    with pytest.raises(ValueError) as error:
        imagenet1k.get_config(arg)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


READ_CONFIG = """
from absl import app
from ml_collections import config_flags
config = config_flags.DEFINE_config_file("config", lock_config=True)
app.run(lambda argv: print(config.value.to_json()))
"""


def read_config(*flags, cwd):
    """Runs a program that parses `flags` as the command line does, in folder `cwd`."""
    return subprocess.run(
        [sys.executable, "-c", READ_CONFIG, *flags],
        cwd=cwd,
        env=dict(os.environ, PYTHONSAFEPATH="1"),  # as for the installed command
        capture_output=True,
        text=True,
    )


def test_recipes_load_by_path_from_any_folder(tmp_path):
    recipe = ROOT / "configs/imagenet1k.py"
    pair = "--config.progressive.image_size=(64, 96)"
    run = read_config(f"--config={recipe}:m,recipe=released", pair, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert '"image_size": [64, 96]' in run.stdout
    assert '"efficientnetv2-m"' in run.stdout


def test_recipes_load_by_relative_path_and_refuse_unknown_keys():
    run = read_config("--config=configs/demo.py", cwd=ROOT)
    assert run.returncode == 0, run.stderr
    run = read_config("--config=configs/demo.py", "--config.optimiser.lr=1.0", cwd=ROOT)
    assert run.returncode != 0 and "optimiser" in run.stderr
