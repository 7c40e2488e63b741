"""The README and docs/: the links, paths and commands that they name exist.

python -m pytest tests/test_docs.py
"""

import importlib.util
import pathlib
import re
import shlex

import pytest

from ev2.cli import commands, flags
from ev2.cli import help as cli_help
from tests.helpers import documented

ROOT = documented.ROOT
README_LINES = 150
PAGES = {str(page.relative_to(ROOT)): page for page in documented.pages()}
every_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("name", [*PAGES, "CHANGELOG.md"])
def test_links_have_targets(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code_blocks(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked), target


@every_page
def test_paths_exist(page):
    directories = r"(?:\.github|configs|docs|ev2|launch|tests)"
    path = re.compile(rf"(?<![\w./-]){directories}/(?:[\w.-]+/)*(?:[\w-]+\.\w+)?")
    paths = path.findall(re.sub(r"https://\S+", "", page.read_text()))
    assert [path for path in paths if not (ROOT / path).exists()] == []


@every_page
def test_commands_in_blocks_parse(page):
    makefile = (ROOT / "Makefile").read_text()
    for words in documented.shell_lines(page):
        if words[0] == "ev2":
            _parse(words[1:])
        elif words[0] == "make":
            assert re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE), words
        elif words[0].endswith("python") and words[1] == "-m":
            assert importlib.util.find_spec(words[2]), words
        elif words[0].endswith("python"):
            assert (ROOT / words[1]).exists(), words


@every_page
def test_commands_in_sentences_parse(page):
    for code in re.findall(r"`(ev2 [a-z][^`]*)`", _without_code_blocks(page)):
        _parse(shlex.split(code)[1:], whole=False)


def test_readme_launches_as_documented():
    """The commands of the pages are compared with their dry runs in tests/launch."""
    documented_commands = [
        *documented.launch_commands("launch/tpu.py"),
        *documented.launch_commands("launch/sweep.py"),
    ]
    for words in documented.shell_lines(ROOT / "README.md"):
        if words[0] == "python":
            assert words[2:] in documented_commands


def test_commands_page_is_generated():
    """Update it with `python -m ev2.cli.help > docs/commands.md`."""
    page = documented.DOCS / "commands.md"
    assert page.read_text() == cli_help.describe_commands() + "\n"


def _parse(words: list[str], *, whole: bool = True) -> None:
    """Parses a command as `ev2` does, with its recipe if that is a file.

    Args:
        words: after `ev2`; placeholders such as [flags] and ... are ignored.
        whole: required flags and arguments have to be there.
    """
    words = [word for word in words if word[0] not in "[.&"]
    if commands.list_followers(" ".join(words)):
        return  # a group, such as `ev2 bench`
    command = commands.load(commands.find(words))
    words = words[len(command.name.split()) :]
    names = {flag.name for flag in command.flags}
    recipes = [word for word in words if word.startswith("--config=")]
    if not all((ROOT / re.split("[=:]", word)[1]).is_file() for word in recipes):
        given = {re.split("[=.]", word[2:])[0] for word in words if word[:2] == "--"}
        assert given <= names, words
        return
    words = [word for word in words if word != "--help"]
    _, arguments = flags.parse(command.flags, words, check_required=whole)
    assert not whole or bool(arguments) == bool(command.arguments), words


def _anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as Markdown renderers make them."""
    headings = re.findall(r"^#+ (.+)$", _without_code_blocks(page), re.MULTILINE)
    kept = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s+", "-", heading) for heading in kept}


def _without_code_blocks(page: pathlib.Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
