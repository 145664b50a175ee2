"""Look a name up in a plain dict; an unknown one raises with the nearest known name."""

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that is not there: what it was, the nearest names, a few of the rest."""
    names = sorted(known)
    near = get_close_matches(name, names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(names[:30])}"
    return ValueError(f"unknown {kind} {name!r}; {hint}")


def look_up(kind: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`, or a ValueError that suggests the nearest name."""
    if name not in table:
        raise unknown(kind, name, table)
    return table[name]


def build(cls: type[T], values: Mapping[str, Any], kind: str) -> T:
    """A dataclass from plain (JSON) values; an unknown or missing key raises.

    JSON has no tuples: lists become tuples, as frozen configs hold them.
    """
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise unknown(f"{kind} key", key, known)
    missing = [k for k, f in known.items() if k not in values and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise ValueError(f"{kind} lacks {', '.join(missing)}")
    return cls(**{name: _tuples(value) for name, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
