"""Held-out nats against seconds of training: the default preset beside FrEIA, nflows and zuko of the same size.

    python benchmarks/time_to_likelihood.py --bundle BUNDLE --model-weights FILE --data color-mnist --data-dir DIR
        [--latents FILE] [--seconds 120] [--threads 2]
    python benchmarks/time_to_likelihood.py --synthetic [--seconds 60]

Reads the autoencoder and the layer from a bundle and encodes the data once; --latents names a file that keeps what came
out. The libraries train with Adam as their own conditional examples do, on z_bar standardised for them, behind the same
conditioner. Ours is the preset as `Interpreter.fit` trains it, with as many steps as fit into a quarter of the time
(a cosine needs to know its end). All run in turns in one process, on the same rows, batches of the preset's size; looks
at held-out data are not timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from contenders import LIBRARIES, Contender, Recipe, build
from harness import (
    ProductTraining,
    chosen_precision,
    common_arguments,
    endless,
    interleave,
    measure_ceilings,
    millions,
    pinned,
    print_table,
    set_precision,
    statement,
)
from presets import latents
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from posthoc_inn import Interpreter
from posthoc_inn.config import ConditionerConfig, FitConfig, TrainConfig, preset
from posthoc_inn.flows import ConditionalFlow, Conditioner
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training.tasks import FlowTask

COLUMNS = ("z", "mean", "std")


# ---- the rows


def synthetic(count: int, dim: int, z_width: int, seed: int) -> Cache:
    """Return rows whose z_bar depends on z, and on what z does not tell, in a curved way."""
    maps = torch.Generator().manual_seed(0)
    from_z, from_rest, mix = (torch.randn(n, dim, generator=maps) / math.sqrt(n) for n in (z_width, dim, dim))
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, z_width, generator=generator)
    rest = torch.randn(count, dim, generator=generator)
    mean = (torch.tanh(2 * z @ from_z) + 0.5 * rest.abs() @ from_rest).tanh() @ mix
    rows = Cache()
    rows.append(z=z, mean=mean, std=torch.full((count, dim), 0.05))
    return rows


def keep(path: Path, rows: Cache, held_out: Cache) -> None:
    """Write training and held-out rows to one file."""
    parts = {"train": rows, "held_out": held_out}
    tensors = {f"{part}.{name}": cache[name].tensor() for part, cache in parts.items() for name in COLUMNS}
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, str(path))


def kept(path: Path) -> tuple[Cache, Cache]:
    """Return the training and held-out rows that `keep` wrote."""
    tensors = load_file(str(path))
    rows, held_out = Cache(), Cache()
    for part, cache in (("train", rows), ("held_out", held_out)):
        cache.append(**{name: tensors[f"{part}.{name}"] for name in COLUMNS})
    return rows, held_out


def encoded(arguments: argparse.Namespace) -> tuple[Cache, Cache]:
    """Return training and held-out rows of the data set in the bundle's autoencoder."""
    manager = get_plugin_manager()
    model = manager.build_backbone(arguments.backbone, weights=arguments.model_weights)
    interpreter = Interpreter.load(arguments.bundle, model=model)
    rows, held_out = (
        latents(interpreter, manager.build_dataset(arguments.data, arguments.data_dir, train=part, draws=n, seed=0))
        for part, n in ((True, arguments.draws), (False, 1))
    )
    if arguments.latents is not None:
        keep(arguments.latents, rows, held_out)
    return rows, held_out


@torch.no_grad()
def held_out_nats(loss: nn.Module, rows: Cache, limit: int) -> float:
    """Return the mean negative log-likelihood, in nats, over the first `limit` rows and fixed noise."""
    generator = torch.Generator().manual_seed(0)
    loss.eval()
    total = count = 0.0
    for z, mean, std in rows.batches(512, *COLUMNS):
        if count >= limit:
            break
        total += float(loss(z.float(), mean, std, torch.randn(mean.shape, generator=generator))) * len(z)
        count += len(z)
    return total / count


# ---- the sides


@dataclass
class Run:
    """One training run and its curve.

    Attributes:
        name: What tables call it.
        loss: Module that returns the mean nats of (z, mean, std, noise).
        step: Takes one step.
        budget: Seconds of training.
        is_finished: Whether there is nothing left to do before the budget is used up.
        seconds: Seconds trained so far.
        steps: Steps taken so far.
        curve: (seconds, nats on held-out rows) of every look.
    """

    name: str
    loss: nn.Module
    step: Callable[[], object]
    budget: float
    is_finished: Callable[[], bool]
    seconds: float = 0.0
    steps: int = 0
    curve: list[tuple[float, float]] = field(default_factory=list)

    def train_until(self, seconds: float) -> None:
        """Go on until `seconds` have been trained in all."""
        while self.seconds < seconds and not self.is_finished():
            started = time.perf_counter()
            self.step()
            self.seconds += time.perf_counter() - started
            self.steps += 1

    @property
    def best(self) -> tuple[float, float]:
        """The least finite value seen, and when: (nats, seconds)."""
        return min(((n, s) for s, n in self.curve if math.isfinite(n)), default=(math.inf, math.inf))

    def first_at(self, nats: float) -> float:
        """Return the seconds of the first look at `nats` or less; infinity where there is none."""
        return next((s for s, n in self.curve if n <= nats), math.inf)


def conditioner_config(config: FitConfig, rows: Cache, dropout: float) -> ConditionerConfig:
    """Return the shape of H that a fit would choose."""
    return ConditionerConfig(
        z_shape=rows["z"].shape,
        context_dim=config.context_dim,
        width=config.conditioner_width,
        depth=config.conditioner_depth,
        dropout=dropout,
    )


class LibraryLoss(nn.Module):
    """A library's flow behind our conditioner, on standardised z_bar, with the loss of `FlowLoss`."""

    def __init__(self, library: Contender, conditioner: ConditionerConfig, rows: Cache) -> None:
        super().__init__()
        self.library, self.conditioner = library, Conditioner(conditioner)
        self.conditioner.fit_standardization(z for (z,) in rows.batches(1000, "z"))
        mean, std = rows["mean"].tensor(), rows["std"].tensor()
        self.register_buffer("center", mean.mean(0))
        self.register_buffer("scale", (mean.var(0) + std.square().mean(0)).sqrt())

    def forward(self, z: Tensor, mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of z_bar, a scalar in nats."""
        z_bar = (mean + std * noise - self.center) / self.scale
        return self.library.loss(z_bar, self.conditioner(z)) + self.scale.log().sum()


class LibraryTraining:
    """Trains as the library's example does, one step a call."""

    def __init__(self, loss: LibraryLoss, recipe: Recipe, task: FlowTask) -> None:
        self.loss, self.recipe, self.task, self.count = loss, recipe, task, 0
        self.optimizer = torch.optim.Adam(loss.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        # What the first pass sets up is not training: ours has had its trial steps as well.
        self.loss(*task.batch(0, torch.Generator().manual_seed(0))).backward()

    def step(self) -> None:
        """Take one step."""
        self.loss.train()
        batch = self.task.batch(self.count, torch.Generator().manual_seed(self.count))
        self.optimizer.zero_grad()
        self.loss(*batch).backward()
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.loss.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.count += 1


def our_task(config: FitConfig, rows: Cache) -> FlowTask:
    """Return t as a fit would start to train it, with its data."""
    flow = ConditionalFlow(config.flow, conditioner_config(config, rows, config.flow.dropout))
    flow.conditioner.fit_standardization(z for (z,) in rows.batches(1000, "z"))
    generator = torch.Generator().manual_seed(config.flow_training.seed)
    pick = torch.randperm(len(rows), generator=generator)[:4096]
    mean, std = rows["mean"].rows(pick), rows["std"].rows(pick)
    flow.initialize(mean + std * torch.randn(mean.shape, generator=generator), rows["z"].rows(pick).float())
    set_precision(flow, chosen_precision())
    # The loop looks at held-out data after the last step, whatever it is told: one batch, to keep that short.
    training = config.flow_training
    return FlowTask(flow, rows, rows, batch_size=training.batch_size, seed=training.seed, looks=1)


def our_run(config: FitConfig, rows: Cache, seconds: float) -> Run:
    """Return our run, with the steps that fit into `seconds`."""
    trial = ProductTraining(our_task(config, rows), endless(config.flow_training))
    pace = interleave({"": trial.step}, rounds=9, warmup=3)[""].median
    recipe: TrainConfig = endless(config.flow_training).replace(steps=max(5, int(seconds / pace)))
    task = our_task(config, rows)
    training = ProductTraining(task, recipe)
    name = f"posthoc_inn, {chosen_precision()}"
    # Its end is a number of steps: it may take a little longer than the time that was planned.
    return Run(name, task.module, training.step, seconds, lambda: training.is_finished)


def library_runs(config: FitConfig, rows: Cache, seconds: float, rates: list[float] | None) -> list[Run]:
    """Return the runs of the libraries, each at the given learning rates or its own."""
    flow = config.flow.replace(separate_nets=False)
    runs = []
    for rate in rates or [None]:
        for name, library in build(LIBRARIES, flow).items():
            recipe = library.recipe if rate is None else dataclasses.replace(library.recipe, lr=rate)
            loss = LibraryLoss(library, conditioner_config(config, rows, 0.0), rows)
            training = config.flow_training
            task = FlowTask(ConditionalFlow(flow, conditioner_config(config, rows, 0.0)), rows, rows,
                            batch_size=training.batch_size, seed=training.seed)  # fmt: skip
            label = f"{name}, Adam {recipe.lr:g}"
            runs.append(Run(label, loss, LibraryTraining(loss, recipe, task).step, seconds, lambda: False))
    return runs


# ---- the comparison


def compare(runs: list[Run], held_out: Cache, looks: int, limit: int) -> None:
    """Train all in turns; print the curve and who reached what when."""
    ours, *libraries = runs
    with torch.random.fork_rng(devices=[]):
        for k in range(1, looks + 1):
            for run in runs:
                run.train_until(math.inf if run is ours and k == looks else run.budget * k / looks)
                run.curve.append((run.seconds, held_out_nats(run.loss, held_out, limit)))
    print(f"\nheld-out nats after seconds of training ({looks} looks at {min(limit, len(held_out))} rows)")
    print_table(
        ["look", *(run.name for run in runs)],
        [[str(k + 1), *(f"{n:.2f} @ {s:.1f}" for s, n in (run.curve[k] for run in runs))] for k in range(looks)],
    )
    print("\nwho reached what when")
    rows = []
    for run in libraries:
        nats, seconds = run.best
        when = ours.first_at(nats)
        sooner = f"{seconds / when:.1f}" if math.isfinite(when) else "not reached"
        passed = run.first_at(ours.best[0])
        factor = f"{min(passed, run.seconds) / ours.best[1]:.1f}" + ("" if math.isfinite(passed) else " or more")
        rows.append([run.name, str(run.steps), f"{nats:.2f}", f"{seconds:.1f}", f"{when:.1f}", sooner, factor])
    print_table(
        ["", "steps", "best nats", "after s", "ours after s", "times sooner", "our best value, times sooner"], rows
    )
    print(f"{ours.name}: {ours.steps} steps, best {ours.best[0]:.2f} nats after {ours.best[1]:.1f} s")
    best = min(libraries, key=lambda run: run.best[0])
    when = ours.first_at(best.best[0])
    if math.isfinite(when):
        print(f"reached the libraries' best value ({best.name}) {best.best[1] / when:.1f} times sooner")
    else:
        print(f"did not reach the libraries' best value ({best.name}) within {ours.seconds:.1f} s")


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print the tables."""
    parser = common_arguments(__doc__)
    parser.add_argument("--bundle", default=None)
    parser.add_argument("--backbone", default="squeezenet1_1")
    parser.add_argument("--model-weights", default=None)
    parser.add_argument("--data", default="color-mnist")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--draws", type=int, default=4, help="colourings of each training image")
    parser.add_argument("--latents", type=Path, default=None, help="file (.safetensors) that keeps the encoded data")
    parser.add_argument("--synthetic", action="store_true", help="made-up latents instead of a bundle's")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--seconds", type=float, default=120.0, help="of training for each library")
    parser.add_argument("--our-seconds", type=float, default=None, help="of training for ours; a quarter by default")
    parser.add_argument("--library-lr", type=float, nargs="+", default=None, help="instead of their examples' own")
    parser.add_argument("--looks", type=int, default=12, help="looks at held-out rows, evenly spaced")
    parser.add_argument("--held-out", type=int, default=10_000, help="held-out rows to look at")
    arguments = parser.parse_args(argv)
    has_latents = arguments.latents is not None and arguments.latents.exists()
    if not (arguments.synthetic or arguments.smoke or has_latents or (arguments.bundle and arguments.model_weights)):
        parser.error("pass --bundle and --model-weights, or --latents with a file written before, or --synthetic")
    config = preset(arguments.preset)
    if arguments.smoke:
        config = config.replace(
            context_dim=5, conditioner_width=8, flow=config.flow.replace(dim=6, context_dim=5, blocks=2, width=16),
            flow_training=config.flow_training.replace(batch_size=32),
        )  # fmt: skip
        arguments.seconds, arguments.looks = 0.2, 2
    with pinned(arguments.threads) as threads:
        if arguments.smoke:
            rows, held_out = synthetic(600, 6, 7, 1), synthetic(100, 6, 7, 2)
        elif arguments.synthetic:
            rows, held_out = (synthetic(n, config.flow.dim, 512, seed) for n, seed in ((100_000, 1), (10_000, 2)))
        else:
            rows, held_out = kept(arguments.latents) if has_latents else encoded(arguments)
        print(statement(threads))
        print(measure_ceilings(smoke=arguments.smoke))
        ours = our_run(config, rows, arguments.our_seconds or arguments.seconds / 4)
        runs = [ours, *library_runs(config, rows, arguments.seconds, arguments.library_lr)]
        print(f"{len(rows):,} training rows, {len(held_out):,} held out, batches of {config.flow_training.batch_size}")
        print("parameters: " + ", ".join(f"{run.name} {millions(run.loss)}" for run in runs))
        compare(runs, held_out, arguments.looks, arguments.held_out)


if __name__ == "__main__":
    main()
