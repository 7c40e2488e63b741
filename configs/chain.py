"""The paper's chain of runs by one command: each link from the weights of another.

    ev2 chain --config=configs/chain.py:s --workdir=runs/s --dry
    ev2 chain --config=configs/chain.py:s --workdir=runs/s \\
      --config.imagenet21k.data.path=SHARDS

Argument: MODEL[,recipe=paper|released][,epochs=60|30][,weights=21k|1k]. Models: s m l.
Links: with `weights=21k` imagenet21k, imagenet1k_ft from it, and cifar10, cifar100,
flowers and cars from that; with `weights=1k` imagenet1k and the four from it, as in
Table 8. They are the recipes of those names: a link's keys go by its name, as in
`--config.cars.data.path=DIR`. `--config.links="('imagenet21k','imagenet1k_ft')"` takes
some of them, `--config.seeds.cars=1` runs one seed in place of five. A recipe whose
`init.checkpoint` is `link:NAME` starts from that link, seed by seed if it has as many.

Hardware, hours and the paper's results: see the recipes; nothing here has been measured
yet.
"""

from collections.abc import Mapping

from ml_collections import ConfigDict

from ev2.config import load_recipe, parse_argument

imagenet1k = load_recipe(__file__, "imagenet1k")
imagenet1k_ft = load_recipe(__file__, "imagenet1k_ft")
imagenet21k = load_recipe(__file__, "imagenet21k")
transfer = load_recipe(__file__, "transfer")

TRANSFER_RUNS = 5  # Table 8


def get_config(arg: str = "s") -> ConfigDict:
    """Returns the chain of `arg`, "MODEL[,recipe=...][,epochs=...][,weights=...]".

    Raises:
        ValueError: the model or an option is not known.
    """
    values = parse_argument(
        "chain.py",
        arg,
        model=transfer.MODELS,
        recipe=list(transfer.RECIPES),
        epochs=["60", "30"],
        weights=["21k", "1k"],
    )
    model = values["model"]
    recipe = f"recipe={values['recipe']}"
    if values["weights"] == "21k":
        wide = f"{model},{recipe},epochs={values['epochs']}"
        first = {
            "imagenet21k": imagenet21k.get_config(wide),
            "imagenet1k_ft": start_from(
                "imagenet21k", imagenet1k_ft.get_config(f"{model},{recipe}")
            ),
        }
    else:
        first = {"imagenet1k": imagenet1k.get_config(f"{model},{recipe}")}
    last = list(first)[-1]
    sets = {
        name: start_from(last, transfer.get_config(f"{name},{model},{recipe}"))
        for name in transfer.SETS
    }
    return make_chain(first | sets, dict.fromkeys(sets, TRANSFER_RUNS))


def start_from(link: str, config: ConfigDict) -> ConfigDict:
    """Returns the recipe, starting from the weights of a link."""
    config.init.checkpoint = f"link:{link}"
    return config


def make_chain(
    links: Mapping[str, ConfigDict], runs: Mapping[str, int] | None = None
) -> ConfigDict:
    """Returns a chain for `ev2 chain`, locked.

    Args:
        links: recipes by name, in order.
        runs: how often a link is run, with seeds counted from its recipe's; else once.
    """
    chain = ConfigDict()
    chain.links = tuple(links)  # those to run, in order
    chain.seeds = ConfigDict({name: (runs or {}).get(name, 1) for name in links})
    for name, config in links.items():
        chain[name] = config
    return chain.lock()
