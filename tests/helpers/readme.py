"""Commands of launch/README.md, which tests run."""

import pathlib
import re
import shlex

README = pathlib.Path(__file__).parents[2] / "launch/README.md"


def commands(script: str) -> list[list[str]]:
    """The words after "python SCRIPT" in the README's code blocks."""
    found = []
    blocks = r"^```sh\n(.*?)^```"
    for block in re.findall(blocks, README.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", script]:
                found.append(words[2:])
    return found
