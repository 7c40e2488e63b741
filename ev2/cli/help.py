"""Texts of the help. `python -m ev2.cli.help` prints every command as Markdown."""

import textwrap
from collections.abc import Iterable, Sequence

from ev2.cli import commands, flags

_WIDTH = 88
_END = """ev2 COMMAND --help lists the flags; ev2 --version prints the version
exit codes: 0 done, 1 failed, 2 bad input, 75 preempted (run again), 130 Ctrl-C"""
_PAGE_HEAD = """# Commands

Every command with its flags, as `ev2 COMMAND --help` prints them. With
`--config=RECIPE` beside `--help`, it also prints every key of the recipe with its value
and meaning. The exit codes are listed under [training](training.md#exit-codes).

This page is written by `python -m ev2.cli.help > docs/commands.md`."""


def format_overview(names: Iterable[str] = commands.COMMANDS) -> str:
    """Returns the usage of `ev2` and the summaries of the commands `names`."""
    lines = ["usage: ev2 COMMAND [--flag=value ...]"]
    names = set(names)
    for heading, group in commands.GROUPS.items():
        chosen = [name for name in group if name in names]
        lines += ["", heading] if chosen else []
        lines += [f"  {n:<23}{commands.load(n).summary}" for n in chosen]
    return "\n".join([*lines, "", _END])


def format_usage(command: commands.Command) -> str:
    """Returns the command line with its required flags."""
    required = [f"--{flag.name}=..." for flag in command.flags if flag.required]
    words = ["ev2", command.name, *required, "[flags]", command.arguments]
    return " ".join(words).rstrip()


def format_command(command: commands.Command) -> str:
    """Returns the summary, usage, example and flags of a command."""
    return (
        f"usage: {format_usage(command)}\n\n{command.summary}\n\n"
        f"example: {command.example}\n\n{_format_flags(command.flags)}"
    )


def _format_flags(definitions: Sequence[flags.Flag]) -> str:
    """Returns the flags in one column and their texts in a second one."""
    names = [("--[no]" if f.default is False else "--") + f.name for f in definitions]
    indent = max(map(len, names)) + 4
    lines = []
    for name, flag in zip(names, definitions, strict=True):
        text = textwrap.wrap(_describe_flag(flag), _WIDTH - indent)
        lines += [f"{f'  {name}':<{indent}}{text[0]}"]
        lines += [" " * indent + line for line in text[1:]]
    return "\n".join(lines)


def _describe_flag(flag: flags.Flag) -> str:
    """Returns the text of a flag with its choices and default in parentheses."""
    notes = [", ".join(filter(None, flag.enum_values))] if flag.enum_values else []
    if flag.required:
        notes.append("required")
    elif flag.default:
        notes.append(f"default: {flag.default}")
    return f"{flag.text} ({'; '.join(notes)})" if notes else flag.text


def describe_commands() -> str:
    """Returns docs/commands.md: every command with usage, example and flags."""
    parts = [_PAGE_HEAD]
    for heading, group in commands.GROUPS.items():
        parts.append(f"## {heading}")
        for command in map(commands.load, group):
            parts.append(f"### `ev2 {command.name}`\n\n{command.summary}")
            parts.append(f"```sh\n{format_usage(command)}\n{command.example}\n```")
            rows = [f"| `--{f.name}` | {_describe_flag(f)} |" for f in command.flags]
            parts.append("\n".join(["| flag | meaning |", "|---|---|", *rows]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(describe_commands())
