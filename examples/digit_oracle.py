"""What judges pictures of coloured digits without the models that made them: a digit network and a reader of colours.

Also data whose pairs share colours on purpose (the nearest of random colours are far apart in six dimensions), IIN's
own painting, and the table that a script leaves behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from color_mnist import ClassifierTask, digits
from torch import Tensor, nn

from posthoc_inn.analysis import Response
from posthoc_inn.analysis.results import share_with_error
from posthoc_inn.autoencoders import Autoencoder, ConvAutoencoder
from posthoc_inn.concepts import AttributeSource, GivenPairs, JoinedSources
from posthoc_inn.config import AutoencoderConfig, TrainConfig, preset
from posthoc_inn.datasets.color_digits import ColorizedDigits, blend
from posthoc_inn.rows.cache import Cache, pixels
from posthoc_inn.training import train
from posthoc_inn.training.tasks import AutoencoderTask

COLORS = ("foreground", "background")
STROKE = 16
"""Pixels that the colour of a stroke is read from: the farthest from the ground's colour. A thin 1 has as many."""
WIDTH = 64
"""Of the layer before the head, as in IIN section 4.2."""


# ---- data


def some_digits(
    data_dir: str, *, train: bool, draws: int = 1, seed: int = 0, limit: int | None = None
) -> ColorizedDigits:
    """Return ColorMNIST, or its first `limit` digits."""
    data = digits(data_dir, train=train, draws=draws, seed=seed)
    if limit is None or limit >= len(data.gray):
        return data
    return ColorizedDigits(
        data.gray[:limit], data.digits[:limit], seed=seed, draws=draws, stream=0 if train else 1
    )  # fmt: skip


def tie_colors(data: ColorizedDigits) -> ColorizedDigits:
    """Paint as IIN's code does, in place: the grey image in [-1, 1] times one colour c in [0, 1]³.

    In [0, 1] the stroke then is (1 + c) / 2 and the ground (1 - c) / 2: three numbers decide both.
    """
    color = data.foreground.clone()
    data.foreground[:], data.background[:] = (1 + color) / 2, (1 - color) / 2
    return data


def with_pairs(
    data_dir: str,
    *,
    train: bool,
    seed: int,
    share: tuple[str, ...] = COLORS,
    tied: bool = False,
    limit: int | None = None,
) -> tuple[ColorizedDigits, JoinedSources]:
    """Return data in which every image has a partner of the same colours, and pairs for the concepts digit and colour.

    Args:
        data_dir: Where MNIST is.
        train: Training or held-out digits.
        seed: Of colours and partners.
        share: Which colours partners have in common: "foreground", "background" or both.
        tied: Paint as IIN's code does; both colours are one then.
        limit: Digits taken; all by default.

    Returns:
        2 n items (n digits twice, in other colours), and a source that numbers them.
    """
    data = some_digits(data_dir, train=train, draws=2, seed=seed, limit=limit)
    n = len(data.gray)
    partner = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for name in share:
        column = getattr(data, name)
        column[n:] = column[partner]
    if tied:
        tie_colors(data)
    index = torch.arange(n)
    pairs = torch.stack([partner, n + index], dim=1)[partner != index]
    return data, JoinedSources([AttributeSource({"digit": data.digits}), GivenPairs({"colour": pairs})])


# ---- networks


class DigitNetwork(nn.Module):
    """A small convolutional classifier with 64 values, not rectified, before its head.

    Args:
        seed: Of the initial weights.
        standardized: Take each channel's mean and the contrast out of a picture first: colours matter little then.
    """

    def __init__(self, seed: int, *, standardized: bool = False) -> None:
        super().__init__()
        self.standardized = standardized
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            body: list[nn.Module] = []
            for before, after in ((3, 32), (32, 64), (64, 128)):
                body += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
            self.body = nn.Sequential(*body, nn.Flatten(), nn.Linear(128 * 9, WIDTH))
            self.head = nn.Linear(WIDTH, 10)
        self.to(memory_format=torch.channels_last)

    def z(self, x: Tensor) -> Tensor:
        """Return the 64 values before the head, (B, 64), for images (B, 3, 28, 28) in [-1, 1]."""
        if self.standardized:
            x = x - x.mean((2, 3), keepdim=True)
            x = x / (x.square().mean((1, 2, 3), keepdim=True).sqrt() + 0.01)
        found: Tensor = self.body(x.contiguous(memory_format=torch.channels_last))
        return found

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.z(x))
        return logits

    @torch.no_grad()
    def of_pictures(self, pictures: Tensor) -> Tensor:
        """Return z (B, 64) of pictures in [0, 1]."""
        return torch.cat([self.z(part * 2 - 1) for part in pictures.split(500)])

    @torch.no_grad()
    def scores(self, pictures: Tensor) -> Tensor:
        """Return the classes' scores (B, 10) of pictures in [0, 1]."""
        found: Tensor = self.head(self.of_pictures(pictures))
        return found


def digit_network(
    data_dir: str, checkpoint: Path, *, steps: int, seed: int, standardized: bool = False, limit: int | None = None
) -> tuple[DigitNetwork, float]:
    """Train a digit network on colours of its own, or read it; return it and its accuracy on held-out images.

    Args:
        data_dir: Where MNIST is.
        checkpoint: Where it is kept.
        steps: Of 64 images.
        seed: Of weights, colours and order.
        standardized: See `DigitNetwork`.
        limit: Digits taken; all by default.
    """
    network = DigitNetwork(seed, standardized=standardized)
    data = some_digits(data_dir, train=True, draws=4, seed=100 + seed, limit=limit)
    held_out = some_digits(data_dir, train=False, seed=200 + seed, limit=limit)
    config = TrainConfig(
        steps=steps, batch_size=64, lr=2e-3, weight_decay=0.05, eval_every=max(1, steps // 4), patience=0, seed=seed,
        checkpoint_every=max(1, steps // 4),
    )  # fmt: skip
    history = train(ClassifierTask(network, data, held_out, {}), config, checkpoint=checkpoint, resume=True)
    return network.eval(), max(float(row["accuracy"]) for row in history.to_dict()["rows"])


def tied_autoencoder(
    data_dir: str, checkpoint: Path, *, steps: int, min_gamma: float, kind: str = "conv", limit: int | None = None
) -> Autoencoder:
    """Train a built-in autoencoder on IIN's own painting, or read it.

    Args:
        data_dir: Where MNIST is.
        checkpoint: Where it is kept.
        steps: Of its training.
        min_gamma: Lower bound of the output variance: the larger, the less of an image the latent keeps.
        kind: "conv", or "msc", whose convolutions code colour and shape together.
        limit: Digits taken; all by default.
    """
    caches = []
    for train_part in (True, False):
        data = tie_colors(some_digits(data_dir, train=train_part, draws=2 if train_part else 1, limit=limit))
        cache = Cache()
        for index in torch.arange(len(data)).split(1000):
            cache.append(images=pixels(data.images(index)))
        caches.append(cache)
    usual = preset("default")
    autoencoder = ConvAutoencoder(AutoencoderConfig(kind=kind, width=usual.autoencoder_width, min_gamma=min_gamma))
    config = usual.autoencoder_training.replace(steps=steps, eval_every=max(1, steps // 3), checkpoint_every=500)
    task = AutoencoderTask(autoencoder, *caches, batch_size=config.batch_size, seed=0)
    train(task, config, checkpoint=checkpoint, resume=True)
    return autoencoder.eval()


# ---- judging


def read_colors(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return the colours of stroke and ground, (B, 3) each, as they are seen in pictures (B, 3, H, W).

    The ground is the median of the border's pixels, channel by channel; the stroke the median of the 16 pixels that
    are farthest from it. No network is asked. Where the two colours are almost the same there is no stroke to see, and
    what is read is near both.
    """
    border = torch.cat([pictures[:, :, (0, 1, -2, -1)].flatten(2), pictures[..., (0, 1, -2, -1)].flatten(2)], dim=2)
    ground = border.median(dim=2).values
    values = pictures.flatten(2)
    far = (values - ground[:, :, None]).square().sum(1).topk(STROKE, dim=1).indices
    stroke = values.gather(2, far[:, None].expand(-1, 3, -1)).median(dim=2).values
    return stroke, ground


@dataclass(frozen=True)
class Verdict:
    """What is seen in pictures made of two images: each value with its standard error.

    Attributes:
        digit: Whose digit -> share of the pictures in which the oracle sees it.
        far: Whose colours -> colour -> mean distance from them a channel; colours go from 0 to 1.
    """

    digit: dict[str, tuple[float, float]]
    far: dict[str, dict[str, tuple[float, float]]]

    def share(self, whose: str) -> str:
        value, error = self.digit[whose]
        return f"{100 * value:.1f} ± {100 * error:.1f} %"

    def distance(self, whose: str) -> str:
        return ", ".join(f"{value:.3f}" for value, _ in self.far[whose].values())


def judge(oracle: DigitNetwork, pictures: Tensor, data: ColorizedDigits, **whose: Tensor) -> Verdict:
    """Compare pictures with the images they were made of: `own` and `source`, items of `data`."""
    seen = oracle.scores(pictures).argmax(1)
    read = dict(zip(COLORS, read_colors(pictures), strict=True))
    digit, far = {}, {}
    for name, index in whose.items():
        digit[name] = share_with_error((seen == data.digits[index]).double().tolist())
        away = {c: (read[c] - getattr(data, c)[index]).abs().mean(1) for c in COLORS}
        far[name] = {c: share_with_error(value.double().tolist()) for c, value in away.items()}
    return Verdict(digit, far)


@torch.no_grad()
def true_response(
    place: str, scores: Callable[[Tensor], Tensor], data: ColorizedDigits, *, images: int, draws: int
) -> Row:
    """Repaint images, and put other digits in their place, and tell how a network's output varies: no e is asked.

    Args:
        place: Which network.
        scores: Class scores (B, 10) of pictures (B, 3, H, W).
        data: Held-out images.
        images: Images repainted.
        draws: Times each.
    """
    generator = torch.Generator().manual_seed(0)
    index = torch.randperm(len(data), generator=generator)[:images]
    many = index.repeat_interleave(draws)
    spread, changed = {}, {}
    for name in ("digit", "colour"):
        any_index = torch.randint(len(data), (len(many),), generator=generator)
        shape, color = (any_index, many) if name == "digit" else (many, any_index)
        gray = data.gray[shape % len(data.gray)].float() / 255
        pictures = blend(gray, data.foreground[color], data.background[color])
        logs = torch.cat([scores(part).double().log_softmax(1) for part in pictures.split(500)])
        logs = logs.reshape(len(index), draws, -1)
        spread[name] = float(logs.std(1).mean())
        changed[name] = float((logs.argmax(2) != logs.argmax(2).mode(1, keepdim=True).values).double().mean())
    told = f"{spread['digit']:.1f} / {spread['colour']:.1f} = {spread['digit'] / spread['colour']:.1f}"
    what = f"{place}, no e: spread with other digits / other colours; class changed"
    return Row("Figure 9", what, f"{told}; {100 * changed['digit']:.0f} / {100 * changed['colour']:.0f} %")


# ---- the table


@dataclass
class Row:
    """A line of the table: the paper's number, ours, what is asked for and whether it is met (None: nothing is)."""

    figure: str
    what: str
    ours: str = ""
    paper: str = ""
    target: str = ""
    is_met: bool | None = None

    def __str__(self) -> str:
        verdict = {True: "met", False: "MISSED", None: ""}[self.is_met]
        return f"{self.figure:8} {self.what:78} {self.paper:>10} {self.ours:>22}  {self.target:22} {verdict}"

    def markdown(self) -> str:
        verdict = {True: "met", False: "**missed**", None: ""}[self.is_met]
        return "| " + " | ".join([self.figure, self.what, self.paper, self.ours, self.target, verdict]) + " |"


def response_rows(place: str, found: Response) -> list[Row]:
    """Return what a response analysis says of the factors digit, colour and residual."""
    ratio, (low, high) = found.ratio["digit"]["colour"], found.ratio_interval["digit"]["colour"]
    told = f"{ratio:.1f} ({low:.1f} to {high:.1f})"
    what = f"{place}: spread of log-softmax, digit over colour (95 % interval)"
    rows = [Row("Figure 9", what, told, "by eye", ">= 5", ratio >= 5)]
    for f in (found[name] for name in ("digit", "colour", "residual")):
        what = f"{place}: walk in {f.name} ({f.width} dims): spread, nats; class changed; moved"
        told = f"{f.spread:.2f} ± {f.spread_error:.2f}; {100 * f.changed:.0f} %; {f.moved:.2f}"
        rows.append(Row("Figure 9", what, told))
    return rows


def write_table(out: Path, names: list[str]) -> None:
    """Join what the parts left in `out`, as JSON and as one Markdown table."""
    kept = {n: json.loads(p.read_text()) for n in names if (p := out / "parts" / f"{n}.json").exists()}
    (out / "disentangling.json").write_text(json.dumps(kept, indent=1))
    lines = ["| | what | paper | ours | target | |", "|" + " --- |" * 6]
    lines += [Row(**row).markdown() for part in kept.values() for row in part["rows"]]
    (out / "disentangling.md").write_text("\n".join(lines) + "\n")
