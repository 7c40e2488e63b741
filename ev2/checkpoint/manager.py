"""Saves and restores the training state of a run, with Orbax.

Orbax writes `WORKDIR/checkpoints/STEP/{state,meta,metrics}` to a temporary folder and
renames it when it is complete: an interrupted save leaves earlier checkpoints alone.
"""

import contextlib
import errno
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ev2 import errors
from ev2.checkpoint import integrity


def exists(workdir: str) -> bool:
    """Returns True if the run in `workdir` has a checkpoint."""
    folder = pathlib.Path(workdir) / integrity.CHECKPOINTS
    return bool(integrity.list_checkpoints(folder))


class Checkpoints:
    """The checkpoints of one run: the latest, and the best by their score.

    Saving is asynchronous: `save` returns when the state has been copied off the
    devices. `close` waits for the save in flight.
    """

    def __init__(self, workdir: str, *, keep: int, keep_best: int = 1):
        """Opens the checkpoints of the run in `workdir`.

        The newest checkpoint is taken as verified: call `integrity.quarantine` first.

        Args:
          workdir: folder of the run.
          keep: number of latest checkpoints to keep.
          keep_best: number of best checkpoints to keep.
        """
        self._folder = pathlib.Path(workdir).absolute() / integrity.CHECKPOINTS
        self._saving: int | None = None  # step of the last save
        self._in_flight = False  # True while that save may fail
        self._failed = False  # True after a failed save
        best = checkpoint_managers.BestN(get_metric_fn=_score, n=keep_best)
        kept = [checkpoint_managers.LatestN(keep), best]
        before_commit = ocp.AsyncOptions(
            post_finalization_callback=self._write_checksums
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            best_fn=_score,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            async_options=before_commit,
        )
        self._manager = ocp.CheckpointManager(
            self._folder, options=options, item_names=("state", "meta")
        )
        self._verified = self.latest_step()

    def latest_step(self) -> int | None:
        """Returns the step of the newest checkpoint, saved or being saved, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int:
        """Waits for the save in flight; returns the latest step of the best score."""
        self.finish()
        step = self._manager.best_step()
        assert step is not None, "a run is evaluated, and saved, at its end"
        return step

    def read_metadata(self, step: int) -> dict[str, Any]:
        """Returns the metadata saved with the checkpoint of `step`."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["meta"]

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Returns the training state of the checkpoint of `step`.

        Args:
          step: of a checkpoint of this run.
          abstract_state: a tree of shapes, dtypes and shardings, on any number of
            devices.

        Raises:
          InputError: the checkpoint is corrupt or cannot be read.
        """
        folder = self._folder / str(step)
        damage = step != self._verified and integrity.find_damage(folder)
        if damage:
            raise errors.InputError(
                f"checkpoint: {str(folder)!r} is corrupt ({damage}); restore it, or "
                "move it away to do without"
            )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        try:
            return self._manager.restore(step, args=args)["state"]
        except Exception as error:  # Orbax raises many types for bad files
            raise errors.InputError(
                f"checkpoint: {str(folder)!r} cannot be read ({_first_line(error)}); "
                "move it away to resume from the checkpoint before it"
            ) from error

    def save(
        self,
        state: Any,
        step: int,
        metadata: dict[str, Any],
        *,
        score: float | None = None,
    ) -> None:
        """Starts to write `state` under `step`, if that step is not saved already.

        Args:
          state: the whole training state.
          step: `int(state.step)`, given to avoid a wait for the device.
          metadata: JSON values; see `pretrained.make_metadata`.
          score: decides which checkpoint is best; None without an evaluation.

        Raises:
          StoppedError: the previous save could not be completed.
        """
        if step in self._manager.all_steps():
            return
        self.finish()
        self._saving, self._in_flight = step, True
        with self._save_errors():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(metadata)
                ),
                # Always given: Orbax warns at every save without metrics.
                metrics={"score": score},
            )

    def check(self) -> None:
        """Raises StoppedError if the save in flight has failed. Does not wait."""
        if self._in_flight and not self._manager.is_saving_in_progress():
            self._in_flight = False
            self.finish()

    def finish(self) -> None:
        """Waits for the save in flight.

        Raises:
          StoppedError: the save could not be completed.
        """
        with self._save_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes the save in flight (see `finish`) and releases the manager."""
        self.finish()
        self._manager.close()

    def _write_checksums(self) -> None:
        """Runs in Orbax's thread when all files are written, before the rename."""
        for folder in self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            integrity.write_checksums(folder)

    @contextlib.contextmanager
    def _save_errors(self) -> Iterator[None]:
        """Raises the first error of a save as a StoppedError; ignores later ones."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            if self._failed:
                return
            self._failed = True
            full = getattr(error, "errno", None) == errno.ENOSPC or re.search(
                r"No space left|RESOURCE_EXHAUSTED|ENOSPC", str(error)
            )
            reason = os.strerror(errno.ENOSPC) if full else _first_line(error)
            saved = integrity.list_checkpoints(self._folder)
            outcome = "nothing was saved before"
            if saved:
                outcome = f"the same command resumes from step {saved[0].name}"
            raise errors.StoppedError(
                f"checkpoint: step {self._saving} could not be saved in "
                f"{str(self._folder)!r} ({reason}); {outcome}"
            ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


def _score(metrics: dict[str, Any]) -> float:
    """Returns the score that ranks checkpoints; without an evaluation, the lowest."""
    return -1.0 if metrics["score"] is None else metrics["score"]
