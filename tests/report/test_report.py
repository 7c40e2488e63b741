"""pytest tests/report/test_report.py"""

import base64
import html
import html.parser
import io
import json
import re
import sys
import types

import numpy as np
import pytest
from PIL import Image

from ev2 import errors, progressive
from ev2.report import html as page
from ev2.report import report
from ev2.train import workdir as workdirs
from tests.helpers import fake_run

CLASS_FIGURES = {"confusion", "class_accuracy"}
FIGURES = {"progressive", "learning_curves", "stages", "learning_rate", "throughput"}
ALL_FIGURES = FIGURES | CLASS_FIGURES


class Page(html.parser.HTMLParser):
    """The tables as text, the resources and the running text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.resources, self.tags, self.words = [], [], set(), []
        self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        keys = ("src", "srcset", "href", "poster", "data", "action")
        self.resources += [value for key, value in attrs if key in keys]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append("".join(self._cell))
            self._cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self._cell is not None:
            self._cell.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def table(self, heading: str) -> list[list[str]]:
        """Rows of the first table that has the heading, without the headings."""
        return next(t[1:] for t in self.tables if heading in t[0])


class StubData(types.ModuleType):
    """Stands in for ev2.data.pipeline: grey images, the third of a stage is corrupt."""

    def __init__(self, error: Exception | None = None):
        super().__init__("ev2.data.pipeline")
        self.closed, self._error = 0, error

    def make_train_data(self, config, stage, *, first_step):
        assert first_step == stage.first_step
        if self._error:
            raise self._error
        n, side = stage.batch_size, stage.image_size
        batch = {
            "image": np.full((n, side, side, 3), 40 * stage.index, np.uint8),
            "label": np.arange(n, dtype=np.int32) % 10,
            "mask": (np.arange(n) != 2).astype(np.float32),
        }
        return _Batches(self, batch)


class _Batches:
    def __init__(self, stub, batch):
        self._stub, self._batch = stub, batch

    def __iter__(self):
        yield self._batch

    def close(self):
        self._stub.closed += 1


def use_data(monkeypatch, stub):
    """`from ev2.data import pipeline` gives the stub."""
    monkeypatch.setitem(sys.modules, "ev2.data.pipeline", stub)
    monkeypatch.setattr("ev2.data.pipeline", stub, raising=False)


def render(workdir) -> Page:
    """The page without figures."""
    return Page(page.render(workdirs.read_run(workdir), {}, [], "no samples"))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A finished run with its report, and the stub its samples came from."""
    workdir = fake_run.make_run(tmp_path_factory.mktemp("runs") / "full")
    (workdir / "plots").mkdir()
    (workdir / "plots" / "mine.png").write_bytes(b"mine")
    stub = StubData()
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_data(monkeypatch, stub)
        path = report.write_report(workdir)
    assert path == workdir / "report.html"
    return workdir, stub


def test_writes_its_own_files_and_no_others(full):
    workdir, _ = full
    made = {f"{name}.png" for name in ALL_FIGURES | {"samples"}}
    assert {p.name for p in (workdir / "plots").iterdir()} == made | {"mine.png"}
    assert (workdir / "plots" / "mine.png").read_bytes() == b"mine"
    run_files = {"config.json", "stages.json", "metrics.jsonl", "eval.json"}
    run_files |= {"confusion.npy", "plots", "report.html"}
    assert {p.name for p in workdir.iterdir()} == run_files


@pytest.mark.parametrize("name", sorted(ALL_FIGURES | {"samples"}))
def test_pictures_have_two_pixels_per_css_pixel(full, name):
    workdir, _ = full
    with Image.open(workdir / "plots" / f"{name}.png") as image:
        image.load()
        assert image.format == "PNG"
        widths = {"samples": 1440, "progressive": 1600}
        assert image.width == widths.get(name, 1120)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
        assert len(image.getcolors(2**20)) > 4
    assert (workdir / "plots" / f"{name}.png").stat().st_size < 200_000


def test_page_needs_nothing_but_itself(full):
    workdir, _ = full
    text = (workdir / "report.html").read_text()
    seen = Page(text)
    assert not re.search(r"https?://|url\(|@import", text)
    assert not seen.tags & {"script", "link", "iframe"}
    images = []
    for resource in seen.resources:
        head, content = resource.split(",")
        assert re.fullmatch("data:image/(png|jpeg);base64", head)
        images.append(base64.b64decode(content))
        Image.open(io.BytesIO(images[-1])).load()
    assert len(images) == 7 + 4 * 12  # twelve images for each of four stages
    for name in ALL_FIGURES:
        assert (workdir / "plots" / f"{name}.png").read_bytes() in images


def test_page_shows_the_results(full):
    workdir, _ = full
    seen = Page((workdir / "report.html").read_text())
    top1 = np.load(workdir / "confusion.npy").trace() / 2000
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
    workdir, _ = full
    rows = Page((workdir / "report.html").read_text()).table("Stage")
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
    workdir, stub = full
    text = (workdir / "report.html").read_text()
    assert stub.closed == 4
    assert "Stage 1: 20 px, RandAugment magnitude 2" in Page(text).text
    section = text[text.index("Training images</h2>") : text.index("Classes</h2>")]
    captions = re.findall("<figcaption>(.*?)</figcaption>", section)
    names = [html.escape(name) for name in fake_run.CLASS_NAMES]
    assert captions[:12] == [names[i % 10] for i in range(13) if i != 2]
    assert len(captions) == 48


def test_names_are_escaped(full):
    workdir, _ = full
    text = (workdir / "report.html").read_text()
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
    tables = [table[1:] for table in seen.tables if "Accuracy" in table[0]]
    best, worst = ([float(row[1][:-1]) for row in table] for table in tables)
    assert len(best) == len(worst) == 10
    assert best == sorted(best, reverse=True) and worst == sorted(worst)
    assert min(best) >= max(worst)


def test_unfinished_run(tmp_path, monkeypatch):
    use_data(monkeypatch, StubData(OSError("/data is <gone>")))
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
    with pytest.raises(
        errors.InputError, match="config.json' cannot be read or is damaged"
    ):
        report.write_report(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    with pytest.raises(errors.InputError, match="is not a run"):
        report.write_report(tmp_path / "nothing")


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    workdir = fake_run.make_run(tmp_path)
    (workdir / "stages.json").unlink()
    (workdir / "metrics.jsonl").unlink()
    (workdir / "confusion.npy").unlink()
    (workdir / "plots").write_text("in the way")
    with pytest.raises(errors.InputError, match="cannot be written"):
        report.write_report(workdir)
    assert not (workdir / "report.html").exists()


def test_random_schedule_samples_each_size_once(tmp_path, monkeypatch):
    use_data(monkeypatch, StubData())
    overrides = {"progressive.schedule": "random", "progressive.random_epochs": 1.0}
    workdir = fake_run.make_run(tmp_path, **overrides)
    samples = report.read_samples(workdirs.read_run(workdir))
    sizes = [sample.image_size for sample in samples]
    assert sizes == sorted(set(sizes)) and set(sizes) <= {16, 20, 24, 28}


def test_samples_are_the_images_the_run_trained_on(tmp_path):
    overrides = {"progressive.stages": 2, "data.randaugment_layers": 1}
    run = workdirs.read_run(fake_run.make_run(tmp_path, **overrides))
    samples = report.read_samples(run)
    from ev2.data import pipeline

    config = fake_run.make_config(**overrides)
    stage = progressive.make_stages(config, fake_run.NUM_TRAIN_IMAGES)[1]
    batches = pipeline.make_train_data(config, stage, first_step=stage.first_step)
    batch = next(iter(batches))
    batches.close()
    np.testing.assert_array_equal(samples[1].images, batch["image"][:12])
    assert samples[1].labels == batch["label"][:12].tolist()
