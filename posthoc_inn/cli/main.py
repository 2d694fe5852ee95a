"""The command group, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import importlib
import io
import os
import sys
import warnings
from typing import Any, NoReturn, TextIO

import click

from posthoc_inn import __version__
from posthoc_inn.cli.echo import echo
from posthoc_inn.errors import PosthocInnError, PosthocInnWarning, cut, suggest

DEBUG = "POSTHOC_INN_DEBUG"
"""Environment variable that asks for tracebacks."""

EXIT_ERROR, EXIT_DEFECT, EXIT_INTERRUPTED = 1, 70, 130

COMMANDS: dict[str, tuple[str, str]] = {
    "fit": (
        "posthoc_inn.cli.fit.command",
        "Recover a layer's invariances; with no option, on embedded digits.",
    ),
    "demo": ("posthoc_inn.cli.fit.command", "The same as fit: with no option, the embedded example."),
    "layers": ("posthoc_inn.cli.layers", "List a model's layers: output shapes, and which are true cuts."),
    "sample": ("posthoc_inn.cli.sample", "Draw images that are nearly the same to a layer as given ones."),
    "edit": ("posthoc_inn.cli.edit", "Change a concept of images: take it from others, draw it anew, walk."),
    "analyze": (
        "posthoc_inn.cli.analyze",
        "Analyse a fitted layer: relevance, attack, response, and more, in one report.",
    ),
    "report": ("posthoc_inn.cli.report", "Write the report of a finished run, or of a bundle, anew."),
    "compare": ("posthoc_inn.cli.compare", "Compare models on groups of images: texture bias, another domain."),
    "sweep": ("posthoc_inn.cli.sweep", "Compare layers, checkpoints or models, with one autoencoder and one e."),
    "app": ("posthoc_inn.cli.app", "Play with fitted layers in a browser; with no option, the embedded example."),
    "plugins": ("posthoc_inn.cli.list_plugins", "List what is registered, and by whom."),
    "doctor": ("posthoc_inn.cli.doctor", "Check this machine: versions, plugins, speed, disk space."),
}
"""Name -> (module that holds it as `command`, what it does in a line)."""


class LazyGroup(click.Group):
    """Imports a command's module only when that command is asked for; plugins' commands stand beside the built-in ones.

    >>> cli = LazyGroup("posthoc-inn")
    >>> cli.list_commands(click.Context(cli))[:2]
    ['fit', 'demo']
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the built-in commands in their own order, then the plugins' sorted."""
        self._load_plugins()
        return [*COMMANDS, *sorted(n for n in self.commands if n not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command called `cmd_name`, or None."""
        if cmd_name in COMMANDS:
            command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
            return command
        self._load_plugins()
        return self.commands.get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` name; a miss lists the nearest names."""
        try:
            name, command, rest = super().resolve_command(ctx, args)
        except click.UsageError:
            known = self.list_commands(ctx)
            raise click.UsageError(f"There is no command {args[0]!r}. {suggest(args[0], known)}", ctx) from None
        # click names it by the command object, which `demo` shares with `fit`.
        return (args[0] if name is not None else None), command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing the built-in ones."""
        rows = []
        for name in self.list_commands(ctx):
            told = COMMANDS[name][1] if name in COMMANDS else self.commands[name].get_short_help_str(limit=90)
            rows.append((name, told))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _load_plugins(self) -> None:
        from posthoc_inn.plugins import get_plugin_manager

        missing = click.Group()
        get_plugin_manager().register_commands(missing, taken=COMMANDS)
        for name, command in missing.commands.items():
            self.commands.setdefault(name, command)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="posthoc-inn")
def cli() -> None:
    """See what a trained vision network has learned to see, and what it has learned to ignore.

    `posthoc-inn fit` alone runs a complete example on embedded data.
    """


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Exit codes: 0; 1 for anything a user can put right (one line on standard error); 2 for wrong usage; 70 for a
    defect of this program; 130 after Ctrl-C.

    Args:
        args: The arguments; those of the process by default.
    """
    debug = os.environ.get(DEBUG, "") not in ("", "0")
    _never_fail_to_print()
    try:
        with warnings.catch_warnings():
            _show_own_warnings_in_a_line(debug)
            code = cli.main(args, prog_name="posthoc-inn", standalone_mode=False)
    except (click.Abort, KeyboardInterrupt) as error:
        _tell(str(error.__cause__ or error) or "Interrupted.")
        code = EXIT_INTERRUPTED
    except click.ClickException as error:
        told = io.StringIO()
        error.show(told)
        echo(cut(told.getvalue().rstrip()), err=True)  # it repeats what was typed
        code = error.exit_code
    except PosthocInnError as error:
        if debug:
            raise
        _tell(f"Error: {one_line(error)}")
        code = EXIT_ERROR
    except BrokenPipeError:
        # The reader of a pipe has gone (`posthoc-inn layers | head`): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_ERROR
    except OSError as error:
        if debug:
            raise
        _tell(f"Error: {one_line(error)}")
        code = EXIT_ERROR
    except Exception as error:
        if debug:
            raise
        if type(error).__name__ in ("MemoryError", "OutOfMemoryError"):
            _tell(
                f"Error: there is not enough memory ({one_line(error) or 'for this'}). Use smaller images or a preset."
            )
            sys.exit(EXIT_ERROR)
        _tell(
            f"Error: {type(error).__name__}: {one_line(error)} (this is a defect of posthoc-inn; run again with "
            f"{DEBUG}=1 for the traceback, and report it)"
        )
        code = EXIT_DEFECT
    sys.exit(code if isinstance(code, int) else 0)


def one_line(error: BaseException) -> str:
    """Return an error's text as one line that ends.

    >>> one_line(ValueError("a" + chr(10) + "  b"))
    'a b'
    """
    return cut(" ".join(str(error).split()))


def _never_fail_to_print() -> None:
    """Print a question mark for what a terminal's encoding lacks, rather than stop at the end of a long fit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _tell(text: str) -> None:
    echo(text, err=True)


def _show_own_warnings_in_a_line(debug: bool) -> None:
    """Show our own warnings as a line each; those of libraries only where tracebacks are asked for."""
    usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> Any:
        if issubclass(category, PosthocInnWarning):
            _tell(f"Warning: {' '.join(str(message).split())}")
        elif debug:
            usual(message, category, filename, lineno, file, line)

    warnings.showwarning = show


if __name__ == "__main__":
    main()
