"""The report of a run: its page, figures, tables and bad input."""

import base64
import html
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from ev2 import errors, progressive
from ev2.data import pipeline
from ev2.report import html as page
from ev2.report import report
from ev2.train import workdir as workdirs
from tests.helpers import fake_run

CLASS_FIGURES = {"confusion", "class_accuracy"}
FIGURES = {"progressive", "learning_curves", "stages", "learning_rate", "throughput"}
ALL_FIGURES = FIGURES | CLASS_FIGURES


def find(tag: str, source: str) -> list[str]:
    """The contents of all elements of a kind that do not contain one another."""
    return re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", source, re.DOTALL)


def plain(source: str) -> str:
    """The text that a browser shows."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", source)).split())


class Page:
    """The running text of a page, and its tables as rows of cells."""

    def __init__(self, source: str):
        self.text = plain(source)
        self._tables = [
            [[plain(cell) for cell in find("t[hd]", row)] for row in find("tr", table)]
            for table in find("table", source)
        ]

    def tables(self, heading: str) -> list[list[list[str]]]:
        """Rows of the tables that have the heading, without the headings."""
        return [table[1:] for table in self._tables if heading in table[0]]

    def table(self, heading: str) -> list[list[str]]:
        return self.tables(heading)[0]


class GreyBatches:
    """Stands in for the batches of a stage: grey images, the third is corrupt."""

    closed = 0

    def __init__(self, config, stage, *, first_step):
        assert first_step == stage.first_step
        n, side = stage.batch_size, stage.image_size
        self._batch = {
            "image": np.full((n, side, side, 3), 40 * stage.index, np.uint8),
            "label": np.arange(n, dtype=np.int32) % 10,
            "mask": (np.arange(n) != 2).astype(np.float32),
        }

    def __iter__(self):
        yield self._batch

    def close(self):
        GreyBatches.closed += 1


def render(workdir) -> Page:
    """The page without figures."""
    return Page(page.render(workdirs.read_run(workdir), {}, [], "no samples"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A finished run with its report."""
    workdir = fake_run.make_run(tmp_path_factory.mktemp("runs") / "full")
    (workdir / "plots").mkdir()
    (workdir / "plots" / "mine.png").write_bytes(b"mine")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(pipeline, "make_train_data", GreyBatches)
        path = report.write_report(workdir)
    assert path == workdir / "report.html" and GreyBatches.closed == 4
    return workdir


def test_writes_its_own_files_and_no_others(full):
    made = {f"{name}.png" for name in ALL_FIGURES | {"samples"}}
    assert {p.name for p in (full / "plots").iterdir()} == made | {"mine.png"}
    assert (full / "plots" / "mine.png").read_bytes() == b"mine"
    run_files = {"config.json", "stages.json", "metrics.jsonl", "eval.json"}
    run_files |= {"confusion.npy", "plots", "report.html"}
    assert {p.name for p in full.iterdir()} == run_files


@pytest.mark.parametrize("name", sorted(ALL_FIGURES | {"samples"}))
def test_figures_have_two_pixels_per_css_pixel(full, name):
    with Image.open(full / "plots" / f"{name}.png") as image:
        image.load()
        assert image.format == "PNG"
        widths = {"samples": 1440, "progressive": 1600}
        assert image.width == widths.get(name, 1120)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert len(image.getcolors(2**20)) > 4
    assert (full / "plots" / f"{name}.png").stat().st_size < 200_000


def test_page_needs_nothing_but_itself(full):
    text = (full / "report.html").read_text()
    assert not re.search(r"https?://|url\(|@import|<(script|link|iframe)", text)
    assert not re.search(r"(srcset|href|poster|data|action)=", text)
    images = []
    for resource in re.findall('src="([^"]*)"', text):
        head, content = resource.split(",")
        assert re.fullmatch("data:image/(png|jpeg);base64", head)
        images.append(base64.b64decode(content))
        Image.open(io.BytesIO(images[-1])).load()
    assert len(images) == 7 + 4 * 12  # twelve images for each of four stages
    for name in ALL_FIGURES:
        assert (full / "plots" / f"{name}.png").read_bytes() in images


def test_page_shows_the_results(full):
    seen = Page((full / "report.html").read_text())
    top1 = np.load(full / "confusion.npy").trace() / 2000
    assert seen.table("Weights") == [
        ["EMA", f"{100 * top1:.2f}%", "99.25%", "1,999", "1"],
        ["raw", "87.65%", "98.15%", "1,999", "1"],
    ]
    for words in (
        "efficientnetv2-tiny on fashion_mnist (embedded)",
        "Finished after 1,125 steps",
        "1.2 M 1,234,567",
        "Evaluated at 28 px",
        "jax 0.10.2",
        "1 training file(s) could not be decoded",
    ):
        assert words in seen.text
    assert ["progressive.image_size", "(16, 28)"] in seen.table("Key")


def test_stage_table(full):
    rows = Page((full / "report.html").read_text()).table("Stage")
    # Algorithm 1 by hand: 1,125 steps, 16 to 28 px, magnitude 1 to 4.
    assert [row[:5] + row[6:7] for row in rows] == [
        ["0", "281", "3.00", "16", "128", "1"],
        ["1", "281", "3.00", "20", "128", "2"],
        ["2", "281", "3.00", "24", "128", "3"],
        ["3", "282", "3.01", "28", "128", "4"],
    ]
    # In the order of `progressive.STRENGTHS`: dropout first, drop path last.
    assert rows[1][5:10] == ["0.067", "2", "0", "0", "0.033"]
    assert rows[0][10] == "0.016 → 0.012"
    seconds = 281 * 128 / (2.0e6 / 16**1.6)
    assert rows[0][11:] == ["6.0", f"{seconds:.1f}", f"{2.0e6 / 16**1.6:,.0f}"]


def test_samples_leave_out_corrupt_images(full):
    text = (full / "report.html").read_text()
    assert "Stage 1: 20 px, RandAugment magnitude 2" in Page(text).text
    section = text[text.index("Training images</h2>") : text.index("Classes</h2>")]
    captions = re.findall("<figcaption>(.*?)</figcaption>", section)
    names = [html.escape(name) for name in fake_run.CLASS_NAMES]
    assert captions[:12] == [names[i % 10] for i in range(13) if i != 2]
    assert len(captions) == 48


def test_names_are_escaped(full):
    text = (full / "report.html").read_text()
    assert "<b>" not in text
    assert "<b>&" in [row[0] for row in Page(text).table("Accuracy")]


def test_tables_of_classes(tmp_path):
    workdir = fake_run.make_run(tmp_path, classes=3)
    confusion = np.array([[8, 1, 1], [0, 10, 0], [5, 0, 5]])
    np.save(workdir / "confusion.npy", confusion)
    seen = render(workdir)
    assert seen.table("Accuracy") == [
        ["Trouser", "100.00%", "10", "–"],
        ["T-shirt/top", "80.00%", "10", "Trouser (10.00%)"],
        ["<b>&", "50.00%", "10", "T-shirt/top (50.00%)"],
    ]
    assert seen.table("Predicted") == [
        ["<b>&", "T-shirt/top", "50.00%", "5"],
        ["T-shirt/top", "Trouser", "10.00%", "1"],
        ["T-shirt/top", "<b>&", "10.00%", "1"],
    ]


def test_wordnet_ids_are_shown_by_name(tmp_path):
    workdir = fake_run.make_run(tmp_path, classes=3)
    plan = json.loads((workdir / "stages.json").read_text())
    plan["class_names"] = ["n01440764", "n01443537"]
    (workdir / "stages.json").write_text(json.dumps(plan))
    assert workdirs.read_run(workdir).class_names == ["tench", "goldfish", "2"]


def test_many_classes_give_the_best_and_the_worst(tmp_path):
    seen = render(fake_run.make_run(tmp_path, classes=100))
    tables = seen.tables("Accuracy")
    best, worst = ([float(row[1][:-1]) for row in table] for table in tables)
    assert len(best) == len(worst) == 10
    assert best == sorted(best, reverse=True) and worst == sorted(worst)
    assert min(best) >= max(worst)


def test_unfinished_run(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("/data is <gone>")

    monkeypatch.setattr(pipeline, "make_train_data", fail)
    workdir = fake_run.make_run(tmp_path, done=0.4)
    seen = Page(report.write_report(workdir).read_text())
    assert {p.stem for p in (workdir / "plots").iterdir()} == FIGURES
    assert "Unfinished: 431 of 1,125 steps logged" in seen.text
    assert "The training data could not be read: /data is <gone>" in seen.text
    assert "There is no confusion matrix" in seen.text
    assert "Top-1, EMA 79.45% at epoch 3.0" in seen.text
    assert [row[-1] for row in seen.table("Stage")][1:] == ["–", "–", "–"]


def test_run_that_only_has_its_config(tmp_path):
    workdir = fake_run.make_run(tmp_path)
    for name in ("stages.json", "metrics.jsonl", "eval.json", "confusion.npy"):
        (workdir / name).unlink()
    seen = Page(report.write_report(workdir).read_text())
    assert not list((workdir / "plots").iterdir())
    assert "The run has not written its stages yet" in seen.text
    assert "Nothing has been logged yet" in seen.text


def test_broken_files_are_named(tmp_path):
    workdir = fake_run.make_run(tmp_path)
    with open(workdir / "metrics.jsonl", "a") as file:
        file.write('{"split": "train", "st')
    (workdir / "eval.json").write_text("{")
    (workdir / "confusion.npy").write_bytes(b"\x93NUMPY")
    text = render(workdir).text
    assert "1 damaged line(s) of metrics.jsonl were left out" in text
    assert "eval.json is damaged and was left out" in text
    assert "confusion.npy could not be read" in text


def test_steps_logged_twice_count_once(tmp_path):
    workdir = fake_run.make_run(tmp_path)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    again = json.loads(lines[3]) | {"loss": 123.0}
    (workdir / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(again)]))
    run = workdirs.read_run(workdir)
    assert [r["step"] for r in run.train] == sorted({r["step"] for r in run.train})
    assert [r["loss"] for r in run.train if r["step"] == again["step"]] == [123.0]


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(errors.InputError, match="workdir: .* is not a run") as error:
        report.write_report(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "config.json").write_text('{"config": 3}')
    with pytest.raises(errors.InputError, match="config.json' cannot be read"):
        report.write_report(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(errors.InputError, match="is not a run"):
        report.write_report(tmp_path / "nothing")


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    workdir = fake_run.make_run(tmp_path)
    for name in ("stages.json", "metrics.jsonl", "confusion.npy"):
        (workdir / name).unlink()
    (workdir / "plots").write_text("in the way")
    with pytest.raises(errors.InputError, match="cannot be written"):
        report.write_report(workdir)
    assert not (workdir / "report.html").exists()


def test_random_schedule_samples_each_size_once(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "make_train_data", GreyBatches)
    overrides = {"progressive.schedule": "random", "progressive.random_epochs": 1.0}
    workdir = fake_run.make_run(tmp_path, **overrides)
    samples = report.read_samples(workdirs.read_run(workdir))
    sizes = [sample.image_size for sample in samples]
    assert sizes == sorted(set(sizes)) and set(sizes) <= {16, 20, 24, 28}


def test_samples_are_the_images_the_run_trained_on(tmp_path):
    overrides = {"progressive.stages": 2, "data.randaugment_layers": 1}
    run = workdirs.read_run(fake_run.make_run(tmp_path, **overrides))
    samples = report.read_samples(run)
    config = fake_run.make_config(**overrides)
    stage = progressive.make_stages(config, fake_run.NUM_TRAIN_IMAGES)[1]
    batches = pipeline.make_train_data(config, stage, first_step=stage.first_step)
    batch = next(iter(batches))
    batches.close()
    np.testing.assert_array_equal(samples[1].images, batch["image"][:12])
    assert samples[1].labels == batch["label"][:12].tolist()
