"""Package ev2: `pip install -e .`; extras as in `pip install -e '.[test,tpu]'`.

Ranges are what should work; `requirements.txt` pins the one set that is tested.
"""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "ev2/__init__.py").read_text(), re.MULTILINE
)
assert VERSION is not None, "ev2/__init__.py has no __version__"

setuptools.setup(
    name="ev2",
    version=VERSION.group(1),
    description="EfficientNetV2 with progressive learning, in JAX and Flax",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["ev2", "ev2.*"]),
    package_data={
        "ev2": [
            *("data/fashion_mnist/*", "data/imagenet1k.tsv", "data/augment/*.png"),
            "report/*.j2",
        ]
    },
    entry_points={"console_scripts": ["ev2=ev2.cli.main:run"]},
    # Editable by a path, so that a folder called ev2 beside a script is no match.
    options={"editable_wheel": {"mode": "compat"}},
    python_requires=">=3.11,<3.14",  # 3.14 has no TensorFlow wheel
    install_requires=[
        "absl-py>=2.1",
        "clu>=0.0.12",
        "etils[epath]>=1.13",
        "flax>=0.12,<0.13",
        "h5py>=3.11",
        "jax>=0.10,<0.13",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12,<0.13",
        "pillow>=11",
        "safetensors>=0.5",
        "tensorboard>=2.20",  # clu's writers import it without asking for it
        "tensorflow>=2.20",
        "tensorflow-datasets>=4.9.9",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [
            *("pre-commit>=4", "pyright>=1.1.400", "ruff>=0.12"),
            *("pytest>=8", "pytest-xdist>=3.6"),
        ],
        "docs": ["mkdocs-material>=9.6"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],  # brings the libtpu of that jax
        "cuda": ["jax[cuda12]>=0.10,<0.13"],
        "export": ["onnx>=1.17", "onnxruntime>=1.20"],
        "nas": ["optuna>=5,<6"],
        "sweep": ["optuna>=5,<6", "optuna-dashboard>=0.20", "psycopg[binary]>=3.2"],
        "prepare": ["apache-beam>=2.77,<3", "scipy>=1.11"],
        "peers": ["keras>=3.10", "timm>=1.0", "torch>=2.6", "torchvision>=0.21"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
