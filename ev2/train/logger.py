"""Progress of a run: the bar, metrics.jsonl, stages.json and TensorBoard events."""

import collections
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import tqdm

from ev2 import progressive
from ev2.train import device_peaks, multihost, setup
from ev2.train import workdir as workdirs

_STEPS_IN_FLIGHT = 3


class ThroughputMeter:
    """Measures images per second, waiting for data and MFU since the last `restart`.

    Args:
        num_devices: devices that share the work.
        peak_flops: FLOP/s of one device, None where unknown.
    """

    def __init__(self, num_devices: int, peak_flops: float | None):
        self._num_devices, self._peak_flops = num_devices, peak_flops
        self.restart()

    def restart(self) -> None:
        """Starts a new measurement."""
        self._started = time.monotonic()
        self._waited = 0.0

    def timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Passes `batches` on and counts the time that the loop waits for them."""
        iterator = iter(batches)
        while True:
            started = time.monotonic()
            batch = next(iterator, None)
            self._waited += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def read(self, steps: int, batch_size: int, flops: float) -> dict[str, float]:
        """Returns the rates of the last `steps` steps.

        Args:
            steps: steps since the last restart.
            batch_size: global images per step.
            flops: FLOPs of a step on one device; 0 = unknown.
        """
        seconds = time.monotonic() - self._started
        rate = steps * batch_size / seconds
        rates = {
            "images_per_second": rate,
            "images_per_second_per_device": rate / self._num_devices,
            "seconds": round(seconds, 3),
            "data_wait_share": min(self._waited / seconds, 1.0),
        }
        if self._peak_flops and flops > 0:
            rates["mfu"] = flops * steps / seconds / self._peak_flops
        return rates


class Logger:
    """Collects the sums of steps on the devices and writes them at each interval."""

    def __init__(
        self,
        folder: workdirs.Workdir,
        experiment: setup.Experiment,
        *,
        start: int,
        num_params: int,
    ):
        """Drops what was logged after step `start`, for those steps come again."""
        self._folder, self._experiment, self._start = folder, experiment, start
        logged = folder.resume_metrics(start)
        self._stages = self._begin_stages(logged, num_params)
        self._writer = _events_writer(str(folder.path)) if folder.writes else None
        # The bar counts pixels: a step of 300 px costs more than one of 128 px, and
        # the time left accounts for it.
        stages = experiment.stages
        self._bar = tqdm.tqdm(
            total=sum(_pixels(s, s.last_step) for s in stages),
            initial=sum(_pixels(s, min(s.last_step, start)) for s in stages),
            disable=not folder.writes,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
            mininterval=0.5 if sys.stderr.isatty() else 10.0,  # lines in a log file
            dynamic_ncols=True,
        )
        peak = device_peaks.peak_flops_per_second(jax.devices()[0].device_kind)
        self._meter = ThroughputMeter(jax.device_count(), peak)
        self._window: list[dict[str, jax.Array]] = []
        self._in_flight: collections.deque[jax.Array] = collections.deque()
        self._flops = 0.0
        self._batches: Any = None

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def _begin_stages(
        self, logged: list[dict[str, Any]], num_params: int
    ) -> dict[str, Any]:
        """The content of stages.json, with what earlier starts measured."""
        experiment = self._experiment
        document = workdirs.read_json(self._folder.path / "stages.json")
        if document is None:
            info = vars(experiment.info)
            document = {**experiment.plan, **info, "params": num_params}
            self._folder.write_json("stages.json", document)
        for stage in document["stages"]:
            lines = [
                line
                for line in logged
                if line["split"] == "train" and line["stage"] == stage["index"]
            ]
            if lines or "train_seconds" in stage:
                stage["train_seconds"] = sum(line["seconds"] for line in lines)
                # A second start may or may not meet the same corrupt images again.
                skipped = [line["skipped"] for line in lines]
                stage["skipped"] = max([stage.get("skipped", 0), *skipped])
        return document

    def start_stage(self, ready: Any) -> Iterator[Any]:
        """Returns the batches of a `next_stage.ReadyStage`; starts the clocks.

        Compiling and opening the data do not count as training.
        """
        self._flops, self._batches = ready.flops, ready.batches
        stage = self._stages["stages"][ready.stage.index]
        stage["compile_seconds"] = round(ready.compile_seconds, 2)
        stage.setdefault("train_seconds", 0.0)
        stage.setdefault("skipped", 0)
        self._bar.unpause()
        self._restart()
        return self._meter.timed(ready.batches)

    def _restart(self) -> None:
        self._window.clear()
        self._meter.restart()

    def add(self, stage: progressive.Stage, sums: dict[str, jax.Array]) -> None:
        """Takes the sums of one step, without waiting for the step to finish.

        The step before the last few is waited for: that bounds the batches on the
        devices, and leaves enough queued steps to keep the devices busy.
        """
        self._window.append(sums)
        self._in_flight.append(sums["loss"])
        if len(self._in_flight) > _STEPS_IN_FLIGHT:
            self._in_flight.popleft().block_until_ready()
        self._bar.update(stage.batch_size * stage.image_size**2)

    def write_train(
        self, stage: progressive.Stage, step: int, *, saved: int | None
    ) -> None:
        """Writes the line of the steps since the last one; `step` steps are done.

        Raises:
            FloatingPointError: a loss is not finite; nothing is written then. The
                message names the last good checkpoint, that of step `saved`.
        """
        if not self._window:
            return
        learning_rate = self._experiment.learning_rate(step - 1)
        sums = jax.device_get(self._window)  # waits for the last step
        rates = self._meter.read(len(sums), stage.batch_size, self._flops)
        first = step - len(sums)
        for i, s in enumerate(sums):
            if not (math.isfinite(s["loss"] + s["l2"]) and s["finite"]):
                good = f"the last good checkpoint is of step {saved}"
                raise FloatingPointError(
                    f"loss or weights are not finite at step {first + i} (noticed in "
                    f"steps {first} to {step - 1}, stage {stage.index}, "
                    f"{stage.image_size} px, learning rate {learning_rate:.6g}); a "
                    "lower optimizer.lr, a longer optimizer.warmup_epochs or "
                    "optimizer.clip_norm usually helps; "
                    + (good if saved else "nothing was saved before")
                )
        count = max(sum(int(s["count"]) for s in sums), 1)
        line = {
            "loss": sum(float(s["loss"]) for s in sums) / len(sums),
            "l2": sum(float(s["l2"]) for s in sums) / len(sums),
            "top1": sum(int(s["top1"]) for s in sums) / count,
            "learning_rate": learning_rate,
            **rates,
            "skipped": self._count_skipped(),
        }
        self._write("train", stage, step, line, batch_size=stage.batch_size)
        self._stages["stages"][stage.index]["train_seconds"] += rates["seconds"]
        devices = jax.device_count()
        per_device = f"{rates['images_per_second_per_device']:,.0f} img/s/device "
        self._bar.set_postfix_str(
            f"stage {stage.index} ({stage.image_size} px), "
            f"step {step:,} of {self._experiment.num_steps:,}, "
            f"loss {line['loss']:.3f}, {rates['images_per_second']:,.0f} img/s "
            + (per_device if devices > 1 else "")
            + (f"MFU {rates['mfu']:.0%} " if "mfu" in rates else "")
            + f"wait {rates['data_wait_share']:.0%}"
        )
        self._restart()

    def _count_skipped(self) -> int:
        return multihost.count_distinct(self._batches.skipped_indices)

    def write_eval(
        self, stage: progressive.Stage, step: int, results: dict[str, Any], split: str
    ) -> None:
        """Writes the line of an evaluation of the weights after `step` steps."""
        line = {
            name: {key: results[name][key] for key in ("top1", "top5")}
            for name in ("ema", "raw")
        }
        size = self._experiment.config.eval.image_size
        self._write("eval", stage, step, line, image_size=size)
        self.print(
            f"step {step:,}: {split} top-1 {line['ema']['top1']:.2%} EMA weights, "
            f"{line['raw']['top1']:.2%} raw, {results['ema']['count']:,} images at "
            f"{size} px"
        )
        self._restart()  # evaluation does not count as training time

    def finish_stage(self, stage: progressive.Stage, done: int) -> None:
        """Writes the stage's totals when `done` steps of the run are done."""
        document = self._stages["stages"][stage.index]
        seconds = document["train_seconds"]
        images = stage.images_seen(done) - stage.first_image
        document["train_seconds"] = round(seconds, 2)
        document["images_per_second"] = round(images / max(seconds, 1e-9), 1)
        document["skipped"] = max(document["skipped"], self._count_skipped())
        self._folder.write_json("stages.json", self._stages)

    @property
    def train_skipped(self) -> int:
        """Distinct corrupt images met in training.

        A stage of less than an epoch may not meet every one.
        """
        return max(stage.get("skipped", 0) for stage in self._stages["stages"])

    def print(self, text: str) -> None:
        """Prints a line above the bar."""
        if not self._bar.disable:
            self._bar.write(text)

    def _write(self, split, stage, step, line, **more) -> None:
        epoch = stage.images_seen(step) / self._experiment.info.num_train_images
        head = {"time": time.time(), "split": split, "step": step}
        head |= {"epoch": epoch, "stage": stage.index, "image_size": stage.image_size}
        self._folder.append_metrics({**head, **more, **line})
        if self._writer is not None:
            scalars = workdirs.flatten(line, "/", f"{split}/")
            scalars[f"{split}/image_size"] = more.get("image_size", stage.image_size)
            self._writer.write_scalars(step, scalars)


def _pixels(stage: progressive.Stage, last_step: int) -> int:
    """Pixels of a stage's training images before `last_step`."""
    steps = max(0, last_step - stage.first_step)
    return steps * stage.batch_size * stage.image_size**2


def _events_writer(path: str):
    from clu import metric_writers  # loads TensorFlow

    return metric_writers.SummaryWriter(path)
