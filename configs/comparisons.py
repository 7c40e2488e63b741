"""Gains of progressive learning and pretraining on small data, with three seeds.

    ev2 chain --config=configs/comparisons.py:sizes --workdir=runs/sizes
    ev2 chain --config=configs/comparisons.py:table13 --workdir=runs/table13
    ev2 chain --config=configs/comparisons.py:pretraining --workdir=runs/pretraining \\
      --config.pretrain.data.path=CIFAR10_SHARDS \\
      --config.finetune.data.path=FOLDER --config.scratch.data.path=FOLDER

Argument: NAME[,runs=NUMBER]; runs are seeds, three if not given.

`sizes`: progressive and adaptive against one size, at equal epochs, as in Table 12.
`table13`: its four cells, progressive or random sizes, strengths fixed at their last or
growing with the size. Both on the embedded Fashion-MNIST. `pretraining`: a folder of
images learnt from weights of CIFAR-10 (shards in ImageNet's layout), and from
nothing.

Hardware: 2 CPU cores; two minutes a run of `sizes`, three to five of the others on one
core. Top-1 (docs/results.md has all): fixed size 88.1 %, progressive 82.0 %; the
cells of Table 13 82.3, 82.4, 78.9, 80.4 %; Imagenette from CIFAR-10 63.4 %, else
61.2 %.
Source: the questions are the paper's, all values ours. A network of 147,370 parameters,
28 to 32 px and a few epochs show whether the effects are there, not how large they are
on ImageNet.
"""

from ml_collections import ConfigDict

from ev2.config import load_recipe, parse_argument

chain = load_recipe(__file__, "chain")
demo = load_recipe(__file__, "demo")

NAMES = ("sizes", "table13", "pretraining")
RUNS = 3


def get_config(arg: str = "sizes") -> ConfigDict:
    """Returns the chain of `arg`, "NAME[,runs=NUMBER]", locked.

    Raises:
        ValueError: the name or an option is not known.
    """
    values = parse_argument("comparisons.py", arg, comparison=NAMES, runs=[])
    make = {"sizes": _sizes, "table13": _table13, "pretraining": _pretraining}
    links = make[values["comparison"]]()
    return chain.make_chain(links, dict.fromkeys(links, int(values["runs"]) or RUNS))


def _sizes() -> dict[str, ConfigDict]:
    return {
        "fixed": _recipe("fixed", adaptive=False),
        "progressive": _recipe("progressive", adaptive=True),
    }


def _table13() -> dict[str, ConfigDict]:
    return {
        f"{schedule}_{'adaptive' if adaptive else 'vanilla'}": _recipe(
            schedule, adaptive=adaptive
        )
        for schedule in ("progressive", "random")
        for adaptive in (False, True)
    }


def _recipe(schedule: str, *, adaptive: bool) -> ConfigDict:
    config = demo.get_config()
    config.eval.every_epochs = 0.0  # at the end of each stage
    config.epochs = 5.0  # 937 steps
    config.progressive.schedule = schedule
    config.progressive.adaptive = adaptive
    config.progressive.stages = 4
    config.progressive.image_size = (16, 28)  # 16, 20, 24, 28
    config.progressive.random_epochs = 0.5  # the paper has 8 of 350: one in 44
    # Wider than the demo's, so that the strengths matter.
    config.progressive.dropout = (0.0, 0.2)
    config.progressive.randaugment = (1.0, 5.0)
    config.optimizer.schedule = "cosine"
    return config


def _pretraining() -> dict[str, ConfigDict]:
    pretrain = _small_images()
    pretrain.epochs = 1.0  # 781 steps
    pretrain.data.source = "tfrecord"
    pretrain.data.name = ""
    pretrain.data.eval_split = "test"
    scratch, finetune = _small_images(), _small_images()
    for config in (scratch, finetune):
        config.data.source = "folder"
        config.data.name = ""
        config.epochs = 0.0
        config.steps = 750
    # Gentler, so that what was learnt is not lost.
    finetune.optimizer.lr = 0.02
    return {
        "pretrain": pretrain,
        "finetune": chain.start_from("pretrain", finetune),
        "scratch": scratch,
    }


def _small_images() -> ConfigDict:
    config = demo.get_config()
    config.eval.every_epochs = 0.0  # at the end of each stage
    config.data.crop_area = (0.5, 1.0)
    config.progressive.schedule = "fixed"
    config.progressive.image_size = (32, 32)
    config.eval.image_size = 32
    config.optimizer.schedule = "cosine"
    return config
