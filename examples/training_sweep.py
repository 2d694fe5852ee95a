"""Figure 4 of MSC: what a representation knows of digit and colours, over 20 checkpoints of a classifier's training.

    python examples/training_sweep.py --data-dir DIR [--out runs/training-sweep] [--smoke]

SqueezeNet 1.1 on ColorMNIST from scratch, layer features.11; one autoencoder and one e for all checkpoints, a t for
each. Prints a table beside the paper's numbers, and writes it, the figure and the samples of figure S7 to --out. Every
stage goes on where it was stopped when it is started again. About two hours on two cores.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from color_mnist import LAYER, SPEC, digits, train_classifier, untrained

from posthoc_inn import Interpreter
from posthoc_inn.drawing import columns_of, grid, to_png
from posthoc_inn.report.analyses import section_of, write_analyses
from posthoc_inn.sweep import SweepResult, training_sweep
from posthoc_inn.weights import load_weights

STEPS = [*range(0, 37_000, 2000), 40_000]
CONCEPTS = ["digit", "foreground", "background"]


def bars(result: SweepResult) -> list[tuple[str, float, str, bool]]:
    """Return what is asked for: name, value, target, whether it is met."""
    found: list[tuple[str, float, str, bool]] = []
    for measure, words in (
        ("pairs", "by pairs"), ("total_effect", "total effect (MSC eq. 20)"), ("first_order", "first order"),
    ):  # fmt: skip
        share = {name: result.share(name, measure) for name in CONCEPTS}
        start = {name: share[name][0] for name in CONCEPTS}
        is_paper = measure == "total_effect"
        digit, background = share["digit"][-1], share["background"][-1]
        ordered = start["background"] > start["foreground"] > start["digit"]
        found += [
            (f"{words}: digit at the end", digit, ">= 0.361 (paper, 36k)" if is_paper else "",
             not is_paper or digit >= 0.361),
            (f"{words}: foreground at the end", share["foreground"][-1], "", True),
            (f"{words}: background at the end", background, "<= 0.028 (paper)" if is_paper else "",
             not is_paper or background <= 0.028),
            (f"{words}: background at step 0", start["background"], "> foreground", ordered),
            (f"{words}: foreground at step 0", start["foreground"], "> digit", ordered),
            (f"{words}: digit at step 0", start["digit"], "", True),
        ]  # fmt: skip
        correlation = result.correlation_with_accuracy("digit", measure)
        found.append((f"{words}: correlation of digit with accuracy", correlation, ">= 0.95", correlation >= 0.95))
    return found


def samples(out: Path, checkpoints: dict[float, Path], step: float, data_dir: str) -> None:
    """Draw figure S7: each row one z, each column one v."""
    model = load_weights(untrained(1), checkpoints[step])
    interpreter = Interpreter.load(out / f"{step:g}" / "bundle", model=model)
    held_out = digits(data_dir, train=False)
    images = torch.stack([held_out[k][0] for k in range(6)])
    v = torch.randn(9, interpreter.pipeline.latent_dim, generator=torch.Generator().manual_seed(0))
    shown = torch.cat([images[:, None], interpreter.sample(images, v=v)], dim=1)
    headings = ("input", *(f"v {k + 1}" for k in range(9)))
    figure = grid(columns_of(shown, headings=headings, gaps=(1,)))
    (out / f"samples-{step:g}.png").write_bytes(to_png(figure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/training-sweep"))
    parser.add_argument("--classifier", type=Path, default=None, help="where its snapshots are; in --out by default")
    parser.add_argument("--only-classifier", action="store_true", help="stop after the first stage")
    parser.add_argument("--steps", type=int, default=600, help="steps of t at each checkpoint")
    parser.add_argument("--checkpoints", type=int, nargs="+", choices=STEPS, default=STEPS, help="all by default")
    parser.add_argument("--draws", type=int, default=2, help="colourings of each digit")
    parser.add_argument("--seed", type=int, default=2, help="of the classifier's initial weights")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=1, help="checkpoints at a time, each in a process with one thread")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to see that it runs")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    out: Path = arguments.out
    steps = [0, 10, 20] if arguments.smoke else STEPS
    snapshots = arguments.classifier or out / "classifier"
    checkpoints = train_classifier(arguments.data_dir, snapshots, steps, seed=arguments.seed)
    if arguments.only_classifier:
        return
    if not arguments.smoke:
        checkpoints = {step: path for step, path in checkpoints.items() if step in arguments.checkpoints}
    few = {"steps": 20, "autoencoder_steps": 20, "concept_steps": 20} if arguments.smoke else {"steps": arguments.steps}
    executor = None
    if arguments.jobs > 1:
        executor = ProcessPoolExecutor(
            arguments.jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        )
    result = training_sweep(
        untrained(1), checkpoints, LAYER, digits(arguments.data_dir, train=True, draws=arguments.draws),
        held_out=digits(arguments.data_dir, train=False), concepts=CONCEPTS, out=out, spec=SPEC, preset="quick",
        fit=few, executor=executor, seed=0,
    )  # fmt: skip
    (out / "figure4.png").write_bytes(to_png(result.figure()))
    (out / "table.md").write_text(result.table() + "\n")
    write_analyses("What a SqueezeNet learns to see", [f"Layer {LAYER}, ColorMNIST, {len(result.points)} checkpoints."],
                   [section_of("Training sweep", result, 0.0)], out)  # fmt: skip
    for step in steps[1:] if arguments.smoke else [s for s in (4000, 36_000) if s in checkpoints]:
        samples(out, checkpoints, float(step), arguments.data_dir)
    found = bars(result)
    minutes = (time.perf_counter() - started) / 60
    (out / "training_sweep.json").write_text(
        json.dumps({"minutes": minutes, "bars": found, "result": result.to_dict()}, indent=1)
    )
    print(result.table())
    print(f"\n{'':58}{'measured':>10}  target")
    for name, value, target, is_met in found:
        print(f"{name:58}{value:10.3f}  {target}{'' if is_met else '   MISSED'}")
    print(f"this session: {minutes:.0f} minutes")


if __name__ == "__main__":
    main()
