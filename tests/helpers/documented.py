"""Commands in the code blocks of the README and the documentation pages."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"


def pages() -> list[pathlib.Path]:
    """The README, CONTRIBUTING and every page of docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def shell_lines(page: pathlib.Path) -> list[list[str]]:
    """The words of every command in the page's ```sh blocks, comments removed."""
    blocks = re.findall(
        r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def launch_commands(script: str) -> list[list[str]]:
    """The arguments of every `python SCRIPT ...` in docs/, in the order of pages."""
    return [
        words[2:]
        for page in sorted(DOCS.glob("*.md"))
        for words in shell_lines(page)
        if words[:2] == ["python", script]
    ]
