"""Look-up of names in a dict, with an error that suggests the nearest known name."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for an unknown name, with the nearest known names, or a list of known ones."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names[:30])}"
    return ValueError(f"unknown {kind} {name!r}; {hint}")


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`, or a ValueError that suggests the nearest name."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def check_choices(config: Any) -> None:
    """Raise if a field of the dataclass whose type is a `Literal` has another value, with the nearest choice."""
    for field in fields(config):
        if get_origin(field.type) is Literal:
            look_up(field.name, getattr(config, field.name), dict.fromkeys(get_args(field.type)))


def build(cls: type[T], values: Mapping[str, Any], kind: str) -> T:
    """A dataclass from JSON values; lists become tuples.

    Args:
        cls: The dataclass.
        values: Values of its fields by name.
        kind: What is built, for error messages.

    Raises:
        ValueError: If a key is unknown or a required one is missing.
    """
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise unknown(f"{kind} key", key, known)
    missing = [k for k, f in known.items() if k not in values and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise ValueError(f"{kind} lacks {', '.join(missing)}; it has {', '.join(values) or 'no values'}")
    return cls(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
