"""Weight files in published formats, made from the tensors of a small network."""

import json
import zipfile

import h5py
import jax
import numpy as np

import ev2
from ev2.checkpoint.published import tensor_names
from ev2.models import arch

# Each form of block that the released networks have, at widths of a few channels.
BLOCKS = (
    "r2_k3_s1_e1_i16_o16_c1",
    "r2_k3_s2_e4_i16_o24_c1",
    "r1_k3_s1_e1_i24_o16_se0.25",
    "r2_k5_s2_e6_i16_o24_se0.25",
)
CLASSES = 5
TIMM = {  # our names: timm's
    "efficientnetv2-b0": "tf_efficientnetv2_b0",
    "efficientnet-b0": "tf_efficientnet_b0",
    "efficientnet-lite0": "tf_efficientnet_lite0",
    "resnet50": "resnet50",
}


def network(name="efficientnetv2-tiny", **options):
    """Creates a network of `BLOCKS`; `options` go to `create_model`."""
    return ev2.create_model(
        name, **{"num_classes": CLASSES, "blocks": BLOCKS, **options}
    )


def shrink(monkeypatch, blocks_of):
    """Gives the networks named in `blocks_of` these blocks by default."""
    get = arch.get

    def get_small(name, blocks=(), padding=""):
        return get(name, blocks or blocks_of.get(name, ()), padding)

    monkeypatch.setattr(arch, "get", get_small)


def random_variables(model, seed=0):
    """Draws variables that reveal a missing scale, statistic or bias."""
    random = np.random.default_rng(seed)
    draws = {
        "mean": lambda shape: random.normal(0, 0.1, shape),
        "var": lambda shape: random.uniform(0.5, 1.5, shape),
        "scale": lambda shape: random.uniform(0.3, 0.9, shape),
        "bias": lambda shape: random.normal(0, 0.1, shape),
        # The product of all but the last axis is what a convolution sums over.
        "kernel": lambda shape: random.normal(
            0, (2 / np.prod(shape[:-1])) ** 0.5, shape
        ),
    }
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), 32))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.float32(draws[path[-1].key](leaf.shape)), dict(shapes)
    )


def leaf(variables, path):
    for key in path:
        variables = variables[key]
    return variables


def tensors(scheme, model, variables):
    """Returns the tensors of a network by a scheme's names and in its axes."""
    found = {}
    for tensor in tensor_names.SCHEMES[scheme].tensors(model.arch):
        if tensor.folded:
            width = leaf(variables, tensor.path[:-1])["kernel"].shape[-1]
            found[tensor.name] = np.zeros(width, np.float32)
        else:
            found[tensor.name] = tensor.to_published(leaf(variables, tensor.path))
    return {name: np.ascontiguousarray(value) for name, value in found.items()}


def write_released(prefix, scope, raw, averaged):
    """Writes a TensorFlow checkpoint with raw and EMA weights and optimizer state."""
    import tensorflow as tf

    def keras_name(name):
        depthwise = "depthwise_conv2d/"
        return name.replace(f"{depthwise}kernel", f"{depthwise}depthwise_kernel")

    values = {"global_step": np.int64(7)}
    for name, value in raw.items():
        values[f"{scope}/{keras_name(name)}"] = value
        values[f"{scope}/{keras_name(name)}/RMSProp"] = np.ones_like(value)
    for name, value in averaged.items():
        values[f"{scope}/{keras_name(name)}/ExponentialMovingAverage"] = value
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=list(values.values()),
    )
    with open(prefix.parent / "checkpoint", "w") as file:
        file.write(f'model_checkpoint_path: "{prefix.name}"\n')


def write_keras_h5(path, values):
    """Writes the older form: layer/layer/variable:0, below model_weights."""
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            layer, variable = name.split("/")
            if "dwconv" in layer:
                variable = variable.replace("kernel", "depthwise_kernel")
            file[f"model_weights/{layer}/{layer}/{variable}:0"] = value


def write_keras_v3(path, values):
    """Writes the newer form: numbered variables of layers with their names."""
    order = ["kernel", "gamma", "bias", "beta", "moving_mean", "moving_variance"]
    with h5py.File(path, "w") as file:
        layers = dict.fromkeys(name.split("/")[0] for name in values)
        for index, layer in enumerate(layers):
            kind = "batch_normalization" if f"{layer}/gamma" in values else "conv2d"
            group = file.create_group(f"layers/{kind}_{index}/vars")
            group.attrs["name"] = layer
            own = [f"{layer}/{v}" for v in order if f"{layer}/{v}" in values]
            for number, name in enumerate(own):
                group[str(number)] = values[name]
        file["optimizer/vars/0"] = np.zeros(3)


def write_keras_archive(path, values):
    """Writes a .keras file: the newer form inside a zip archive."""
    inner = path.with_suffix(".weights.h5")
    write_keras_v3(inner, values)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "model.weights.h5")
        archive.writestr("config.json", json.dumps({}))
    inner.unlink()
