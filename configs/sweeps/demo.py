"""Learning rate and average of the demo: twelve trials that Optuna suggests.

    python launch/sweep.py --config=configs/demo.py --sweep=configs/sweeps/demo.py

The form of such a file is in launch/space.py.
"""


def get_sweep() -> dict:
    """Returns the sweep."""
    return {
        "method": "tpe",
        "trials": 12,
        "keys": {
            "optimizer.lr": {"low": 0.01, "high": 0.16, "log": True},
            "optimizer.weight_decay": {"low": 1e-6, "high": 1e-3, "log": True},
            "ema.decay": [0.99, 0.995, 0.998],
        },
        "prune": "median",
    }
