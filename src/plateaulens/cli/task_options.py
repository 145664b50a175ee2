"""Options of `plateaulens train TASK`, made from the fields of the task, of `ModelConfig` and of `TrainConfig`."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import click

from plateaulens._registry import look_up

MODEL_OPTIONS = {
    "attention": "Attention of the model: linear or softmax.",
    "n_layers": "Number of layers.",
    "n_heads": "Number of attention heads in each layer.",
    "d_model": "Width of the residual stream.",
    "init_scale": "Factor on all initial weights.",
}
TRAIN_OPTIONS = {
    "steps": "Number of optimizer updates.",
    "batch_size": "Number of examples in each update.",
    "lr": "Learning rate.",
    "optimizer": "Optimizer: adam, adamw, sgd or muon.",
    "momentum": "Momentum of sgd and muon; 0 for sgd and 0.95 for muon unless given.",
    "adam_lr": "Learning rate of the parameters that muon leaves to AdamW; 1e-4 unless given.",
    "schedule": "Schedule of the learning rate: constant, cosine or wsd (warm-up, stable, decay).",
    "warmup": "Number of updates over which the learning rate rises.",
    "decay": "Number of last updates over which the learning rate of wsd falls.",
    "weight_decay": "Weight decay, applied to every parameter.",
    "grad_clip": "Largest global norm of the gradient; not clipped unless given.",
}
FLAGS = {"n_layers": "--layers", "n_heads": "--heads"}


def field_options(
    cls: type, prefix: str, texts: Mapping[str, str], defaults: Any, small_defaults: Any
) -> list[click.Option]:
    """One option for each documented field of a dataclass.

    Args:
        cls: The dataclass.
        prefix: Start of the parameter names, such as "task" for `task_n`.
        texts: Help of each field that becomes an option.
        defaults: Instance of `cls` whose values the help shows as defaults.
        small_defaults: The same for `--small`.
    """
    annotations = {field.name: field.type for field in fields(cls)}
    options = []
    for name, text in texts.items():
        flag = FLAGS.get(name, f"--{name.replace('_', '-')}")
        negated = f"--{flag.removeprefix('--no-')}" if flag.startswith("--no-") else f"--no-{flag[2:]}"
        kind = _kind(annotations[name])
        value, small_value = (_shown(getattr(config, name), flag, negated) for config in (defaults, small_defaults))
        shown = [value, f"{small_value} with --small"] if small_value != value else [value]
        options.append(
            click.Option(
                [f"{flag}/{negated}" if kind is bool else flag, f"{prefix}_{name}"],
                type=kind,
                default=None,
                help=text + (f"  [default: {'; '.join(shown)}]" if value else ""),
            )
        )
    return options


def field_texts(cls: type) -> dict[str, str]:
    """Description of each field that the docstring of a dataclass or of a base of it has, as sentences."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        docstring = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        section = re.search(r"^(?:Args|Attributes):\n((?: +.*\n?|\n)+)", docstring, re.M)
        entries = re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section[1], re.M) if section else []
        for name, text in entries:
            sentence = " ".join(text.replace("`", "").split())
            texts[name] = f"{sentence[0].upper()}{sentence[1:].rstrip('.')}."
    return {field.name: texts[field.name] for field in fields(cls) if field.name in texts}


class OneOf(click.ParamType):
    """One of a few words; the error for another one has the nearest of them."""

    name = "text"

    def __init__(self, choices: tuple[str, ...]) -> None:
        self.choices = choices

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The value, if it is one of the choices."""
        flag = param.opts[0] if param else "value"
        return look_up(flag, str(value), {choice: choice for choice in self.choices})


class IntegerList(click.ParamType):
    """Integers separated by commas."""

    name = "integers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The integers of `value`, as in 4,5,6."""
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of integers separated by commas, as in 4,5,6", param, ctx)


def _kind(annotation: Any) -> Any:
    """The type of an option whose field has `annotation`: that of the first member of a union."""
    if get_origin(annotation) is Literal:
        return OneOf(get_args(annotation))
    if get_origin(annotation) is tuple:
        return IntegerList()
    members: Sequence[Any] = [member for member in get_args(annotation) if member is not NoneType]
    return _kind(members[0]) if members else annotation


def _shown(value: Any, flag: str, negated: str) -> str:
    """A default as it would be typed on the command line; empty for None."""
    if isinstance(value, bool):
        return flag if value else negated
    if isinstance(value, tuple) and all(isinstance(part, int) for part in value):
        return ",".join(map(str, value))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
