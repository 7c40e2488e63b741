"""Orbax checkpoints of a run, and weights of any ev2 checkpoint.

The only file that knows the layout `workdir/checkpoints/STEP/{state,meta}`. Orbax
writes to a temporary folder and renames it when it is complete, so a killed save
leaves the checkpoints before it untouched.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from ev2 import errors, files
from ev2.checkpoint import integrity as intact
from ev2.checkpoint.published import convert
from ev2.checkpoint.published import formats as readers
from ev2.data import imagenet_classes
from ev2.models import arch
from ev2.models.model import Model, create_model
from ev2.train import multihost as processes
from ev2.train.state import TrainState

_FOLDER = "checkpoints"
# What the meta data say of the pictures, beside the weights they belong to.
PREPROCESSING = (
    *("mean", "std", "interpolation", "eval_crop", "eval_crop_padding"),
    *("exif", "image_size"),
)


def exists(workdir: str) -> bool:
    """Whether the run in `workdir` has a complete checkpoint."""
    return _newest(pathlib.Path(workdir) / _FOLDER) is not None


def locate(path: str) -> str:
    """Path of the one checkpoint that `load_pretrained` would read; "" if none."""
    return os.fspath(_find(path) or "")


class Checkpoints:
    """The checkpoints of one run: the latest ones, and the best by their score.

    Saving is asynchronous: `save` returns when the state has been copied off the
    devices. `close` waits for the write in flight.
    """

    def __init__(self, workdir: str, *, keep: int, keep_best: int = 1):
        """Opens the checkpoints of the run in `workdir`.

        A damaged newest one is moved to `workdir/damaged` first, with a warning; the
        one before is then the newest. So are older ones whose scores are damaged.

        Raises:
          InputError: it is damaged, and there is no other.
        """
        self._folder = pathlib.Path(workdir).absolute() / _FOLDER
        self._saving: int | None = None  # the step of the last save
        self._in_flight = False  # whether that save may still fail
        self._failed = False  # whether one has
        with processes.together():
            if jax.process_index() == 0:
                intact.set_damaged_aside(self._folder)
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                    [
                        checkpoint_managers.LatestN(keep),
                        checkpoint_managers.BestN(get_metric_fn=_score, n=keep_best),
                    ]
                ),
                best_fn=_score,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(
                    post_finalization_callback=self._write_sums
                ),
            ),
            item_names=("state", "meta"),
        )
        self._newest = self.latest_step()  # found undamaged

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, saved or just being saved, or None."""
        return self._manager.latest_step()

    def finish(self) -> None:
        """Waits for the save in flight.

        Raises:
          StoppedError: the save could not be completed.
        """
        with self._explained():
            self._manager.wait_until_finished()

    def best_step(self) -> int:
        """Step of the highest score, of equal ones the latest; waits for saving."""
        self.finish()
        step = self._manager.best_step()
        assert step is not None, "a run is evaluated, and saved, at its end"
        return step

    def read_meta(self, step: int) -> dict[str, Any]:
        """Returns the meta data of the checkpoint of `step`."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """Returns the checkpoint of `step`, laid out as `abstract_state` says.

        `abstract_state` holds shapes, dtypes and shardings; the number of devices
        need not be that of the run that saved.

        Raises:
          InputError: it is damaged, or cannot be read.
        """
        # The one that was newest at the start has been looked at.
        damage = step != self._newest and intact.find_damage(self._folder / str(step))
        if damage:
            raise errors.InputError(
                f"checkpoint: {str(self._folder / str(step))!r} is damaged ({damage}); "
                "restore it, or move it away to do without"
            )
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state)),
            )
        except Exception as error:  # whatever the library makes of it
            raise errors.InputError(
                f"checkpoint: {str(self._folder / str(step))!r} cannot be read "
                f"({_first_line(error)}); move it away to go on from the one before"
            ) from error
        return restored["state"]

    def save(
        self,
        state: TrainState,
        step: int,
        meta: dict[str, Any],
        *,
        score: float | None = None,
    ) -> None:
        """Starts writing `state` under `step`; a step that exists is left alone.

        Args:
          state: the whole training state.
          step: `int(state.step)`, known to the caller without asking the device.
          meta: JSON-able; see `make_meta`.
          score: what decides which is best, if this step was evaluated.

        Raises:
          StoppedError: the save before could not be completed.
        """
        if step in self._manager.all_steps():
            return
        self.finish()
        self._saving, self._in_flight = step, True
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
                # Always given: the library warns at every save without metrics.
                metrics={"score": score},
            )

    def check(self) -> None:
        """Raises StoppedError if the save in flight has failed; does not wait."""
        if self._in_flight and not self._manager.is_saving_in_progress():
            self._in_flight = False
            self.finish()

    def close(self) -> None:
        """Waits for the save in flight and releases the manager.

        Raises:
          StoppedError: the save could not be completed.
        """
        self.finish()
        self._manager.close()

    def _write_sums(self) -> None:
        """Called when all is written, before the folder gets its name."""
        for folder in self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            intact.write_sums(folder)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Makes one line of what the library says of a save that failed, once."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if self._failed:
                return  # the run ends because of it
            self._failed = True
            full = errno.ENOSPC in (getattr(error, "errno", None),) or re.search(
                r"No space left|RESOURCE_EXHAUSTED|ENOSPC", str(error)
            )
            reason = os.strerror(errno.ENOSPC) if full else _first_line(error)
            newest = _newest(self._folder)
            raise errors.StoppedError(
                f"checkpoint: step {self._saving} could not be saved in "
                f"{str(self._folder)!r} ({reason}); "
                + (
                    "none was saved before"
                    if newest is None
                    else "the newest is that "
                    f"of step {newest.name}, from which the same command goes on"
                )
            ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


def _score(metrics: dict[str, Any]) -> float:
    """What the best checkpoint is best in; one without an evaluation comes last."""
    return -1.0 if metrics["score"] is None else metrics["score"]


def make_meta(
    config: ConfigDict, model: Model, class_names: tuple[str, ...]
) -> dict[str, Any]:
    """Returns what a reader of the weights must know, as JSON-able values."""

    def plain(key: str) -> Any:
        value = config.eval[key] if key == "image_size" else config.data[key]
        return list(value) if isinstance(value, tuple) else value

    return {
        "model": {
            "name": model.name,
            "num_classes": model.num_classes,
            "blocks": list(config.model.blocks),
            "padding": model.arch.padding,
        },
        "preprocessing": {key: plain(key) for key in PREPROCESSING},
        "class_names": list(class_names),
        "config": config.to_dict(),
    }


def make_published_meta(converted: convert.Converted) -> dict[str, Any]:
    """Returns the meta data of a published file, of the form of `make_meta`."""
    model = converted.model
    imagenet = tuple(row.id for row in imagenet_classes.imagenet1k())
    known = len(imagenet) == model.num_classes
    known = known and not converted.new_head  # a new one means what it will learn
    names = (
        imagenet if known else imagenet_classes.default_class_names(model.num_classes)
    )
    rows = model.arch.stages
    own = arch.get(model.name).stages
    return {
        "model": {
            "name": model.name,
            "num_classes": model.num_classes,
            "blocks": list(() if rows == own else arch.encode(rows)),
            "padding": model.arch.padding,
        },
        "preprocessing": converted.preprocessing,
        "class_names": list(converted.class_names or names),
        "config": None,
        "source": converted.report,
        "one_set": True,
    }


def save_weights(path: str, variables: dict[str, Any], meta: dict[str, Any]) -> None:
    """Writes weights as a checkpoint that `load_pretrained` reads.

    Args:
      path: folder to make; moved into place when it is complete.
      variables: `{"params", "batch_stats"}`.
      meta: of the form of `make_published_meta`.

    Raises:
      InputError: `path` exists, or cannot be written.
    """
    files.check_new("out", path)
    with files.written_aside(pathlib.Path(path).absolute()) as aside:
        ocp.PyTreeCheckpointer().save(aside / "state", {"ema": variables})
        ocp.Checkpointer(ocp.JsonCheckpointHandler()).save(aside / "meta", meta)


def load_pretrained(
    path: str, *, weights: str = "ema"
) -> tuple[Model, dict[str, Any], dict[str, Any]]:
    """Returns `(model, variables, meta)` of an ev2 checkpoint or a published file.

    Args:
      path: a run folder (the checkpoint that its eval.json is of, or else its latest),
        its `checkpoints` folder, one checkpoint in it, weights that `ev2 convert`
        wrote, or a published file, whose format and network are detected; see
        `models.convert`.
      weights: "ema" for the running averages or "raw". Where there is but one set of
        weights, either is that one.

    Returns:
      The network (float32), `{"params", "batch_stats"}` as float32 NumPy arrays, and
      the meta data: model, preprocessing, class names and config (None if the weights
      do not come from a run).

    Raises:
      InputError: if there is no complete checkpoint at `path`, it is damaged, or a
        published file fits no network.
    """
    errors.check_choice("weights", weights, ("ema", "raw"))
    path = os.fspath(path)
    folder = _find(path)
    if folder is None and readers.is_published(path):
        found = convert.convert(path, averaged=weights == "ema")
        return found.model, found.variables, make_published_meta(found)
    if folder is None:
        raise errors.InputError(
            f"checkpoint: {path!r} holds no complete checkpoint; give a run folder, a "
            f"folder such as RUN/{_FOLDER}/1000, or {readers.FORMATS}"
        )
    if damage := intact.find_damage(folder):
        raise _damaged(folder, damage)
    meta = _read_meta(folder)
    model = create_model(
        meta["model"]["name"],
        num_classes=meta["model"]["num_classes"],
        blocks=tuple(meta["model"]["blocks"]),
        padding=meta["model"].get("padding", "same"),  # once there was no other
    )
    if meta.get("one_set"):
        weights = "ema"
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), image_size=32))
    item = {"ema": shapes} if weights == "ema" else dict(shapes)
    state = _restore(folder, item)
    return model, state["ema"] if weights == "ema" else state, meta


def _restore(folder: pathlib.Path, shapes: Any) -> Any:
    """The part of a checkpoint's state that has these shapes, as NumPy arrays."""
    item = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    try:
        state = ocp.PyTreeCheckpointer().restore(
            folder / "state",
            args=ocp.args.PyTreeRestore(
                item=item,
                restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                partial_restore=True,
            ),
        )
        whole = jax.tree.map(lambda a, b: a.shape == b.shape, state, item)
    except Exception as error:  # whatever the library makes of damaged files
        raise _damaged(folder, "its weights cannot be read") from error
    if not all(jax.tree.leaves(whole)):
        raise _damaged(folder, "its weights are of another network")
    return state


def _damaged(folder: pathlib.Path, why: str) -> errors.InputError:
    return errors.InputError(
        f"checkpoint: {str(folder)!r} is damaged ({why}); give another checkpoint"
    )


def _read_meta(folder: pathlib.Path) -> dict[str, Any]:
    try:
        meta = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(folder / "meta")
        _ = meta["model"]["name"], meta["config"]
        meta["preprocessing"].setdefault("eval_crop_padding", 32)  # once a constant
        _ = [meta["preprocessing"][key] for key in PREPROCESSING]
        complete = len(meta["class_names"]) == meta["model"]["num_classes"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, "its meta data cannot be read") from error
    if not complete:
        raise _damaged(folder, "it has not one name for each class")
    return meta


def _find(path: str) -> pathlib.Path | None:
    """Returns the folder of one complete checkpoint, if there is one."""
    root = pathlib.Path(path).absolute()
    for folder in (root, root / _FOLDER):
        if (folder / "meta").is_dir() and (folder / "state").is_dir():
            return folder
        chosen = _result(folder) or _newest(folder)
        if chosen is not None:
            return chosen
    return None


def _result(folder: pathlib.Path) -> pathlib.Path | None:
    """The checkpoint in `folder` that a finished run came to."""
    try:
        step = json.loads((folder.parent / "eval.json").read_text())["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    found = folder / str(step)
    return found if folder.name == _FOLDER and (found / "meta").is_dir() else None


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
    """The complete checkpoint of the highest step in `folder`, or None."""
    return next(
        (step for step in intact.find_steps(folder) if (step / "meta").is_dir()), None
    )
