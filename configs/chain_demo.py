"""The chain in miniature: pretraining with several labels, fine-tuning, transfer.

    python -m tests.helpers.fashion_groups runs/groups
    ev2 chain --config=configs/chain_demo.py:runs/groups --workdir=runs/chain

The network of `configs/demo.py` on the embedded Fashion-MNIST. `pretrain` learns 13
labels, up to three a image, as ImageNet21k has them: its class and the groups that
this belongs to. `finetune` learns the ten classes from there, `transfer` four kinds of
things from that, with three seeds.

Hardware: 2 cores of an AMD EPYC, shared with other jobs (Python 3.11.7, jax 0.10.2).
Time: 12 min 28 s in all. Top-1, averaged weights, one chain: pretrain 98.35 % (any of
the labels; mAP 91.2 %), finetune 86.35 %, transfer 94.38 +- 1.26 %.
Source: none; small data show that the chain works, not what it gains.
"""

from ml_collections import ConfigDict

from ev2.config import load_recipe

chain = load_recipe(__file__, "chain")
demo = load_recipe(__file__, "demo")

TRANSFER_RUNS = 3


def get_config(path: str = "runs/groups") -> ConfigDict:
    """Returns the chain, locked.

    Args:
        path: folder that `tests.helpers.fashion_groups` filled.
    """
    links = {
        "pretrain": _pretrain(f"{path}/several"),
        "finetune": chain.start_from("pretrain", _finetune()),
        "transfer": chain.start_from("finetune", _transfer(f"{path}/kinds")),
    }
    return chain.make_chain(links, {"transfer": TRANSFER_RUNS})


def _pretrain(path: str) -> ConfigDict:
    config = demo.get_config()
    config.epochs = 3.0
    config.data.source = "tfrecord"
    config.data.name = ""
    config.data.path = path
    config.data.max_labels = 3
    config.progressive.stages = 2
    config.loss.label_smoothing = 0.0  # as for ImageNet21k
    config.optimizer.schedule = "cosine"
    config.checkpoint.every_steps = 50
    return config


def _finetune() -> ConfigDict:
    config = demo.get_config()
    config.epochs = 2.0
    config.data.mean = config.data.std = ()
    config.data.interpolation = ""
    config.progressive.schedule = "fixed"
    config.optimizer.schedule = "cosine"
    config.optimizer.lr = 0.02
    config.checkpoint.every_steps = 50
    return config


def _transfer(path: str) -> ConfigDict:
    config = _finetune()
    config.epochs = 0.0
    config.steps = 60
    config.data.source = "tfrecord"
    config.data.name = ""
    config.data.path = path
    config.data.augment = "none"
    config.data.cutout = 0.5
    config.optimizer.lr = 0.01
    config.optimizer.weight_decay = 0.0
    return config
