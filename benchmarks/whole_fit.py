"""A whole fit beside the papers' scheme, in which the frozen model and the frozen encoder run again at every step.

    python benchmarks/whole_fit.py [--cases resnet18:avgpool resnet50:avgpool resnet50:layer3] [--rounds 3] [--smoke]
    python benchmarks/whole_fit.py --really [--cases resnet18:layer3] [--size 64] [--images 256] [--steps 100]

Networks of torchvision with random weights, on synthetic images that lie in memory: speed depends on neither, and
reading and decoding files, which the papers' scheme would do at every step, is left out in its favour. The autoencoder
is given, untrained, so that only the training of t is compared; both sides train the default preset's t with the
product's own loop, optimizer and precision, in batches of 16 (the papers') and 256 (the preset's).

Measured, in turns: seconds per image of the one pass over the images (model, encoder, cache; `Interpreter.fit` with one
step), seconds per step on cached rows, and seconds per step of the papers' scheme. Totals for `--images` and `--steps`
are computed from these parts: run whole, the papers' scheme would take days. `--really` runs both whole, at a small
size, beside the totals computed from parts measured at that size.

Cached rows repeat those of a few images, as many as `--images`: where they lie (memory or disk) is as in a real fit.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
import torchvision
from harness import (
    ProductTraining,
    Timing,
    chosen_precision,
    common_arguments,
    endless,
    interleave,
    pinned,
    print_table,
    set_precision,
    statement,
)
from lightning_fabric import Fabric
from torch import Tensor

from posthoc_inn import Interpreter
from posthoc_inn.autoencoders import ConvAutoencoder
from posthoc_inn.config import AutoencoderConfig, FitConfig, ImageSpec, TrainConfig, preset
from posthoc_inn.fit import Fit, FitRequest, FitResult
from posthoc_inn.fit.preparing import choose_image_size
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.rows.cache import Cache, unit
from posthoc_inn.training import train
from posthoc_inn.training.tasks import FlowLoss, FlowTask, Shuffle

SPEC = ImageSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
INNER = 10
"""Steps on cached rows for each one of the papers' scheme."""


class PapersTask:
    """Trains t as the papers do: each batch of images passes the frozen model and the frozen encoder first."""

    name = "t"

    def __init__(self, flow: ConditionalFlow, pipeline: Pipeline, images: Tensor, batch_size: int) -> None:
        self.module = FlowLoss(flow)
        self._pipeline, self._images = pipeline, images
        self._shuffle = Shuffle(len(images), batch_size, 0)

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return z (B, *z_shape), mean, std and noise (B, D)."""
        images = unit(self._images[self._shuffle.index(step)])
        z, (mean, std) = self._pipeline.features(images), self._pipeline.encode(images)
        return z, mean, std, torch.randn(mean.shape, generator=generator)

    def held_out(self) -> dict[str, float]:
        """Return the loss of one batch."""
        return {"loss": float(self.module(*self.batch(0, torch.Generator().manual_seed(0))))}


class Case:
    """A backbone and a layer, attached by one short fit.

    Args:
        name: "backbone:layer", of torchvision.
        size: Side of the images, in pixels.
        pool: Images that are made.
        config: The preset, whose steps and batch size may be changed.
    """

    def __init__(self, name: str, size: int, pool: int, config: FitConfig) -> None:
        backbone, _, self.layer = name.partition(":")
        torch.manual_seed(0)
        self.model = torchvision.models.get_model(backbone, weights=None).eval()
        self.name, self.config = name, config
        self.autoencoder = ConvAutoencoder(
            AutoencoderConfig(
                size=choose_image_size(size, size), latent_dim=config.latent_dim, width=config.autoencoder_width
            )
        ).eval()
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (pool, 3, size, size), dtype=torch.uint8, generator=generator)

    def fit(self, images: int, steps: int) -> tuple[Fit, FitResult]:
        """Fit t to the first `images` of the pool."""
        interpreter = Interpreter(
            self.model, self.layer, spec=SPEC, autoencoder=self.autoencoder, preset=self.config,
            precision=chosen_precision(),
        )  # fmt: skip
        # Two images held out: a look at them takes no time.
        fit = interpreter.prepare(FitRequest(data=self.images[:images], held_out=self.images[:2], steps=steps))
        return fit, fit.run()

    def rows(self, result: FitResult, count: int) -> Cache:
        """Return `count` cached rows, those of the fit again and again."""
        few, rows = result.train, Cache()
        whole = [few[name].tensor() for name in ("z", "mean", "std")]
        for start in range(0, count, len(few)):
            z, mean, std = (column[: count - start] for column in whole)
            rows.append(z=z, mean=mean, std=std)
        return rows

    def flow(self, result: FitResult) -> ConditionalFlow:
        """Return a t to train: initialised, in the precision of training."""
        flow = copy.deepcopy(result.flow)
        set_precision(flow, chosen_precision())
        return flow


def training_of(config: FitConfig, batch_size: int) -> TrainConfig:
    """Return how t is trained, with no end in sight."""
    return endless(config.flow_training, batch_size=batch_size)


class Parts:
    """What was measured of one case: seconds per image, and per step of either scheme, by batch size."""

    def __init__(self, case: Case, arguments: argparse.Namespace) -> None:
        some = min(arguments.pass_images, len(case.images))
        fit, result = case.fit(some, 1)
        rows = case.rows(result, arguments.images)
        self.z_shape = rows["z"].shape
        self.cached, self.is_on_disk = rows.nbytes, rows.is_on_disk
        passes: list[float] = []

        def one_pass() -> None:
            seconds = case.fit(some, 1)[1].seconds
            passes.append((seconds["features"] + seconds["latents"]) / (some + 2))

        steps: dict[str, Callable[[], object]] = {"pass": one_pass}
        for size in arguments.batches:
            config = training_of(case.config, size)
            ours = ProductTraining(FlowTask(case.flow(result), rows, rows, batch_size=size, seed=0), config)
            papers = PapersTask(case.flow(result), fit.parts.pipeline(), case.images, size)
            steps[f"ours {size}"] = lambda ours=ours: [ours.step() for _ in range(INNER)]
            steps[f"papers {size}"] = ProductTraining(papers, config).step
        timings = interleave(steps, rounds=arguments.rounds)
        self.per_image = Timing(passes[-arguments.rounds :])
        self.ours = {b: Timing([s / INNER for s in timings[f"ours {b}"].seconds]) for b in arguments.batches}
        self.papers = {b: timings[f"papers {b}"] for b in arguments.batches}
        self.shares = shares(case.flow(result), rows, max(arguments.batches), case.config, arguments.rounds)

    def ours_total(self, images: int, steps: int, batch_size: int) -> float:
        """Return the seconds of a whole fit, computed."""
        return images * self.per_image.median + steps * self.ours[batch_size].median

    def papers_total(self, steps: int, batch_size: int) -> float:
        """Return the seconds of the papers' scheme, computed."""
        return steps * self.papers[batch_size].median


def shares(flow: ConditionalFlow, rows: Cache, size: int, config: FitConfig, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step on cached rows, and of its parts."""
    task = FlowTask(flow, rows, rows, batch_size=size, seed=0)
    z = task.batch(0, torch.Generator())[0]
    training = ProductTraining(task, training_of(config, size))
    counter = iter(range(10**9))

    def embed() -> None:
        flow.context(z).sum().backward()
        flow.zero_grad()

    steps: dict[str, Callable[[], object]] = {
        "whole step": training.step,
        "rows from the cache": lambda: task.batch(next(counter), torch.Generator()),
        "standardising z": lambda: flow.conditioner.standardize(z),
        "H, forward and backward": embed,
    }
    timings = interleave(steps, rounds=3 * rounds)
    found = {name: timing.median for name, timing in timings.items()}
    # H as measured standardises too.
    found["H, forward and backward"] -= found["standardising z"]
    found["couplings, optimizer, rest"] = 2 * found["whole step"] - sum(found.values())
    return found


def spread(timing: Timing, unit: float = 1e3) -> str:
    """Return the median and, in brackets, least and most."""
    median, least, most = timing.cells(unit)
    return f"{median} ({least}-{most})"


def duration(seconds: float) -> str:
    """Return seconds in a unit that reads well."""
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.1f} s"


def compare(arguments: argparse.Namespace, config: FitConfig) -> None:
    """Measure the parts of every case, and print the tables."""
    measured, totals, where = [], [], []
    for name in arguments.cases:
        case = Case(name, arguments.size, arguments.pool, config)
        parts = Parts(case, arguments)
        z = "×".join(map(str, parts.z_shape))
        for size in arguments.batches:
            measured.append(
                [name, z, f"{parts.cached / 2**30:.2f}{' disk' if parts.is_on_disk else ''}", str(size),
                 spread(parts.per_image), spread(parts.ours[size]), spread(parts.papers[size]),
                 f"{parts.papers[size].median / parts.ours[size].median:.0f}"]
            )  # fmt: skip
            for steps in arguments.steps:
                ours, papers = parts.ours_total(arguments.images, steps, size), parts.papers_total(steps, size)
                cells = [duration(ours), duration(papers), f"{papers / ours:.1f}"]
                totals.append([name, str(size), f"{steps:,}", *cells])
        whole = parts.shares["whole step"]
        where.append([name, *(f"{1e3 * s:.1f} ({s / whole:.0%})" for s in parts.shares.values())])
    print("\nmeasured: median (least-most), ms")
    print_table(["case", "z", "cache GiB", "batch", "pass, an image", "our step", "papers' step", "times"], measured)
    print(f"\ncomputed from these: {arguments.images:,} images, the pass included")
    print_table(["case", "batch", "steps", "our fit", "papers' scheme", "times sooner"], totals)
    print(f"\nwhere a step on cached rows goes, batch {max(arguments.batches)}, ms")
    print_table(["case", *parts.shares], where)


def really(arguments: argparse.Namespace, config: FitConfig) -> None:
    """Run both schemes from end to end, and print what the parts foretold."""
    rows, stages = [], []
    for name in arguments.cases:
        case = Case(name, arguments.size, arguments.images, config)
        parts = Parts(case, arguments)
        for size in arguments.batches:
            for steps in arguments.steps:
                training = training_of(config, size).replace(steps=steps)
                case.config = config.replace(flow_training=training)
                started = time.perf_counter()
                fit, result = case.fit(len(case.images), steps)
                ours = time.perf_counter() - started
                named = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items())
                stages.append(f"{name}, batch {size}, {steps:,} steps: {named}")
                task = PapersTask(case.flow(result), fit.parts.pipeline(), case.images, size)
                started = time.perf_counter()
                train(task, training, fabric=Fabric(accelerator="cpu", devices=1))
                papers = time.perf_counter() - started
                foretold = parts.ours_total(len(case.images), steps, size), parts.papers_total(steps, size)
                rows.append(
                    [name, str(size), f"{steps:,}", *(duration(s) for s in (ours, foretold[0], papers, foretold[1])),
                     f"{papers / ours:.1f}", f"{foretold[1] / foretold[0]:.1f}"]
                )  # fmt: skip
    print(f"\nrun from end to end: {arguments.images:,} images of {arguments.size} px, and what the parts foretell")
    print_table(
        ["case", "batch", "steps", "our fit", "foretold", "papers' scheme", "foretold", "times sooner", "foretold"],
        rows,
    )
    print("seconds of our stages: " + "; ".join(stages))


def main() -> None:
    """Print the tables."""
    # Both schemes train the same t; a few steps are worse than a linear t, which would take its place.
    config = preset("default").replace(linear_fallback=False)
    parser = common_arguments(__doc__)
    parser.add_argument("--cases", nargs="+", help="backbone:layer, of torchvision")
    parser.add_argument("--really", action="store_true", help="run both schemes from end to end, at a small size")
    parser.add_argument("--images", type=int, help="default: 4,000; 256 with --really")
    parser.add_argument("--steps", type=int, nargs="+", help="default: 2,000 and the preset's; 100 with --really")
    parser.add_argument("--size", type=int, help="pixels; default: 224; 64 with --really")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, config.flow_training.batch_size])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pool", type=int, default=512, help="different images in memory")
    parser.add_argument("--pass-images", type=int, default=64, help="images of each measured pass")
    arguments = parser.parse_args()
    ours = ["resnet18:avgpool", "resnet50:avgpool", "resnet18:layer3", "resnet50:layer3"]
    arguments.cases = arguments.cases or (["resnet18:layer3"] if arguments.really or arguments.smoke else ours)
    arguments.images = arguments.images or (256 if arguments.really else 4000)
    arguments.steps = arguments.steps or ([100] if arguments.really else [2000, config.flow_training.steps])
    arguments.size = arguments.size or (64 if arguments.really else 224)
    if arguments.smoke:
        arguments.images, arguments.steps, arguments.size, arguments.batches = 12, [3], 32, [4]
        arguments.rounds, arguments.pool, arguments.pass_images = 1, 12, 8
    with pinned(arguments.threads) as threads:
        print(statement(threads))
        if arguments.really:
            really(arguments, config)
        else:
            compare(arguments, config)


if __name__ == "__main__":
    main()
