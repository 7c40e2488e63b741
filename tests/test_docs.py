"""The README and docs/: links, anchors, paths and commands that they name exist.

python -m pytest tests/test_docs.py
"""

import pathlib
import re

import pytest

from tests.helpers import documented

ROOT = documented.ROOT
README_LINES = 150
PAGES = {
    str(page.relative_to(ROOT)): page
    for page in [*documented.pages(), ROOT / "CHANGELOG.md"]
}
every_page = pytest.mark.parametrize("name", PAGES)
every_current_page = pytest.mark.parametrize("name", [*PAGES][:-1])


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@every_page
def test_links_lead_somewhere(name):
    page = PAGES[name]
    prose = _without_code_blocks(page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in _anchors(linked), target


@every_current_page
def test_paths_exist(name):
    folders = r"(?:\.github|configs|docs|ev2|launch|tests)"
    path = re.compile(rf"(?<![\w./-]){folders}/(?:[\w.-]+/)*(?:[\w-]+\.\w+)?")
    text = re.sub(r"https?://\S+", "", PAGES[name].read_text())
    paths = path.findall(text)
    assert [found for found in paths if not (ROOT / found).exists()] == []


def test_readme_launches_as_the_pages_do():
    """Whose commands tests/launch compares with their dry runs."""
    documented_runs = [
        *documented.launch_commands("launch/tpu.py"),
        *documented.launch_commands("launch/sweep.py"),
    ]
    for words in documented.shell_lines(ROOT / "README.md"):
        if words[0] == "python":
            assert words[2:] in documented_runs


def _anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as Markdown renderers make them."""
    text = _without_code_blocks(page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    kept = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s+", "-", heading) for heading in kept}


def _without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
