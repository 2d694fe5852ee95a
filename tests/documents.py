"""What the tests of documents share: their blocks, the names that readers bring, and how a command line is checked."""

from __future__ import annotations

import re
import shlex
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import pytest
import torch
from safetensors.torch import save_file
from small_parts import STEPS, tiny_default
from torch import nn
from torch.utils.data import DataLoader, Subset

import posthoc_inn
from posthoc_inn import GivenGenerator, ImageSpec, Inverter, config, invert_by_optimization
from posthoc_inn.cli.main import cli
from posthoc_inn.datasets import ColorDigits
from posthoc_inn.features import LayerExtractor

ROOT = Path(__file__).parents[1]
LAYER = "layer3"


@dataclass(frozen=True)
class Block:
    """What stands between two fences, and the line of the document at which it begins."""

    language: str
    text: str
    line: int


def blocks(document):
    """Return the fenced blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[1].lower(), m[2], text[: m.start(2)].count("\n") + 1) for m in found]


def command_lines(document):
    """Yield (line number, command) for each posthoc-inn and make command, in blocks and in the text."""
    for block in blocks(document):
        if block.language in ("", "bash", "sh", "shell", "console"):
            whole = re.sub(r"\\\n", "  ", block.text)
            for number, line in enumerate(whole.splitlines(), block.line):
                if re.match(r"(\$ )?(posthoc-inn|make)\b", line):
                    yield number, line.removeprefix("$ ")
    text = re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), document.read_text("utf-8"), flags=re.M | re.S)
    for found in re.finditer(r"`((?:posthoc-inn|make) [^`]+)`", text):
        yield text[: found.start()].count("\n") + 1, found[1]


def a_readers_model():
    """A network in training, as users have them, with the layers that documents name."""
    parts = OrderedDict(
        layer1=nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        layer2=nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()),
        layer3=nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()),
        head=nn.Sequential(nn.Flatten(), nn.Linear(8 * 16, 10)),
    )
    return nn.Sequential(parts).train()


def what_readers_bring():
    """The names that a document may use without making them: a model, images, what is known of them."""
    data = Subset(ColorDigits(seed=0), range(120))
    items = [data[i] for i in range(len(data))]
    pictures = torch.stack([item[0] for item in items])
    digits = torch.tensor([int(item[1]) for item in items])
    model = a_readers_model()
    pairs = torch.arange(len(data)).reshape(-1, 2)
    yes_or_no = torch.arange(len(data)) % 2
    some = torch.randn(4, 512, generator=torch.Generator().manual_seed(2))
    basis = torch.randn(512, 3, 28, 28, generator=torch.Generator().manual_seed(0)) / 512**0.5
    return {
        "decode": lambda w: torch.tanh(torch.einsum("bd,dchw->bchw", w, basis)),
        "photographs": (1 + torch.tanh(torch.einsum("bd,dchw->bchw", some, basis))) / 2,
        "network": lambda x: (x[:, 0, :2].mean((1, 2)) > x[:, 0, 2:].mean((1, 2))).long(),
        "spec": ImageSpec(size=(28, 28)),
        "model": model,
        "other": a_readers_model(),
        "layer": LAYER,
        "layers": ["layer2", LAYER],
        "data": data,
        "dataset": data,
        "loader": DataLoader(data, batch_size=16),
        "images": pictures[:4],
        "others": pictures[4:8],
        "image": pictures[:1],
        "x": pictures[:4],
        "z": LayerExtractor(model, LAYER).features(pictures[:4]),
        "labels": digits,
        "values": digits,
        "kind": digits,
        "size": digits.float(),
        "pairs": pairs,
        "glasses": yes_or_no,
        "smile": (digits > 4).long(),
        **{f"{word}_{what}": pictures[:8] for word in ("with", "without") for what in ("beard", "images", "glasses")},
    }


def run(document, block, namespace):
    """Execute a block as Python would from the document's own lines; say which name is nobody's."""
    code = compile("\n" * (block.line - 1) + block.text, str(document), "exec")
    try:
        exec(code, namespace)
    except NameError as error:
        pytest.fail(
            f"{document.name}, block of line {block.line}: {error}. Either the document makes it, or "
            f"what_readers_bring() in {Path(__file__).name} has it."
        )


def few_steps_in(monkeypatch, folder):
    """Let everything that a document trains take a second, and go to `folder`."""
    tiny = tiny_default(64)
    tiny = tiny.replace(concepts=tiny.concepts.replace(blocks=2, width=8, training=STEPS))
    monkeypatch.setitem(config.PRESETS, "default", tiny)
    monkeypatch.chdir(folder)
    few_draws(monkeypatch)


def few_draws(monkeypatch):
    """Let what a document does with a generator, too, take a second: few draws, few steps."""
    draws = GivenGenerator.draws
    monkeypatch.setattr(
        GivenGenerator, "draws", lambda self, n, *more, **options: draws(self, min(n, 60), *more, **options)
    )
    monkeypatch.setattr(posthoc_inn, "Inverter", lambda steps: Inverter(steps=min(steps, 4)))
    monkeypatch.setattr(posthoc_inn, "invert_by_optimization", partial(invert_by_optimization, steps=3))
    save_file({"w": torch.randn(5000, 512, generator=torch.Generator().manual_seed(1))}, "w.safetensors")


def check_command(line):
    """Parse a command line without running it.

    Raises:
        click.UsageError: There is no such command, or option, or too many arguments.
    """
    # The shell would put several files there.
    words = shlex.split(re.sub(r"(\S*)\*(\.\w+)", r"\1a\2 \1b\2", line), comments=True)[1:]
    words = [w for w in words if w != "..."]
    context = click.Context(cli, info_name="posthoc-inn")
    name, command, rest = cli.resolve_command(context, words)
    inner = click.Context(command, info_name=name, parent=context)
    given, left, order = command.make_parser(inner).parse_args(list(rest))
    more = [p for p in command.params if isinstance(p, click.Argument) and p in order]
    if left and not more:
        raise click.UsageError(f"{name} takes no {left[0]!r}")
    for parameter in command.params:
        if isinstance(parameter.type, click.Choice) and isinstance(given.get(parameter.name), str):
            parameter.type.convert(given[parameter.name], parameter, inner)


def targets():
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
