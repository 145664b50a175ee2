"""The command group: bad input of any kind is one line and exit status 2."""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import click

from plateaulens import __version__


class Group(click.Group):
    """A command group in which bad input of any kind ends in one clear line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; ValueError and OSError become one line and exit status 2."""
        try:
            with warnings.catch_warnings():
                warnings.showwarning = lambda message, *rest, **more: click.echo(f"plateaulens: {message}", err=True)
                return super().invoke(ctx)
        except BrokenPipeError:  # `plateaulens tasks | head`: click knows what to do
            raise
        except (ValueError, OSError) as error:
            click.echo(f"plateaulens: {' '.join(str(error).split())}", err=True)
            sys.exit(2)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find a command; an unknown one is one line."""
        if args and self.get_command(ctx, args[0]) is None:
            from plateaulens._registry import unknown

            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


@click.group(cls=Group)
@click.version_option(__version__, prog_name="plateaulens")
def main() -> None:
    """See why a transformer's loss sits on a plateau before it drops.

    Example: plateaulens train mws --small --out runs/first
    """


option: Callable[..., Any] = partial(click.option, show_default=True)


def usable(device: str) -> None:
    """Raise in one line when torch cannot use a device here.

    Raises:
        ValueError: when it cannot.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from error


def given_values(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in values.items() if value is not None}
