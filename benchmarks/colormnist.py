"""The main job at the papers' size: SqueezeNet 1.1 on ColorMNIST, layer features.11, against the project's bars.

    python benchmarks/colormnist.py --data-dir DIR [--out runs/colormnist] [--smoke]

DIR holds MNIST as torchvision keeps it (MNIST/raw/*-ubyte, or the .gz files). Trains the classifier from scratch (Adam
1e-4, 14,000 steps of 64) unless it is given, runs `Interpreter.fit` with the default preset and times it, trains a
plain flow recipe on the same latents for comparison, and prints one table. Every stage resumes when started again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from posthoc_inn import Interpreter
from posthoc_inn.config import ConditionerConfig, FlowConfig, TrainConfig
from posthoc_inn.datasets.color_digits import ColorizedDigits
from posthoc_inn.drawing import grid, sample_columns
from posthoc_inn.fit import FitRequest, FitResult
from posthoc_inn.flows import ConditionalFlow, set_compute_dtype
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training import train
from posthoc_inn.training.precision import choose_precision
from posthoc_inn.training.tasks import FlowTask, flow_likelihood

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from color_mnist import LAYER, SPEC, ClassifierTask, train_classifier


def plain_recipe(result: FitResult, steps: int, threads: int) -> dict[str, float]:
    """Train a plain flow on the same latents: 8 blocks of 256, AdamW 1e-3, 5,000 steps of 256, 120,000 rows."""
    rows, held_out = result.train, result.held_out
    keep = Cache(None, 10**12)
    index = torch.arange(min(120_000, len(rows)))
    keep.append(z=rows["z"].rows(index), mean=rows["mean"].rows(index), std=rows["std"].rows(index))
    z_shape = tuple(rows["z"].shape)
    flow = ConditionalFlow(
        FlowConfig(dim=result.flow.flow.config.dim, context_dim=128, blocks=8, width=256),
        ConditionerConfig(z_shape=z_shape, context_dim=128, width=256),
    )
    flow.conditioner.fit_standardization(z for (z,) in keep.batches(1000, "z"))
    pick = torch.arange(min(4096, len(keep)))
    flow.initialize(keep["mean"].rows(pick), keep["z"].rows(pick))
    if choose_precision("auto", torch.device("cpu")) == "bf16":
        set_compute_dtype(flow, torch.bfloat16)
    config = TrainConfig(
        steps=steps, batch_size=256, lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-2, warmup=0.3, final_lr=0.0, clip=5.0,
        eval_every=max(1, steps // 5), patience=0, checkpoint_every=10**9,
    )  # fmt: skip
    started = time.perf_counter()
    train(FlowTask(flow, keep, held_out, batch_size=256, seed=0), config)
    set_compute_dtype(flow, None)
    return {
        "held_out": flow_likelihood(flow, held_out),
        "train": flow_likelihood(flow, keep, limit=10_000),
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    """Run all stages and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/colormnist"))
    parser.add_argument("--draws", type=int, default=8, help="colourings of each digit that t is trained on")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--weights", default=None, help="a classifier trained before, instead of training one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--no-plain-recipe", action="store_true", help="leave out the comparison")
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to see that it runs")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    manager = get_plugin_manager()
    few = arguments.smoke

    def data(train_part: bool, draws: int, seed: int) -> ColorizedDigits:
        return manager.build_dataset("color-mnist", arguments.data_dir, train=train_part, seed=seed, draws=draws)

    held_out = data(False, 1, 11)
    weights = arguments.weights
    if weights is None:
        steps = 20 if few else 14_000
        weights = train_classifier(arguments.data_dir, out / "classifier", [steps], seed=arguments.seed)[float(steps)]
    model = manager.build_backbone("squeezenet1_1", weights=str(weights), num_classes=10)
    with torch.no_grad():
        accuracy = ClassifierTask(model.eval(), held_out, held_out, {}).held_out()["accuracy"]
    print(f"classifier: accuracy {accuracy:.4f}", flush=True)

    interpreter = Interpreter(model, LAYER, spec=SPEC, preset=arguments.preset, seed=0)
    started = time.perf_counter()
    limits = {"steps": 20, "autoencoder_steps": 20} if few else {}
    fit = interpreter.prepare(
        FitRequest(
            data=data(True, 1 if few else arguments.draws, 0),
            held_out=data(False, 1, 0),
            out=out / "fit",
            resume=True,
            **limits,
        )
    )
    print("\n".join(fit.plan().lines), flush=True)
    interpreter.learn(fit)
    minutes = (time.perf_counter() - started) / 60
    measured = interpreter.metrics_
    interpreter.save(out / "bundle", overwrite=True)
    examples = torch.stack([data(False, 1, 0)[k][0] for k in range(8)])
    shown = sample_columns(examples, interpreter.reconstruct(examples), interpreter.sample(examples, n=10))
    grid(shown).savefig(out / "samples.png", dpi=150)
    likelihood, faithful = measured["likelihood"], measured["faithfulness"]
    table = [
        ("whole fit, minutes", minutes, "at most 30"),
        ("reconstruction error, images in [-1, 1]", measured["autoencoder"]["error"], "at most 0.006"),
        ("agreement on reconstructions", measured["autoencoder"]["agreement"], "at least 0.95"),
        ("t held-out, nats", likelihood["held_out"], "10 below the plain recipe"),
        ("t train, nats", likelihood["train"], "within 1 of held-out"),
        ("agreement on samples", faithful["agreement"], "at least 0.90"),
        ("explained by v (MSC eq. 19)", measured["explained_by_invariances"]["value"], "most of it"),
        ("round trip of t", likelihood["round_trip"], ""),
    ]
    result = {name: value for name, value, _ in table} | {"classifier accuracy": accuracy}
    if not arguments.no_plain_recipe:
        plain = plain_recipe(fit.result, 20 if few else 5000, arguments.threads or 0)
        table.append(("plain recipe on the same latents, nats held-out", plain["held_out"], ""))
        table.append(("plain recipe, nats train", plain["train"], ""))
        result["plain recipe"] = plain
    print(f"\n{'':52}{'measured':>10}  target")
    for name, value, target in table:
        print(f"{name:52}{value:10.4f}  {target}")
    for stage, seconds in measured["seconds"].items():
        print(f"  seconds in {stage}: {seconds:.0f}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "colormnist.json").write_text(json.dumps(result | {"metrics": measured}, indent=1))


if __name__ == "__main__":
    main()
