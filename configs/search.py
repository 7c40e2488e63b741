"""Training-aware architecture search (paper, section 3).

    ev2 search --config=configs/search.py:tiny --workdir=runs/search
    ev2 search --config=configs/search.py:imagenet --workdir=DIR --storage=...

Argument: NAME[,controller=reinforce|evolution|tpe|random]. `tiny`: 40 networks around
the demo's on the embedded Fashion-MNIST. `imagenet`: the paper's search as far as it
says what it was. Its text has the space, up to 1,000 networks of about
EfficientNet-B4's size, 10 epochs each, minival, the reward and its exponents. Ours are
the reduced size of 224 px, the numbers of layers, the normalization of step time and
parameters by EfficientNet-B4, and the step time from the compiler of a v3-32.

Hardware: tiny 2 CPU cores, see docs/results.md; imagenet not yet measured.
"""

from ml_collections import ConfigDict

from ev2.config import default_config, load_recipe, parse_argument

demo = load_recipe(__file__, "demo")
imagenet1k = load_recipe(__file__, "imagenet1k")

NAMES = ("tiny", "imagenet")
CONTROLLERS = ("reinforce", "evolution", "tpe", "random")


def get_config(arg: str = "tiny") -> ConfigDict:
    """Returns the search of `arg`, "NAME[,controller=...]", locked.

    Raises:
        ValueError: the name or an option is not known.
    """
    options = {"controller": list(CONTROLLERS)}
    values = parse_argument("search.py", arg, search=NAMES, **options)
    config = _tiny() if values["search"] == "tiny" else _imagenet()
    config.controller = values["controller"]
    return config.lock()


def _defaults() -> ConfigDict:
    """Every key of a search, with the paper's values where it has them."""
    config = ConfigDict()
    config.seed = 0  # of the controller
    config.trials = 1000  # candidates
    # What proposes: "reinforce" (a policy learns which choices are rewarded, as in Tan
    # et al., 2019) | "evolution" (regularized, Real et al., 2019) | "tpe" (Optuna's) |
    # "random".
    config.controller = "reinforce"
    # What ends candidates early: "none" | "median" (of the rewards of the others after
    # as many evaluations, see `proxy.eval.every_epochs`).
    config.prune = "none"
    config.limit_minutes = 24 * 60.0  # for a candidate; one that takes longer gets 0
    config.retries = 2  # of a candidate whose worker died; none of one that failed
    config.keep_best = 3  # candidates written as configs

    config.space = ConfigDict()
    # Networks whose strides, channels, stem and head candidates have.
    config.space.backbones = ("efficientnet-b4",)
    config.space.operators = ("mbconv", "fused_mbconv")
    config.space.layers = (-2, -1, 0, 1, 2)  # added to the backbone's
    config.space.kernels = (3, 5)  # px
    config.space.expands = (1, 4, 6)
    # Fewest and most parameters, as shares of the reference's.
    config.space.params = (0.5, 1.5)

    config.reward = ConfigDict()
    config.reward.reference = "efficientnet-b4"  # step time and parameters of 1
    config.reward.step_exponent = -0.07  # w
    config.reward.params_exponent = -0.05  # v

    config.step_time = ConfigDict()
    # "measure": the median of timed steps here, one device. "compile": what the
    # compiler of a TPU slice says, with no TPU; needs the extra "tpu".
    config.step_time.source = "compile"
    config.step_time.slice = "v3-32"  # for "compile"
    config.step_time.image_size = 224  # px
    config.step_time.batch_size = 4096  # images; global on a slice

    config.proxy = default_config()  # the recipe that every candidate is given
    config.full = default_config()  # the recipe of those that are kept
    return config


def _imagenet() -> ConfigDict:
    config = _defaults()
    config.proxy = _short(imagenet1k.get_config("s"))
    config.proxy.epochs = 10.0
    config.proxy.data.train_split = "train[:1256167]"
    config.proxy.data.num_train_images = 1_256_167
    config.proxy.data.eval_split = "train[1256167:]"  # minival: no test image is seen
    config.proxy.data.num_eval_images = 25_000
    config.full = imagenet1k.get_config("s")
    return config


def _tiny() -> ConfigDict:
    config = _defaults()
    config.trials = 40
    config.limit_minutes = 5.0
    config.space.backbones = ("efficientnetv2-tiny",)
    config.space.layers = (-1, 0)
    config.space.params = (0.3, 2.0)
    config.reward.reference = "efficientnetv2-tiny"
    config.step_time.source = "measure"
    config.step_time.image_size = 16
    config.step_time.batch_size = 64
    config.proxy = _short(demo.get_config())
    config.proxy.epochs = 1.0
    config.proxy.progressive.image_size = (16, 16)
    config.proxy.eval.image_size = 16
    config.proxy.eval.every_epochs = 0.0  # at the end alone
    config.proxy.data.train_split = "train[:75%]"
    config.proxy.data.eval_split = "train[75%:]"  # the test images stay unseen
    config.full = demo.get_config()
    return config


def _short(recipe: ConfigDict) -> ConfigDict:
    """The recipe for a few epochs at one size: the rate falls to 0 in them."""
    recipe.progressive.schedule = "fixed"
    recipe.progressive.image_size = (224, 224)
    recipe.eval.image_size = 224
    recipe.optimizer.schedule = "cosine"
    recipe.optimizer.warmup_epochs = 0.5
    recipe.checkpoint.every_steps = 0
    return recipe
