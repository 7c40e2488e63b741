"""python -m pytest tests/train/test_plan.py"""

import json
import subprocess
import sys

import pytest

from configs import imagenet1k
from ev2 import errors, progressive
from ev2.train import plan


def test_plan_of_s_is_the_papers():
    planned = plan.make_plan(imagenet1k.get_config("s"))
    assert planned == json.loads(json.dumps(planned))
    assert planned["model"] == "efficientnetv2-s"
    assert planned["steps"] == 109_474
    assert planned["epochs"] == pytest.approx(350, abs=0.01)

    stages = planned["stages"]
    assert [s["index"] for s in stages] == [0, 1, 2, 3]
    assert [s["image_size"] for s in stages] == [128, 185, 243, 300]
    assert [s["batch_size"] for s in stages] == [4096] * 4
    assert [s["epochs"] for s in stages] == pytest.approx([87.5] * 4, abs=0.01)
    assert stages[0]["first_step"] == 0 and stages[-1]["last_step"] == 109_474
    for before, after in zip(stages, stages[1:], strict=False):
        assert before["last_step"] == after["first_step"]
    names = [strength.name for strength in progressive.STRENGTHS]
    assert list(stages[0]["strengths"]) == names
    assert stages[3]["strengths"]["randaugment"] == 15.0


def test_learning_rate_at_both_ends_of_each_stage():
    stages = plan.make_plan(imagenet1k.get_config("s"))["stages"]
    # 0.016 * 4096 / 256 = 0.256, times 0.97 for every 2.4 epochs begun and done.
    # Stage ends lie at epochs 87.5, 175, 262.5 and 350: 36, 72, 109 and 145 stairs.
    ends = [0.256 * 0.97**stairs for stairs in (36, 72, 109, 145)]
    assert [s["learning_rate"][1] for s in stages] == pytest.approx(ends)
    starts = [0.0, *ends[:3]]
    assert [s["learning_rate"][0] for s in stages] == pytest.approx(starts)
    # The last step of the warm-up is one of 1,564 below the peak.
    peaks = [0.256, *starts[1:]]
    assert [s["peak_learning_rate"] for s in stages] == pytest.approx(peaks, rel=1e-3)


def test_learning_rate_follows_the_batch_size_of_the_stage():
    config = imagenet1k.get_config("s")
    config.optimizer.schedule = "constant"
    config.progressive.batch_size = (8192, 6144, 4096, 2048)
    stages = plan.make_plan(config)["stages"]
    assert [s["learning_rate"][1] for s in stages] == pytest.approx(
        [0.512, 0.384, 0.256, 0.128]
    )
    assert [s["epochs"] for s in stages] == pytest.approx([87.5] * 4, abs=0.01)


def test_table_is_aligned_and_totals_are_there():
    table = plan.format_table(plan.make_plan(imagenet1k.get_config("m")))
    title, heading, *rows, total = table.splitlines()
    assert title == "efficientnetv2-m, 1,281,167 training images, 4 stages"
    assert heading.split()[:4] == ["stage", "from", "step", "steps"]
    assert {len(row) for row in rows} == {len(heading)}
    assert max(len(line) for line in table.splitlines()) <= 130
    assert rows[1].split()[:10] == (
        ["1", "27,368", "27,369", "87.50", "212", "4,096"]
        + ["0.2", "10", "0.06667", "0"]
    )
    assert total.split() == ["total", "109,474", "350.00"]


def test_one_stage_is_not_a_plural():
    table = plan.format_table(plan.make_plan(imagenet1k.get_config("b0")))
    assert table.splitlines()[0].endswith("training images, 1 stage")


def test_declared_counts_need_neither_tensorflow_nor_a_device():
    code = (
        "import sys; from configs import imagenet1k; from ev2.train import plan; "
        "plan.make_plan(imagenet1k.get_config('s')); "
        "from jax._src import xla_bridge; "
        "assert 'tensorflow' not in sys.modules; "
        "assert not xla_bridge.backends_are_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_embedded_data_counts_itself():
    from configs import demo

    planned = plan.make_plan(demo.get_config())
    assert planned["num_train_images"] == 12_000


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model.name", "efficientnetv2-xxl", "model.name: 'efficientnetv2-xxl'"),
        ("progressive.schedule", "up", "progressive.schedule: 'up'"),
        ("optimizer.schedule", "step", "optimizer.schedule: 'step'"),
        ("data.source", "hdf5", "data.source: 'hdf5'"),
    ],
)
def test_what_no_run_could_use_is_refused(key, value, message):
    config = imagenet1k.get_config("s")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(errors.InputError) as error:
        plan.make_plan(config)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
