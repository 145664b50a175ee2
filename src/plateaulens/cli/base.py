"""The `plateaulens` command group; any bad input ends in one line and exit status 2."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from plateaulens import __version__
from plateaulens._registry import unknown


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Print a ValueError, an OSError or an error of usage as one line, and exit with status 2."""
    try:
        yield
    except BrokenPipeError:  # `plateaulens tasks | head`: click ends quietly
        raise
    except click.UsageError as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # click 8.2: "print the help"
            raise
        _exit(error.format_message())
    except (ValueError, OSError) as error:
        _exit(str(error))


def _exit(message: str) -> None:
    click.echo(f"plateaulens: {' '.join(message.split())}", err=True)
    sys.exit(2)


class Group(click.Group):
    """A group of commands whose errors are one line each, with the nearest name for an unknown command."""

    kind = "command"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options of the group itself."""
        with errors_in_one_line():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; warnings are printed as one line each."""
        with errors_in_one_line(), warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest, **more: click.echo(f"plateaulens: {message}", err=True)
            return super().invoke(ctx)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """The command that `args` begin with.

        Raises:
            ValueError: for an unknown command, with the nearest name.
        """
        if args and self.get_command(ctx, args[0]) is None:
            raise unknown(self.kind, args[0], self.commands)
        return super().resolve_command(ctx, args)


@click.group(cls=Group)
@click.version_option(__version__, prog_name="plateaulens")
def main() -> None:
    """Study why a transformer's loss stays on a plateau before it drops.

    Example: plateaulens train mws --small --out runs/first
    """


option: Callable[..., Any] = partial(click.option, show_default=True)


def require_device(device: str) -> None:
    """Check that torch can use a device on this machine.

    Raises:
        ValueError: when it cannot.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); try cpu") from error


def given_values(values: dict[str, Any]) -> dict[str, Any]:
    """The options that were given on the command line, without those that are None."""
    return {name: value for name, value in values.items() if value is not None}
