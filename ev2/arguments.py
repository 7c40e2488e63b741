"""What stands behind the colon of `--config=FILE:NAME,key=value`."""

from collections.abc import Mapping, Sequence


def parse(
    file: str, argument: str, options: Mapping[str, Sequence[str]]
) -> tuple[list[str], dict[str, str]]:
    """Returns the names of an argument, and the value of every option.

    Args:
        file: name of the recipe, for errors.
        argument: names and `key=value`, with commas between.
        options: values that each key may have, the first being its default; () for
            any whole number, by default 0.

    Raises:
        ValueError: an option or its value is not known.
    """
    names = []
    values = {key: allowed[0] if allowed else "0" for key, allowed in options.items()}
    for word in argument.split(","):
        key, equals, value = word.partition("=")
        if not equals:
            names.append(word)
            continue
        allowed = options.get(key)
        if allowed is None or (
            value not in allowed if allowed else not value.isdigit()
        ):
            known = [
                f"{key}={choice}"
                for key, choices in options.items()
                for choice in choices or ("NUMBER",)
            ]
            raise ValueError(
                f"{file}: {word!r} is not known; choose one of {', '.join(known)}"
            )
        values[key] = value
    return names, values


def choose(
    file: str, names: Sequence[str], choices: Mapping[str, Sequence[str]]
) -> list[str]:
    """Returns the names, one for each of `choices`, in their order.

    Args:
        file: name of the recipe, for errors.
        names: from `parse`.
        choices: what each name may be, by what it is the name of.

    Raises:
        ValueError: too many or too few names, or one that is not known.
    """
    for i, (kind, allowed) in enumerate(choices.items()):
        name = names[i] if i < len(names) else ""
        if name not in allowed:
            raise ValueError(
                f"{file}: there is no {kind} {name!r}; choose one of "
                f"{', '.join(allowed)}"
            )
    if len(names) > len(choices):
        raise ValueError(
            f"{file}: {names[len(choices)]!r} is one name too many; give "
            f"{','.join(choices).upper()}"
        )
    return list(names)
