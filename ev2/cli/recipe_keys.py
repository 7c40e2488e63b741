"""The keys of a recipe with their values, and the comments that explain them."""

import ast
import io
import pathlib
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any

import ev2
from ev2 import progressive

_SCHEMA = pathlib.Path(ev2.__file__).with_name("config.py")


def format_keys(config: Any, path: str) -> str:
    """Returns a line for each key of a config, and what the key means below it.

    Args:
        config: a ConfigDict.
        path: FILE[:ARGUMENT] of the recipe, which explains keys of its own.
    """
    recipe = pathlib.Path(path.partition(":")[0])
    comments = read_comments(_SCHEMA)
    comments |= {f"progressive.{s.name}": s.meaning for s in progressive.STRENGTHS}
    for key, comment in read_comments(recipe).items():
        comments.setdefault(key, comment)
    order = {key: index for index, key in enumerate(comments)}
    keys = sorted(_list_keys(config), key=lambda item: order.get(item[0], len(order)))
    lines = [f"keys of {path}, set by --config.KEY=VALUE"]
    for key, value in keys:
        lines.append(f"  {key} = {value}")
        lines += ["      " + line for line in textwrap.wrap(comments.get(key, ""), 82)]
    return "\n".join(lines)


def _list_keys(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields names and values; a recipe inside a chain or a search is one line."""
    for name, value in section.items():
        if not hasattr(value, "items"):
            yield prefix + name, repr(value)
        elif "optimizer" in value:
            yield prefix + name, "a recipe, with the keys of ev2/config.py"
        else:
            yield from _list_keys(value, f"{prefix}{name}.")


def read_comments(path: pathlib.Path) -> dict[str, str]:
    """Returns the comments above or beside the assignments of a config file.

    Args:
        path: Python source. `config.KEY = ...` assigns to KEY, and in a function that
            makes the section `data`, `data.KEY = ...` to data.KEY. A comment above
            several lines belongs to each of them without a comment of its own.
    """
    source = path.read_text()
    above, beside = {}, {}  # line number: text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own_line = token.line.lstrip().startswith("#")
            (above if own_line else beside)[token.start[0]] = token.string[1:].strip()
    meanings: dict[str, str] = {}
    shared, end = "", 0
    statements = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Assign)]
    for node in sorted(statements, key=lambda node: node.lineno):
        first = node.lineno
        while first - 1 in above:
            first -= 1
        lines = [above[line] for line in range(first, node.lineno)]
        same = beside.get(node.end_lineno or 0, "")
        if lines or same or node.lineno != end + 1:
            shared = " ".join(lines)
        end = node.end_lineno or 0
        if isinstance(node.targets[0], ast.Attribute):
            key = ast.unparse(node.targets[0]).removeprefix("config.")
            meanings[key] = meanings.get(key) or f"{shared} {same}".strip()
    return meanings
