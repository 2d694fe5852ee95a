"""What t has to beat: images with the nearest z, a linear t, and latents found by gradient steps without any t.

    python benchmarks/rivals.py --bundle RUN --data color-digits --draws 40
    python benchmarks/rivals.py --bundle RUN --data color-mnist --data-dir DIR [--model PACKAGE.MODULE:FACTORY]

RUN is what `posthoc-inn fit` wrote, the data what it was fitted to. For held-out images each rival makes as many
latents, and the model is asked about their pictures. Agreement: the model predicts what it predicts for the image.
Cosine: of z, to the image's. Spread: variance of an image's latents, as a share of that of all images' latents. Nats
given z: -log p of the rival's latents under the fitted t, which says how typical they are; held-out nats: of the
images' own latents under the rival. Judge: another classifier (of --judge), which no latent was fitted to, sees in the
pictures what it sees in the image: where it does not, the model is fooled. Seconds are of one sample, all together.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import common_arguments, pinned, print_table, statement
from torch import Tensor

from posthoc_inn import Interpreter
from posthoc_inn.analysis import guided, moved, retrieval
from posthoc_inn.analysis.refining import asked_about
from posthoc_inn.cli.bundles import load
from posthoc_inn.config import preset
from posthoc_inn.fit.linear import fitted_linear
from posthoc_inn.images import BatchSource
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.rows.cache import Cache
from posthoc_inn.training.tasks import flow_nats


def classes_of(judge: Pipeline, pictures: Tensor) -> Tensor:
    """Return the classes (B,) that the judge sees in canonical pictures (B, C, H, W)."""
    return judge.ask_model(pictures)[1].argmax(1).cpu()


def rows_of(pipeline: Pipeline, data: Any, judge: Pipeline | None = None) -> Cache:
    """Return z, mean and deviation of z_bar, and what is compared of the predictions, for a whole data set."""
    cache = Cache()
    for batch in BatchSource(data, batch_size=500).batches():
        images = batch["images"]
        mean, std = pipeline.encode(images)
        said = pipeline.extractor.said(pipeline.ask(images))
        row = {"z": pipeline.features(images), "mean": mean, "std": std}
        if said is not None:
            row["prediction"] = said
        if judge is not None:
            row["judged"] = classes_of(judge, pipeline.adapter.to_images(images.to(pipeline.device)))
        cache.append(**row)
    return cache


def nearest_places(train: Cache, z: Tensor, count: int) -> Tensor:
    """Return the training rows (B, N) whose z is nearest to z (B, *z_shape) by cosine."""
    wanted = F.normalize(z.flatten(1), dim=1)
    parts = [wanted @ F.normalize(rows.float().flatten(1), dim=1).T for (rows,) in train.batches(1000, "z")]
    return torch.cat(parts, 1).topk(count, dim=1).indices


@dataclass
class Rival:
    """One way to latents that have a given z.

    Attributes:
        name: What the table calls it.
        make: Returns latents (B, N, D).
        held_out: Nats of held-out latents, where it has a likelihood.
    """

    name: str
    make: Callable[[], Tensor]
    held_out: float = math.nan


def rivals(
    pipeline: Pipeline, train: Cache, held_out: Cache, z: Tensor, index: Tensor, arguments: argparse.Namespace
) -> list[Rival]:
    """Return all of them, for the held-out rows `index`, of which z (B, *z_shape) are the representations."""
    count, seed = arguments.samples, arguments.seed
    v = torch.randn(len(z), count, pipeline.latent_dim, generator=torch.Generator().manual_seed(seed))
    linear = dataclasses.replace(pipeline, flow=fitted_linear(pipeline.flow, train, held_out, seed=seed))
    own, other = (flow_nats(part.flow, held_out, limit=10_000).mean() for part in (pipeline, linear))
    mean, std = held_out["mean"].rows(index)[:, None], held_out["std"].rows(index)[:, None]

    def drawn(part: Pipeline) -> Tensor:
        return part.sample_latents(part.context(z), v)

    def nearest() -> Tensor:
        places = nearest_places(train, z, count)
        return train["mean"].rows(places.flatten()).view(*places.shape, -1)

    refined = [
        Rival(f"t, refined by {steps} steps", lambda steps=steps: moved(pipeline, drawn(pipeline), z, steps))
        for steps in arguments.steps
    ]
    known = train["mean"].rows(train.some(10_000, seed=seed))
    return [
        Rival("the image's own latent, drawn", lambda: mean + std * v),
        Rival("t", lambda: drawn(pipeline), float(own)),
        *refined,
        Rival("nearest training images, decoded", nearest),
        Rival("linear t", lambda: drawn(linear), float(other)),
        Rival(
            f"no t, {arguments.guided} steps from random starts",
            lambda: guided(pipeline, z, count, arguments.guided, known=known, seed=seed),
        ),
    ]


def judged(pipeline: Pipeline, judge: Pipeline | None, latents: Tensor, held_out: Cache, index: Tensor) -> str:
    """Return the share of latents (B, N, D) whose pictures are for the judge what the held-out images are."""
    if judge is None:
        return ""
    parts = [classes_of(judge, pipeline.decode(part)) for part in latents.flatten(0, 1).split(256)]
    own = held_out["judged"].rows(index).repeat_interleave(latents.shape[1])
    return f"{float((torch.cat(parts) == own).double().mean()):.3f}"


def compare(
    interpreter: Interpreter,
    train_data: Any,
    held_out_data: Any,
    arguments: argparse.Namespace,
    judge: Pipeline | None = None,
) -> None:
    """Measure all and print the table."""
    pipeline = interpreter.pipeline
    train, held_out = rows_of(pipeline, train_data), rows_of(pipeline, held_out_data, judge)
    index = held_out.some(arguments.images, seed=arguments.seed)
    z = held_out["z"].rows(index).float()
    prediction = held_out["prediction"].rows(index) if "prediction" in held_out else None
    total = train["mean"].rows(train.some(50_000, seed=arguments.seed)).double().var(0).sum()
    found = retrieval(train, z, prediction, neighbours=arguments.samples, seed=arguments.seed)
    print(
        f"{len(train):,} training images, {len(index)} held-out ones of {len(held_out):,}, {arguments.samples} latents "
        f"each; layer {interpreter.layer}, z of {math.prod(pipeline.z_shape)}, z_bar of {pipeline.latent_dim}"
    )
    print(f"nearest training images themselves: agreement {found.agreement:.3f}, cosine {found.similarity:.4f}")
    table = []
    for rival in rivals(pipeline, train, held_out, z, index, arguments):
        started = time.perf_counter()
        latents = rival.make()
        seconds = (time.perf_counter() - started) / latents[..., 0].numel()
        seen = asked_about(pipeline, latents, z, prediction)
        context = pipeline.context(z).repeat_interleave(latents.shape[1], 0)
        nats = pipeline.invariances(latents.flatten(0, 1), context)[1].double().mean()
        said = seen.agreement if math.isnan(seen.output_similarity) else seen.output_similarity
        table.append(
            [
                rival.name,
                f"{said:.3f}",
                f"{seen.similarity:.4f} ± {seen.similarity_error:.4f}",
                f"{float(latents.double().var(1).sum(-1).mean() / total):.3f}",
                judged(pipeline, judge, latents, held_out, index),
                f"{float(nats):.1f}",
                "" if math.isnan(rival.held_out) else f"{rival.held_out:.1f}",
                f"{1000 * seconds:.2f}",
            ]
        )
    print_table(["", "agreement", "cosine", "spread", "judge", "nats given z", "held-out nats", "ms a sample"], table)


def tiny() -> tuple[Interpreter, Any, Any]:
    """Return a fit of a second, and its images, to see that all runs."""
    manager = get_plugin_manager()
    data = manager.build_dataset("color-digits", None, train=True)
    train, held_out = (torch.utils.data.Subset(data, range(a, b)) for a, b in ((0, 80), (80, 100)))
    config = preset("quick")
    steps = {"steps": 5, "batch_size": 32, "eval_every": 5}
    config = config.replace(
        latent_dim=8, autoencoder_width=8, flow=config.flow.replace(dim=8, blocks=1, width=16), linear_fallback=False,
        autoencoder_training=config.autoencoder_training.replace(**steps),
        flow_training=config.flow_training.replace(**steps),
    )  # fmt: skip
    interpreter = Interpreter(
        manager.build_backbone("small_cnn"), "pool", spec=manager.backbones.get("small_cnn").metadata["spec"],
        preset=config,
    )  # fmt: skip
    return interpreter.fit(train, held_out=held_out, evaluate=False, progress=False), train, held_out


def main(argv: list[str] | None = None) -> None:
    """Load a run and its data, and compare."""
    parser = common_arguments(__doc__)
    parser.add_argument("--bundle", type=Path, help="what `posthoc-inn fit` wrote")
    parser.add_argument("--model", default=None, help="PACKAGE.MODULE:FACTORY of a model of your own")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--judge", type=Path, default=None, help="another run, whose classifier judges pictures too")
    parser.add_argument("--data", default="color-digits", help="registered data set")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--draws", type=int, default=1, help="colourings of each training image")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 40], help="of refining")
    parser.add_argument("--guided", type=int, default=100, help="steps without t")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    with pinned(arguments.threads) as threads:
        print(statement(threads))
        if arguments.smoke:
            arguments.images, arguments.samples, arguments.steps, arguments.guided = 3, 2, [2], 2
            interpreter, train, held_out = tiny()
            compare(interpreter, train, held_out, arguments, interpreter.pipeline)
            return
        if arguments.bundle is None:
            parser.error("--bundle is missing: what `posthoc-inn fit` wrote")
        interpreter, _ = load(arguments.bundle, arguments.model, arguments.weights, "auto", None)
        build = get_plugin_manager().build_dataset
        options = {"draws": arguments.draws} if arguments.draws > 1 else {}
        train, held_out = (
            build(arguments.data, arguments.data_dir, train=part, **more)
            for part, more in ((True, options), (False, {}))
        )
        judge = None if arguments.judge is None else load(arguments.judge, None, None, "auto", None)[0].pipeline
        compare(interpreter, train, held_out, arguments, judge)


if __name__ == "__main__":
    main()
