"""Tables 1 and 2, figures 2, 4, 9 and 10 of IIN on ColorMNIST: what factors of a representation hold, and what not.

    python examples/disentangling.py --data-dir DIR [--bundle DIR --classifier FILE] [--out runs/disentangling]

--bundle takes autoencoder and e (digit, foreground, background) from an earlier run, for instance a point of
training_sweep.py, --classifier a SqueezeNet 1.1 (weights of color_mnist.py); both are trained when not given. Prints
one table beside the paper's numbers, and writes it (JSON, Markdown) and the figures to --out. Every stage goes on
where it was stopped; --parts measures some of the parts anew. Three quarters of an hour on one thread with both given.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from color_mnist import LAYER, SPEC, train_classifier, untrained
from digit_oracle import (
    COLORS,
    DigitNetwork,
    Row,
    digit_network,
    judge,
    response_rows,
    some_digits,
    tied_autoencoder,
    true_response,
    with_pairs,
    write_table,
)
from matplotlib.figure import Figure
from torch import Tensor

from posthoc_inn import Interpreter
from posthoc_inn.analysis import Response, generative_quality, response, response_embedding, walk_density
from posthoc_inn.analysis.editing import latent_walk, swap, walk
from posthoc_inn.autoencoders import Autoencoder
from posthoc_inn.concepts import ConceptModel, JoinedSources, Space, factor_sizes
from posthoc_inn.config import ConceptConfig, TrainConfig
from posthoc_inn.datasets.color_digits import ColorizedDigits
from posthoc_inn.drawing import columns_of, grid, to_png
from posthoc_inn.fit.binding import BoundConcepts
from posthoc_inn.fit.concepts import estimate_sizes, fit_concepts, rows_of
from posthoc_inn.objectives import standard_normal_nll
from posthoc_inn.rows.cache import Cache
from posthoc_inn.rows.pairs import RowPairs
from posthoc_inn.training.precision import choose_precision
from posthoc_inn.weights import load_weights

OWN_NETWORK, NO_CONTRAST = "digit network", "contrast-free network"
PLACES: dict[str, Space] = {"autoencoder": "z_bar", OWN_NETWORK: "z", NO_CONTRAST: "z", "SqueezeNet": "z"}
TIED, BOTH = "IIN's painting", "both colours"
OWN, COARSE, TABLE = "autoencoder-tied", "autoencoder-tied-coarse", "autoencoder-tied-msc"
PAPER_SIZES = {("autoencoder", BOTH): (12, 19), (OWN_NETWORK, BOTH): (22, 11),
               (OWN, TIED): (12, 19), (TABLE, TIED): (12, 19), (OWN_NETWORK, TIED): (22, 11)}  # fmt: skip
IN_Z_BAR = "linear in z_bar"


@dataclass
class Run:
    """What every part of the script works with, and what it has found."""

    arguments: argparse.Namespace
    interpreter: Interpreter
    networks: dict[str, DigitNetwork]
    rows: list[Row] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    caches: dict[tuple[str, bool], Cache] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.out: Path = self.arguments.out
        self.is_smoke: bool = self.arguments.smoke
        self.limit = 500 if self.is_smoke else None
        # The second takes contrast and tint out of an image first: the judge of figure 2, and hardly knows of colours.
        self.oracle = self.networks[NO_CONTRAST]
        self.held_out = some_digits(self.arguments.data_dir, train=False, limit=self.limit)

    def add(self, *rows: Row) -> None:
        self.rows += rows
        print(*rows, sep="\n", flush=True)

    def draw(self, name: str, figure: Figure) -> None:
        (self.out / f"{name}.png").write_bytes(to_png(figure, 110))

    def data(self, *, train: bool) -> tuple[ColorizedDigits, JoinedSources]:
        """Return the images that an e is fitted on, or measured on; pairs of one colour share both colours."""
        return with_pairs(self.arguments.data_dir, train=train, seed=3, limit=self.limit)

    def kept(self, place: str) -> list[Cache]:
        """Return training and held-out rows of those images at a place, read once."""
        for train in (True, False):
            if (place, train) not in self.caches:
                self.caches[place, train] = self.cached(self.data(train=train)[0], place)
        return [self.caches[place, train] for train in (True, False)]

    @torch.no_grad()
    def cached(self, data: ColorizedDigits, place: str | Autoencoder) -> Cache:
        """Return rows of the data as an autoencoder, the digit network or SqueezeNet sees them."""
        pipeline, found = self.interpreter.pipeline, Cache()
        autoencoder = pipeline.autoencoder if place == "autoencoder" else place
        for index in torch.arange(len(data)).split(500):
            images = data.images(index)
            if not isinstance(autoencoder, str):
                mean, std = autoencoder.encode(images)
                found.append(mean=mean, std=std)
            else:
                network = self.networks.get(autoencoder)
                found.append(z=pipeline.features(images) if network is None else network.of_pictures(images))
        return found


def prepare(arguments: argparse.Namespace) -> Run:
    """Train or read the classifiers, the autoencoder and e."""
    out, smoke, data_dir = arguments.out, arguments.smoke, arguments.data_dir
    (out / "parts").mkdir(parents=True, exist_ok=True)
    model = untrained(1)
    if arguments.classifier is not None or not smoke:
        weights = arguments.classifier or train_classifier(data_dir, out / "classifier", [40_000])[40_000.0]
        model = load_weights(model, weights)
    model.eval()
    bundle = arguments.bundle or out / "bundle"
    if bundle.exists():
        # The bundle's t may belong to another state of the classifier: it is not asked here.
        interpreter = Interpreter.load(bundle, model=model, allow_other_model=True)
    else:
        interpreter = Interpreter(model, LAYER, spec=SPEC, seed=0)
        few = {"autoencoder_steps": 20, "concept_steps": 20} if smoke else {}
        data = (some_digits(data_dir, train=t, draws=1 + t, limit=500 if smoke else None) for t in (True, False))
        interpreter.fit(
            next(data), held_out=next(data), concepts=["digit", *COLORS], steps=1, evaluate=False,
            out=out / "fit", resume=(out / "fit").is_dir(), **few,
        )  # fmt: skip
        interpreter.save(bundle)
    networks = {}
    for name, seed in ((OWN_NETWORK, 1), (NO_CONTRAST, 2)):
        networks[name], accuracy = digit_network(
            data_dir, out / f"{name.replace(' ', '-')}.safetensors", steps=20 if smoke else 6000, seed=seed,
            standardized=name == NO_CONTRAST, limit=500 if smoke else None,
        )  # fmt: skip
        print(f"{name}: accuracy {accuracy:.4f} on held-out images", flush=True)
    return Run(arguments, interpreter, networks)


def fit_e(
    run: Run, name: str, place: str, steps: int, *, blocks: int = 8, width: int = 256, unsupervised: bool = False
) -> ConceptModel:
    """Train an e over cached rows, or read it; its factors' sizes are those of eq. 11."""
    caches, space = run.kept(place), PLACES[place]
    sources = [None, None] if unsupervised else [run.data(train=train)[1] for train in (True, False)]
    every = 10 if run.is_smoke else 250
    training = TrainConfig(
        steps=20 if run.is_smoke else steps, lr=3e-3, weight_decay=0.3, eval_every=every, checkpoint_every=every,
        patience=0,
    )  # fmt: skip
    found = fit_concepts(
        BoundConcepts(sources[0], sources[1], space, None), rows_of(space, caches[0]), rows_of(space, caches[1]),
        config=ConceptConfig(
            blocks=blocks, width=width, random=False, learn_rho=not run.arguments.fixed_rho, training=training
        ),
        precision=choose_precision("auto", torch.device("cpu")), checkpoint=run.out / f"e-{name}.safetensors",
        resume=True,
    )  # fmt: skip
    looks = found.history.to_dict()["rows"]
    sizes = dict(zip(found.model.factor_names, found.model.factor_dims, strict=True))
    print(f"e-{name}: {looks[-1]['held_out']:.2f} nats, {sizes}, {found.history.seconds:.0f} s", flush=True)
    run.details[f"e-{name}"] = {"sizes": sizes, "scores": found.scores, "looks": looks}
    return found.model


# ---- table 1


def table_1(run: Run) -> None:
    """Sizes of the factors digit and colour by eq. 11, for every reading of what a pair of one colour shares."""
    data_dir, smoke = run.arguments.data_dir, run.is_smoke
    readings = {BOTH: COLORS, "foreground": COLORS[:1], "background": COLORS[1:], TIED: COLORS[:1]}
    # Do sizes in IIN's painting depend on what the autoencoder was trained on, on how finely it codes an image, and on
    # its construction?
    trained: dict[str, Autoencoder] = {}
    for name, steps, gamma, kind in (
        (OWN, 3000, 0.004, "conv"),
        (COARSE, 1500, 0.1, "conv"),
        (TABLE, 3000, 0.004, "msc"),
    ):
        trained[name] = tied_autoencoder(
            data_dir, run.out / f"{name}.safetensors", steps=20 if smoke else steps, min_gamma=gamma, kind=kind,
            limit=run.limit,
        )  # fmt: skip
    sizes: dict[str, dict[str, tuple[int, ...]]] = {}
    for reading, share in readings.items():
        is_tied, limit = reading == TIED, run.limit or 5000
        data, source = with_pairs(data_dir, train=False, seed=7, share=share, tied=is_tied, limit=limit)
        caches = {place: run.cached(data, place) for place in PLACES}
        if is_tied:
            caches |= {name: run.cached(data, autoencoder) for name, autoencoder in trained.items()}
        sizes[reading] = {}
        for place, cache in caches.items():
            scores = estimate_sizes(rows_of(PLACES.get(place, "z_bar"), cache), RowPairs(source))[1]
            sizes[reading][place] = found = factor_sizes(scores, 64)
            row = Row("Table 1", f"{place}, {reading}: digit / colour of 64 (scores)")
            row.ours = f"{found[1]} / {found[2]} ({scores['digit']:.2f} / {scores['colour']:.2f})"
            if (place, reading) in PAPER_SIZES:
                paper = PAPER_SIZES[place, reading]
                row.paper, row.target = "{} / {}".format(*paper), "within 4"
                row.is_met = max(abs(a - b) for a, b in zip(found[1:], paper, strict=True)) <= 4
            run.add(row)
    for reading, by_place in sizes.items():
        reference = by_place.get(OWN, by_place["autoencoder"])
        for place in (OWN_NETWORK, "SqueezeNet"):
            digit, color = (b - a for a, b in zip(reference[1:], by_place[place][1:], strict=True))
            row = Row("Table 1", f"{place} against autoencoder, {reading}: digit, colour", f"{digit:+d}, {color:+d}")
            row.paper, row.target, row.is_met = "+10, -8", "digit > 0, colour < 0", digit > 0 > color
            run.add(row)


# ---- figure 2


def figure_2(run: Run) -> None:
    """Swap factors between held-out images; the oracle and the reader of colours judge the decoded pictures."""
    pipeline, data = run.interpreter.pipeline, run.held_out
    generator = torch.Generator().manual_seed(0)
    own, source = (torch.randperm(len(data), generator=generator)[: 200 if run.is_smoke else 4000] for _ in range(2))
    differ = data.digits[own] != data.digits[source]
    own, source = own[differ], source[differ]
    x, y = (pipeline.encode(data.images(index))[0] for index in (own, source))
    for name, pictures in (("images", data.images(own)), ("reconstructions", pipeline.decode(x))):
        seen = judge(run.oracle, pictures, data, own=own)
        run.add(Row("Figure 2", f"{name}: oracle sees the digit", seen.share("own")))
        run.add(Row("Figure 2", f"{name}: error of the colours read (stroke, ground)", seen.distance("own")))
    two = fit_e(run, "z_bar-digit-colour", "autoencoder", 5000)
    makers = {
        "e of digit, colour": (two, ("colour",)),
        "e of digit, two colours": (run.interpreter.concept_model, COLORS),
    }
    for maker, (e, colors) in makers.items():
        # The last two tell causes apart: what the residual still knows of the digit, and what e spoils besides.
        edits = {name: [name] for name in ("digit", "colour", "residual")} | {"colour": list(colors)}
        edits["digit + residual"] = ["digit", "residual"]
        edits["all but colour"] = [n for n in e.factor_names if n not in colors]
        made = {name: pipeline.decode(swap(e, x, y, names)) for name, names in edits.items()}
        for name, names in edits.items():
            seen = judge(run.oracle, made[name], data, own=own, source=source)
            digit, color = ("source" if n in names else "own" for n in ("digit", colors[0]))
            what = f"{maker}, swap of {name}"
            rows = [
                Row("Figure 2", f"{what}: oracle sees the {digit}'s digit", seen.share(digit)),
                Row("Figure 2", f"{what}: distance from the {color}'s colours", seen.distance(color)),
            ]
            if name in ("digit", "colour"):
                rows[0].target, rows[0].is_met = ">= 90 %", seen.digit[digit][0] >= 0.9
                rows[1].target, rows[1].is_met = "< 0.1", max(v for v, _ in seen.far[color].values()) < 0.1
            run.add(*rows)
            run.details[f"{maker}, {name}"] = asdict(seen)
        shown = torch.stack([pipeline.decode(x[:8]), pipeline.decode(y[:8]), *(made[n][:8] for n in list(edits)[:3])])
        labels = ["image", "source", "digit\nof source", "colours\nof source", "residual\nof source"]
        figure = grid(columns_of(shown.transpose(0, 1), headings=labels, gaps=(1, 2)))
        run.draw("figure2" if maker == "e of digit, colour" else "figure2-two-colours", figure)


# ---- figure 4, table 2


def figure_4_and_table_2(run: Run) -> None:
    """An e without concepts: how likely walks are under it, and how good its samples."""
    unsupervised = fit_e(run, "z_bar-without-concepts", "autoencoder", 2500, unsupervised=True)
    pipeline, supervised = run.interpreter.pipeline, run.interpreter.concept_model
    held, index = run.kept("autoencoder")[1], torch.arange(100 if run.is_smoke else 1000)
    mean, std = held["mean"].rows(index), held["std"].rows(index)
    a, b = (mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))).chunk(2)
    kinds = ("linear", "spherical")
    paths = {f"{kind} in e": walk(supervised, a, b, 11, kind) for kind in kinds} | {IN_Z_BAR: latent_walk(a, b, 11)}
    for name, density in (("an unsupervised e", unsupervised), ("N(0, 1)", standard_normal_nll)):
        found = walk_density(paths, density, name=name)
        run.details[f"walks under {name}"] = found.to_dict()
        more, error = found.difference[IN_Z_BAR], found.difference_error[IN_Z_BAR]
        row = Row("Figure 4", f"a line in z_bar costs more than one in e, {name}", f"{more:+.1f} ± {error:.1f} nats")
        if density is unsupervised:
            row.target, row.is_met = "> 0", more > 2 * error
            run.draw("figure4-density", found.figure())
        what = f"nats under {name} at the ends and in the middle"
        run.add(row, *(Row("Figure 4", f"{what}: {k}", f"{v[0]:.1f}, {v[5]:.1f}") for k, v in found.nats.items()))
    strips = torch.stack([pipeline.decode(path[k]) for k in (0, 1, 2) for path in paths.values()])
    run.draw("figure4", grid(columns_of(strips), row_labels=[*paths] * 3))
    images = run.held_out.images(torch.arange(len(run.held_out)))
    quality = generative_quality(
        pipeline, unsupervised, images, features=run.oracle.of_pictures, name="the digit oracle, 64 features", trials=3
    )
    run.details["table 2"] = quality.to_dict()
    what = f"Frechet distance over {quality.network}"
    run.add(*(Row("Table 2", f"{what}: {c.name}", f"{c.distance:.3g}") for c in quality.comparisons))
    ratio = quality["samples of N(0, 1)"].distance / quality["samples of e"].distance
    run.add(Row("Table 2", "distance of N(0, 1) over that of e", f"{ratio:.1f}", "", "> 1", ratio > 1))
    run.draw("table2", quality.figure())


# ---- figures 9 and 10


def figures_9_and_10(run: Run) -> None:
    """Walk in the factors of e over a digit network's z, as IIN does, and watch its output."""
    images, steps = (20, 10) if run.is_smoke else (200, 100)
    for place, network in run.networks.items():
        e = fit_e(run, f"z-of-{place.replace(' ', '-')}", place, 4000, width=192)
        z = run.kept(place)[1]["z"].rows(torch.arange(200 if run.is_smoke else 2000))
        told(run, place, response(network.head, e, z, images=images, steps=steps), network.scores)
        if place == OWN_NETWORK and importlib.util.find_spec("umap") is not None:
            labels = run.data(train=False)[0].digits[: len(z)]
            run.draw("figure10", response_embedding(e, z, labels, ("digit", "colour"), steps=50).figure())


def figure_9_of_squeezenet(run: Run) -> None:
    """The same of the network that MSC explains, whose z has 512 values."""
    e, pipeline = fit_e(run, "z-of-SqueezeNet", "SqueezeNet", 1000, blocks=6), run.interpreter.pipeline
    images, steps = (10, 5) if run.is_smoke else (100, 50)
    found = response(pipeline, e, run.held_out.images(torch.arange(images)), images=images, steps=steps)
    told(run, "SqueezeNet", found, lambda pictures: pipeline.ask_model(pictures)[1])


def told(run: Run, place: str, found: Response, scores: Callable[[Tensor], Tensor]) -> None:
    run.details[f"response of {place}"] = found.to_dict()
    truth = true_response(place, scores, run.held_out, images=10 if run.is_smoke else 100, draws=50)
    run.add(*response_rows(place, found), truth)
    run.draw(f"figure9-{place.replace(' ', '-')}", found.figure())


PARTS = {
    "table1": table_1, "figure2": figure_2, "figure4": figure_4_and_table_2, "figure9": figures_9_and_10,
    "figure9-squeezenet": figure_9_of_squeezenet,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/disentangling"))
    parser.add_argument("--classifier", type=Path, default=None, help="weights of a SqueezeNet 1.1 on ColorMNIST")
    parser.add_argument("--bundle", type=Path, default=None, help="bundle with autoencoder and e")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--fixed-rho", action="store_true", help="fit e with the papers' fixed correlation of pairs")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--smoke", action="store_true", help="a few steps of everything, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    run = prepare(arguments)
    for name in arguments.parts:
        started = time.perf_counter()
        run.rows, run.details = [], {}
        PARTS[name](run)
        part = {"seconds": time.perf_counter() - started, "rows": [asdict(r) for r in run.rows], "details": run.details}
        (run.out / "parts" / f"{name}.json").write_text(json.dumps(part, indent=1))
        write_table(run.out, list(PARTS))


if __name__ == "__main__":
    main()
