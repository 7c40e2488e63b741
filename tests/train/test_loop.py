"""pytest tests/train/test_loop.py

The loop end to end: stages, compiles, resume bit for bit, refusals before any write.
"""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from ev2 import errors, sharding
from ev2.checkpoint import manager, pretrained
from ev2.data import sources as source
from ev2.train import logger as logbook
from ev2.train import loop as train
from ev2.train import optimizer as optim
from ev2.train import state as states
from ev2.train import step as steps
from tests.helpers import tiny_run as tiny


def final_state(workdir):
    """All arrays of the newest checkpoint, by path."""
    import orbax.checkpoint as ocp

    folder, reader = pretrained.find(str(workdir)), ocp.PyTreeCheckpointer()
    tree = reader.metadata(folder / "state").item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    args = ocp.args.PyTreeRestore(restore_args=as_numpy)
    state = reader.restore(folder / "state", args=args)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_equal_bits(a, b):
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def _lines(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """An uninterrupted run; returns its folder and results."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    config = tiny.make_config()
    return workdir, train.train_and_evaluate(config, str(workdir), profile=range(3, 6))


def test_a_run_leaves_everything_it_promises(whole_run):
    workdir, results = whole_run
    assert results == json.loads((workdir / "eval.json").read_text())
    assert results["ema"]["count"] == results["raw"]["count"] == 19
    assert results["step"] == 8 and results["image_size"] == 12
    stages = json.loads((workdir / "stages.json").read_text())
    assert [s["image_size"] for s in stages["stages"]] == [8, 12]
    assert all(s["compile_seconds"] > 0 for s in stages["stages"])
    config = json.loads((workdir / "config.json").read_text())
    assert config["config"]["steps"] == 8
    assert config["versions"]["jax"] == jax.__version__
    lines = _lines(workdir)
    trained = [x for x in lines if x["split"] == "train"]
    assert [x["step"] for x in trained] == [2, 4, 6, 8]
    assert [x["stage"] for x in trained] == [0, 0, 1, 1]
    assert all(np.isfinite(x["loss"]) and x["images_per_second"] > 0 for x in trained)
    assert [x["step"] for x in lines if x["split"] == "eval"] == [4, 8]
    confusion = np.load(workdir / "confusion.npy")
    assert confusion.shape == (10, 10) and confusion.sum() == 19
    assert list(workdir.glob("events.out.tfevents.*"))
    assert list((workdir / "profile").rglob("*.xplane.pb"))  # of two stages


STALLS = """
import sys, time
from ev2.train import loop, setup
from tests.helpers import tiny_run
make = setup.Experiment.hyperparameters
def hyperparameters(run, stage, step):
    if step == 3:
        time.sleep(60)
    return make(run, stage, step)
setup.Experiment.hyperparameters = hyperparameters
loop.train_and_evaluate(tiny_run.make_config(**{"stall_seconds": 5.0}), sys.argv[1])
"""


def test_a_stalled_step_ends_the_process_with_its_stacks(tmp_path):
    command = [sys.executable, "-c", STALLS, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "Timeout" in run.stderr and "in train_and_evaluate" in run.stderr


def test_steps_to_profile_must_exist(tmp_path):
    with pytest.raises(errors.InputError, match="profile: steps 6 to 9; the run has 8"):
        config = tiny.make_config()
        train.train_and_evaluate(config, str(tmp_path), profile=range(6, 9))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "stop", [1, pytest.param(3, marks=SLOW), pytest.param(4, marks=SLOW)]
)
def test_a_stopped_run_ends_in_the_same_bits(whole_run, tmp_path, monkeypatch, stop):
    add = logbook.Logger.add

    def add_or_stop(self, stage, sums):
        add(self, stage, sums)
        self.added = getattr(self, "added", 0) + 1
        if self.added == stop:
            raise KeyboardInterrupt

    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(logbook.Logger, "add", add_or_stop)
        message = f"after step {stop}; the same command resumes from step 2"
        if stop == 1:
            message = "after step 1; nothing was saved yet"
        with pytest.raises(KeyboardInterrupt, match=message):
            train.train_and_evaluate(tiny.make_config(), str(workdir))
    results = train.train_and_evaluate(tiny.make_config(), str(workdir))
    assert_equal_bits(final_state(workdir), final_state(whole_run[0]))
    for name in ("ema", "raw"):
        assert results[name] == whole_run[1][name]
    trained = [x for x in _lines(workdir) if x["split"] == "train"]
    steps_seen = [x["step"] for x in trained]
    assert steps_seen == sorted(set(steps_seen))
    for stage in json.loads((workdir / "stages.json").read_text())["stages"]:
        both_starts = [x["seconds"] for x in trained if x["stage"] == stage["index"]]
        assert stage["train_seconds"] == pytest.approx(sum(both_starts), abs=0.02)


@pytest.mark.parametrize(
    "step",  # within a stage, and at its end
    [pytest.param(3, marks=pytest.mark.slow), 4],
)
def test_sigterm_saves_and_resumes(tmp_path, monkeypatch, whole_run, step):
    workdir, results = whole_run
    add, former = logbook.Logger.add, signal.getsignal(signal.SIGTERM)
    steps_done = iter(range(1, 9))

    def add_and_signal(*args):
        add(*args)
        if next(steps_done) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(logbook.Logger, "add", add_and_signal)
    config = tiny.make_config(**{"checkpoint.every_steps": 0})
    with pytest.raises(errors.PreemptedError, match=f"stopped after step {step}"):
        train.train_and_evaluate(config, str(tmp_path))
    assert signal.getsignal(signal.SIGTERM) == former
    monkeypatch.undo()
    assert manager.exists(str(tmp_path))
    again = train.train_and_evaluate(config, str(tmp_path))
    assert_equal_bits(final_state(workdir), final_state(tmp_path))
    assert again["ema"] == results["ema"]


def test_a_finished_run_is_left_as_it_is(whole_run):
    workdir, results = whole_run
    before = final_state(workdir)
    again = train.train_and_evaluate(tiny.make_config(), str(workdir))
    assert_equal_bits(before, final_state(workdir))
    assert again["ema"] == results["ema"] and again["raw"] == results["raw"]


def test_one_compile_per_image_size(tmp_path, monkeypatch):
    traced = []
    make = steps.make_train_step

    def counting(*args):
        step = make(*args)

        def train_step(state, batch, strengths):
            traced.append(batch["image"].shape[1])
            return step(state, batch, strengths)

        return train_step

    monkeypatch.setattr(steps, "make_train_step", counting)
    config = tiny.make_config(
        **{
            "progressive.schedule": "random",
            "progressive.random_epochs": 0.4,
            "steps": 12,
        }
    )
    train.train_and_evaluate(config, str(tmp_path))
    stages = json.loads((tmp_path / "stages.json").read_text())["stages"]
    assert len(stages) > len({s["image_size"] for s in stages}) == 2
    assert sorted(traced) == [8, 12]


def test_restored_on_other_device_counts(whole_run):
    workdir, _ = whole_run
    expected = final_state(workdir)
    for count in (1, 2, 4):
        mesh = sharding.make_mesh(jax.devices()[:count])
        checkpoints = manager.Checkpoints(str(workdir), keep=2)
        shapes = _abstract_state(mesh)
        state = checkpoints.restore(8, shapes)
        checkpoints.close()
        leaf = jax.tree.leaves(state.params)[0]
        assert leaf.sharding.num_devices == count
        found = {
            jax.tree_util.keystr(path).replace(".", "['", 1): np.asarray(x)
            for path, x in jax.tree_util.tree_leaves_with_path(state)
        }
        assert len(found) == len(expected)
        for a, b in zip(
            sorted(found.values(), key=_order),
            sorted(expected.values(), key=_order),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


def _order(x):
    return (x.shape, x.ravel().tolist())


def _abstract_state(mesh):
    config = tiny.make_config()
    model = tiny.create_model(config)
    optimizer = optim.make_optimizer(config)
    shapes = jax.eval_shape(lambda: states.create_state(model, optimizer, config, 8))
    return sharding.abstract(mesh, shapes)


def test_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    config = tiny.make_config(**{"optimizer.lr": 1e30, "optimizer.warmup_epochs": 0.0})
    with pytest.raises(FloatingPointError, match=r"not finite at step \d") as error:
        train.train_and_evaluate(config, str(tmp_path))
    saved = checkpoint_exists(tmp_path)
    last = "the last good checkpoint is of step" if saved else "nothing was saved"
    assert last in str(error.value)
    state = final_state(tmp_path) if saved else {}
    assert all(np.isfinite(x).all() for x in state.values())


def checkpoint_exists(workdir):
    """Whether a complete checkpoint was written."""
    return any((workdir / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "batch_size: .* 12 .*8 devices"),
        ({"model.name": "efficientnetv2-x"}, "efficientnetv2-x"),
        ({"model.bn_group_images": 5}, "model.bn_group_images"),
        ({"loss.mix_group_images": 3}, "loss.mix_group_images"),
        ({"data.source": "nowhere"}, "data.source"),
        ({"progressive.schedule": "linear"}, "progressive.schedule"),
        ({"progressive.image_size": (0, 12)}, "progressive.image_size"),
        ({"eval.image_size": 0}, "eval.image_size"),
        ({"eval.batch_size": 0}, "eval.batch_size"),
        ({"ema.decay": 1.0}, "ema.decay"),
        ({"optimizer.schedule": "stairs"}, "optimizer.schedule"),
        ({"init.checkpoint": "/nowhere"}, "/nowhere"),
        ({"data.source": "folder", "data.path": "/nowhere"}, "data.path"),
    ],
)
def test_bad_configs_are_refused_before_anything_is_written(tmp_path, changes, message):
    workdir = tmp_path / "run"
    with pytest.raises(errors.InputError, match=message):
        train.train_and_evaluate(tiny.make_config(**changes), str(workdir))
    assert not workdir.exists()


def test_another_config_in_the_same_folder_is_refused(whole_run):
    workdir, _ = whole_run
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    config = tiny.make_config(**{"optimizer.lr": 0.1})
    with pytest.raises(errors.InputError, match=r"optimizer\.lr=0\.1"):
        train.train_and_evaluate(config, str(workdir))
    after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    assert before == after


def test_a_run_starts_from_the_ema_weights_of_another(whole_run, tmp_path):
    workdir, _ = whole_run
    _, variables, _ = pretrained.load_pretrained(str(workdir))
    config = tiny.make_config(
        **{"init.checkpoint": str(workdir), "steps": 2, "optimizer.lr": 0.0}
    )
    train.train_and_evaluate(config, str(tmp_path / "next"))
    _, continued, _ = pretrained.load_pretrained(str(tmp_path / "next"), weights="raw")
    jax.tree.map(
        np.testing.assert_array_equal, variables["params"], continued["params"]
    )


def make_photographs(folder):
    """Two classes of JPEGs: plain, one truncated, one grey, one CMYK."""
    from PIL import Image

    random = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (folder / name).mkdir(parents=True)
        for i in range(16):
            noise = random.integers(-50, 50, (40, 48, 3))
            image = Image.fromarray((level + noise).astype(np.uint8))
            mode = {3: "L", 4: "CMYK"}.get(i, "RGB")
            image.convert(mode).save(folder / name / f"{i}.jpg", quality=90)
    cut = folder / "dark" / "5.jpg"
    cut.write_bytes(cut.read_bytes()[:600])
    return cut


def _folder_config(folder):
    return tiny.make_config(
        **{
            "data.source": "folder",
            "data.path": str(folder),
            "data.num_train_images": 0,
            "data.num_eval_images": 0,
            "data.num_classes": 0,
            "data.eval_fraction": 0.25,
            "steps": 4,
        }
    )


def test_a_folder_with_a_truncated_a_grey_and_a_cmyk_image(tmp_path, caplog):
    folder, workdir = tmp_path / "images", tmp_path / "run"
    cut = make_photographs(folder)
    results = train.train_and_evaluate(_folder_config(folder), str(workdir))
    stages = json.loads((workdir / "stages.json").read_text())
    skipped = {s["skipped"] for s in stages["stages"]} | {results["ema"]["skipped"]}
    assert 1 in skipped and skipped <= {0, 1}
    assert results["train_skipped"] == max(s["skipped"] for s in stages["stages"])
    assert results["ema"]["count"] + results["ema"]["skipped"] == 8
    assert str(cut) in caplog.text
    # More images are other data: the finished run is not touched.
    source._open.cache_clear()  # another process would list the folder anew
    (folder / "dark" / "new.jpg").write_bytes((folder / "dark" / "0.jpg").read_bytes())
    before = (workdir / "eval.json").read_text()
    with pytest.raises(errors.InputError, match="num_train_images|num_eval_images"):
        train.train_and_evaluate(_folder_config(folder), str(workdir))
    assert (workdir / "eval.json").read_text() == before
