"""What a run says while it goes: progress bar, metrics.jsonl, TensorBoard events."""

import collections
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import tqdm

from ev2 import progressive
from ev2.train import device_peaks
from ev2.train import workdir as run_folder

_IN_FLIGHT_STEPS = 3


class Logbook:
    """Collects the sums of steps on the devices and writes them out now and then."""

    def __init__(
        self,
        folder: run_folder.RunFolder,
        stages: Sequence[progressive.Stage],
        num_train_images: int,
        *,
        first_step: int,
    ):
        self._folder = folder
        self._stages = stages
        self._num_train_images = num_train_images
        self._writer = _events_writer(str(folder.path)) if folder.writes else None
        # The bar counts pixels: a step of 300 px costs more than one of 128 px, and
        # the time left should know.
        done = sum(_pixels(s, 0, min(s.last_step, first_step)) for s in stages)
        self._bar = tqdm.tqdm(
            total=sum(_pixels(s, 0, s.last_step) for s in stages),
            initial=done,
            disable=not folder.writes,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            mininterval=0.5 if sys.stderr.isatty() else 10.0,  # lines in a log file
            dynamic_ncols=True,
        )
        self._window: list[dict[str, jax.Array]] = []
        self._running: collections.deque[jax.Array] = collections.deque()
        self._peak = device_peaks.peak_flops_per_second(jax.devices()[0].device_kind)
        self._flops, self._stage_seconds, self._stage_images = 0.0, 0.0, 0
        self._start_window()

    def _start_window(self) -> None:
        self._window.clear()
        self._window_started = time.monotonic()
        self._waited = 0.0

    def batches(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Passes `batches` on, counting the time the loop waits for them."""
        iterator = iter(batches)
        while True:
            started = time.monotonic()
            batch = next(iterator, None)
            self._waited += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def add(self, stage: progressive.Stage, sums: dict[str, jax.Array]) -> None:
        """Takes the sums of one step, without waiting for the step to finish.

        The step before the last few is waited for: that bounds how many batches lie
        on the devices, and leaves enough queued steps for the devices never to idle.
        """
        self._window.append(sums)
        self._running.append(sums["loss"])
        if len(self._running) > _IN_FLIGHT_STEPS:
            self._running.popleft().block_until_ready()
        self._bar.update(stage.batch_size * stage.image_size**2)

    def write_train(
        self,
        stage: progressive.Stage,
        step: int,
        learning_rate: float,
        skipped: int,
        *,
        saved: int | None,
    ) -> None:
        """Writes the line of the steps since the last one; `step` steps are done.

        Raises:
          FloatingPointError: if a loss is not finite; nothing is written then. The
            message names the last good checkpoint, that of step `saved`.
        """
        if not self._window:
            return
        sums = jax.device_get(self._window)  # waits for the last step
        seconds = time.monotonic() - self._window_started
        losses = [float(s["loss"] + s["l2"]) for s in sums]
        first = step - len(sums)
        bad = [
            first + i
            for i, loss in enumerate(losses)
            if not (math.isfinite(loss) and sums[i]["finite"])
        ]
        if bad:
            raise FloatingPointError(
                f"loss or weights are not finite at step {bad[0]} (noticed in steps "
                f"{first} to {step - 1}, stage {stage.index}, {stage.image_size} px, "
                f"learning rate {learning_rate:.6g}); a lower optimizer.lr, a longer "
                "optimizer.warmup_epochs or optimizer.clip_norm usually helps; "
                + (
                    f"the last good checkpoint is of step {saved}"
                    if saved
                    else "nothing was saved before"
                )
            )
        count = max(sum(int(s["count"]) for s in sums), 1)
        rate = len(sums) * stage.batch_size / seconds
        devices = jax.device_count()
        self._stage_seconds += seconds
        self._stage_images += len(sums) * stage.batch_size
        line = {
            "loss": sum(float(s["loss"]) for s in sums) / len(sums),
            "l2": sum(float(s["l2"]) for s in sums) / len(sums),
            "top1": sum(int(s["top1"]) for s in sums) / count,
            "learning_rate": learning_rate,
            "images_per_second": rate,
            "images_per_second_per_device": rate / devices,
            "seconds": round(seconds, 3),
            "data_wait_share": min(self._waited / seconds, 1.0),
            "skipped": skipped,
        }
        if self._peak and self._flops > 0:
            line["mfu"] = self._flops * len(sums) / seconds / self._peak
        self._write("train", stage, step, line, batch_size=stage.batch_size)
        self._bar.set_postfix_str(
            f"stage {stage.index} of {len(self._stages)}, {stage.image_size} px "
            f"step {step} loss {line['loss']:.3f} {rate:,.0f} img/s "
            + (f"{rate / devices:,.0f} img/s/device " if devices > 1 else "")
            + (f"MFU {line['mfu']:.0%} " if "mfu" in line else "")
            + f"wait {line['data_wait_share']:.0%}"
        )
        self._start_window()

    def write_eval(
        self,
        stage: progressive.Stage,
        step: int,
        results: dict[str, Any],
        size: int,
        of: str,
    ) -> None:
        """Writes the line of an evaluation of the weights after `step` steps.

        `of` says of which pictures, for people.
        """
        line = {
            name: {
                key: results[name][key]
                for key in ("top1", "top5", "map")
                if key in results[name]
            }
            for name in ("ema", "raw")
        }
        self._write("eval", stage, step, line, image_size=size)
        self.say(
            f"step {step}: {of} top-1 {line['ema']['top1']:.2%} averaged weights, "
            f"{line['raw']['top1']:.2%} raw, {results['ema']['count']:,} images "
            f"at {size} px"
        )
        self._start_window()  # evaluation does not count as training time

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self._bar.disable:
            self._bar.write(text)

    def start_stage(
        self, stage: progressive.Stage, first_step: int, flops: float
    ) -> None:
        """Starts the clocks: compiling and opening the data do not count.

        Args:
          stage: the stage.
          first_step: its first step that is to be taken now; the seconds of those
            before are what earlier starts wrote down.
          flops: of a step on one device; 0 = not known.
        """
        self._flops = flops
        self._stage_images = (first_step - stage.first_step) * stage.batch_size
        self._stage_seconds = 0.0
        if first_step > stage.first_step:  # else it is the first start in this stage
            self._stage_seconds = sum(
                line.get("seconds", 0.0)
                for line in self._folder.metrics()
                if line.get("split") == "train" and line["stage"] == stage.index
            )
        self._bar.unpause()
        self._start_window()

    def finish_stage(self) -> dict[str, float]:
        """Returns seconds of the stage's training steps, and images/s.

        Earlier starts of the run are counted in, but not steps that were taken twice.
        """
        seconds = self._stage_seconds
        rate = self._stage_images / max(seconds, 1e-9)
        return {
            "train_seconds": round(seconds, 2),
            "images_per_second": round(rate, 1),
        }

    def _write(self, split, stage, step, line, **more) -> None:
        epoch = stage.images_seen(step) / self._num_train_images
        head = {"time": time.time(), "split": split, "step": step}
        head |= {"epoch": epoch, "stage": stage.index}
        self._folder.append_metrics(
            {**head, "image_size": stage.image_size, **more, **line}
        )
        if self._writer is not None:
            scalars = run_folder.flatten(line, "/", f"{split}/")
            scalars[f"{split}/image_size"] = more.get("image_size", stage.image_size)
            self._writer.write_scalars(step, scalars)

    def close(self) -> None:
        """Finishes the bar and flushes the events."""
        self._bar.close()
        if self._writer is not None:
            self._writer.close()


def _pixels(stage: progressive.Stage, first: int, last: int) -> int:
    steps = max(0, last - max(first, stage.first_step))
    return steps * stage.batch_size * stage.image_size**2


def _events_writer(path: str):
    from clu import metric_writers  # loads TensorFlow

    return metric_writers.SummaryWriter(path)
