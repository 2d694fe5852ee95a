"""Command lines that nobody would type on purpose: every command, its own options, values of every kind."""

from __future__ import annotations

from pathlib import Path

import click
from hypothesis import strategies as st

from posthoc_inn.cli.main import COMMANDS, cli

WORDS = (
    "",
    " ",
    "0",
    "1",
    "2",
    "-1",
    "1.5",
    "nan",
    "inf",
    "1e999",
    "none",
    "auto",
    "cpu",
    "cuda:9",
    "train",
    "DEFAULT",
    "small_cnn",
    "pool",
    "layer4",
    "features.3",
    "labels",
    "attributes",
    "color-digits",
    "digits",
    "table.csv",
    "pictures",
    "pictures/00.png",
    "empty",
    "text.png",
    "nowhere",
    "../nowhere",
    "/dev/null",
    "a:b",
    "os:system",
    "math:pi",
    "0.5,0.5,0.5",
    "a=1",
    "=",
    "[red]x[/red]",
    "$x^$",
    "\x1b[31m",
    "\udcff",
    "日本",
    "a" * 3000,
    "--",
    "-",
    "--steps",
    "--help",
)
"""Values, some of which mean something in the directory that `prepare` makes."""

FEW_STEPS = ("--steps", "1", "--autoencoder-steps", "1", "--classifier-steps", "1", "--concept-steps", "1")


NETWORK = ("--backbone", "small_cnn", "--weights", "none")
GOOD = {
    "fit": (*NETWORK, "--layer", "pool", "--data", "pictures"),
    "layers": NETWORK,
    "sweep": ("--backbone", "small_cnn", "--layer", "pool", "--data", "pictures"),
    **{name: ("--bundle", "run/bundle", "--images", "pictures") for name in ("sample", "edit", "analyze", "walk")},
}
"""Options with which a command does something, for command lines that go wrong later than at the first word."""


def prepare(directory: Path) -> None:
    """Put a few files there that values of `WORDS` name, and a run."""
    from children import in_child
    from PIL import Image

    from posthoc_inn.cli.main import main

    (directory / "pictures").mkdir()
    (directory / "empty").mkdir()
    for number in range(8):
        Image.effect_noise((28, 28), 80 + number).convert("RGB").save(directory / "pictures" / f"{number:02}.png")
    (directory / "text.png").write_text("no picture")
    (directory / "table.csv").write_text("file,a\n00.png,1\n01.png,0\n02.png,1\n")
    data = ("--data", str(directory / "pictures"), "--out", str(directory / "run"), "--quiet")
    ended = in_child(lambda: main(["fit", *NETWORK, "--layer", "pool", *data, *FEW_STEPS[:4]]))
    assert ended.code == 0, ended.err


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Draw a command with some of its options, most of them with a value."""
    name = draw(st.sampled_from(sorted(COMMANDS)))
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    words = st.one_of(st.sampled_from(WORDS), st.text(max_size=8))
    line = [name]
    if draw(st.booleans()):
        line += GOOD.get(name, ())
    for option in draw(st.lists(st.sampled_from(command.params), max_size=5)):
        choices = [*option.type.choices] if isinstance(option.type, click.Choice) else []
        value = draw(st.one_of(words, st.sampled_from(choices)) if choices else words)
        if isinstance(option, click.Argument):
            line.append(value)
            continue
        line.append(draw(st.sampled_from(option.opts)))
        if not option.is_flag:
            line.append(value)
    if name in ("fit", "demo"):
        # A long training is no fault: what comes last counts.
        line += [word for word in FEW_STEPS if "--" not in line]
    return [word.replace("\x00", "") for word in line]


def problem(code: int | None, err: str) -> str:
    """Return what is wrong with how a command line ended, or ""."""
    if code is None:
        return "it hangs"
    if code not in (0, 1, 2):
        return f"it ended with {code}: {err[-500:]}"
    if "Traceback" in err:
        return f"a traceback: {err[-500:]}"
    if code and not err.strip():
        return "it failed without a word"
    long = [line for line in err.splitlines() if len(line) > 2000]
    return f"a line of {len(long[0])} characters: {long[0][:200]}" if long else ""
