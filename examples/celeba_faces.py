"""MSC sections 4.2 and 4.4 on CelebA: what a face recognition network keeps of faces, and what edits do to it.

    python examples/celeba_faces.py --data-dir DIR --weights FILE [--out runs/celeba] [--smoke] [--threads 1]

DIR holds images.zip and attributes.csv, FILE is a checkpoint of MobileFaceNet (see mobile_face_net.py). Fits one
autoencoder for 64-pixel faces, e over the six attributes of MSC B.5, and t at four depths; trains a judge that is no
part of this; and measures what edits do in the judge's eyes and to the network's embedding, and how much each layer
lets a face vary. Tables and figures go to --out. Every stage goes on where it was stopped when it is started again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mobile_face_net import identity_kept, load_face_net, same_person
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import Dataset

from posthoc_inn import Interpreter, analysis
from posthoc_inn.analysis.editing import swap
from posthoc_inn.concepts import RANDOM, AttributeSource, ConceptModel, attributes_of
from posthoc_inn.config import FitConfig, ImageSpec, TrainConfig, preset
from posthoc_inn.drawing import columns_of, grid, to_png
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.sweep import SweepResult, layer_sweep
from posthoc_inn.training import train

ATTRIBUTES = {
    "Black_Hair": "hair", "Eyeglasses": "glasses", "Male": "gender", "No_Beard": "beard", "Young": "age",
    "Smiling": "smile",
}  # fmt: skip
"""CelebA's name -> the paper's (MSC B.5)."""
NAMES = list(ATTRIBUTES)
LAYERS = ("network.blocks.4", "network.blocks.11", "network.blocks.14", "network.linear1")
"""Ends of the stages of 28 x 24, 14 x 12 and 7 x 6 pixels, and the embedding."""
EMBEDDING = LAYERS[-1]
SIZE = 64


class Mirrored(Dataset[tuple[Tensor, Tensor]]):
    """Every face twice, the second time mirrored: its attributes are the same, and 9,000 faces are few."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.attribute_names, self.targets = data.attribute_names, torch.cat([data.targets, data.targets])

    def __len__(self) -> int:
        return 2 * len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture, values = self.data[index % len(self.data)]
        return (picture if index < len(self.data) else picture.flip(2)), values


def for_few_faces(eval_every: int, **concepts: Any) -> FitConfig:
    """Return the default preset for 128 dimensions and some thousand faces, with more settings of e.

    On the factors of e half the blocks are enough. An e of the usual size learns 9,000 faces by heart within 300 steps
    (nats of held-out pairs rise from then on), hence a small one, looked at often: the best weights are kept.
    """
    usual = preset("default")
    return usual.replace(
        latent_dim=128,
        flow=usual.flow.replace(dim=128, blocks=4),
        concepts=usual.concepts.replace(
            blocks=4, width=64, depth=1, dropout=0.2,
            training=usual.concepts.training.replace(lr=1e-3, eval_every=eval_every), **concepts,
        ),
    )  # fmt: skip


def faces(data_dir: str, *, train: bool, few: int | None = None) -> Any:
    """Return CelebA's training or held-out faces; nobody is in both."""
    data = get_plugin_manager().build_dataset("celeba", data_dir, train=train, size=SIZE)
    if few is not None:
        data.names, data.targets = data.names[:few], data.targets[:few]
    return data


def pixels_of(data: Any) -> Tensor:
    """Return all pictures, uint8 (N, 3, 64, 64)."""
    return torch.stack([(data[k][0] * 255).round().to(torch.uint8) for k in range(len(data))])


def values_of(data: Any) -> Tensor:
    """Return the six attributes, (N, 6), 0 or 1."""
    return data.targets[:, [data.attribute_names.index(name) for name in NAMES]]


# ---- the judge: a classifier that neither E, D, t, e nor the network had a part in


class Judge(nn.Module):
    """A score (B, 6) for each attribute, positive where it is present, of faces (B, 3, 64, 64) in [0, 1]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            layers: list[nn.Module] = []
            for before, after in ((3, 32), (32, 64), (64, 128), (128, 128)):
                layers += [nn.Conv2d(before, after, 4, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
            self.network = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.4), nn.Linear(128 * 16, len(NAMES)))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network((x * 4 - 2).contiguous(memory_format=torch.channels_last))
        return out

    @torch.no_grad()
    def verdict(self, pictures: Tensor) -> Tensor:
        """Return 0 or 1 for each attribute, (B, 6)."""
        return torch.cat([(self(part) > 0).long() for part in pictures.split(256)])


class JudgeLoss(nn.Module):
    """Cross-entropy in which both values of an attribute weigh the same."""

    def __init__(self, judge: Judge, share: Tensor) -> None:
        super().__init__()
        self.judge = judge
        self.register_buffer("weight", torch.stack([0.5 / (1 - share), 0.5 / share]))  # of absent, of present

    def forward(self, pictures: Tensor, values: Tensor) -> Tensor:
        weight = torch.where(values > 0, self.weight[1], self.weight[0])
        return F.binary_cross_entropy_with_logits(self.judge(pictures), values.float(), weight=weight)


class JudgeTask:
    """Faces mirrored and blurred at random: what an autoencoder makes of faces is blurred, and must not confuse it."""

    name = "judge"

    def __init__(self, judge: Judge, pictures: Tensor, values: Tensor, batch_size: int) -> None:
        aside = len(pictures) // 20
        self.kept, self.kept_values = pictures[:aside], values[:aside]
        self.pictures, self.values = pictures[aside:], values[aside:]
        self.batch_size = batch_size
        self.module = JudgeLoss(judge, values.double().mean(0).clamp(0.01, 0.99).float())

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        index = torch.randint(len(self.pictures), (self.batch_size,), generator=generator)
        pictures = self.pictures[index].float() / 255
        turned = torch.rand(len(index), generator=generator) < 0.5
        pictures[turned] = pictures[turned].flip(3)
        blurred = F.interpolate(
            F.interpolate(pictures, 24, mode="bilinear", antialias=True), SIZE, mode="bilinear", align_corners=False
        )
        share = torch.rand(len(index), 1, 1, 1, generator=generator)
        return torch.lerp(pictures, blurred, share), self.values[index]

    def held_out(self) -> dict[str, float]:
        losses = [
            float(self.module(p.float() / 255, v)) * len(p)
            for p, v in zip(self.kept.split(256), self.kept_values.split(256), strict=True)
        ]
        return {"loss": sum(losses) / len(self.kept)}


def train_judge(pictures: Tensor, values: Tensor, steps: int, out: Path) -> Judge:
    """Return the judge, trained on training faces; a twentieth of these chooses its best weights."""
    judge = Judge()
    config = TrainConfig(
        steps=steps, batch_size=64, lr=2e-3, weight_decay=0.02, eval_every=max(1, steps // 8), patience=0,
        checkpoint_every=max(1, steps // 4),
    )  # fmt: skip
    file = out / "judge.safetensors"
    train(JudgeTask(judge, pictures, values, config.batch_size), config, checkpoint=file, resume=file.exists())
    return judge.eval()


# ---- measures


def balanced(verdict: Tensor, values: Tensor) -> Tensor:
    """Return, for each column, the mean over both values of the share that is right."""
    right = (verdict == values).double()
    shares = [(right * (values == v)).sum(0) / (values == v).sum(0).clamp_min(1) for v in (0, 1)]
    return (shares[0] + shares[1]) / 2


def probe(x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor) -> float:
    """Return the balanced accuracy, on held-out rows, of logistic regression of y (N,) on x (N, D)."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced"))
    return float(balanced_accuracy_score(y_held, model.fit(x, y).predict(x_held)))


def factor_probes(
    concepts: ConceptModel, name: str, rows: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]
) -> dict[str, float]:
    """Return what a linear reader tells of a concept in the latent, in its own factor, and in all the others.

    `rows` and `held_out` are latents (N, D) and values (N,).
    """
    (x, y), (x_held, y_held) = rows, held_out
    factors, factors_held = concepts.joined(x), concepts.joined(x_held)
    part = concepts.part(name)
    rest = [c for c in range(factors.shape[1]) if not part.start <= c < part.stop]
    return {
        "probe_latent": probe(x, y, x_held, y_held),
        "probe_factor": probe(factors[:, part], y, factors_held[:, part], y_held),
        "probe_rest": probe(factors[:, rest], y, factors_held[:, rest], y_held),
    }


def differing(values: Tensor, seed: int) -> Tensor:
    """Return for each image the index of a random one with the other value (N,)."""
    generator = torch.Generator().manual_seed(seed)
    out = torch.empty(len(values), dtype=torch.long)
    for value in (0, 1):
        here, pool = (values == value).nonzero()[:, 0], (values != value).nonzero()[:, 0]
        out[here] = pool[torch.randint(len(pool), (len(here),), generator=generator)]
    return out


def edits(
    pipeline: Pipeline, concepts: ConceptModel, judge: Judge, z_bar: Tensor, values: Tensor
) -> tuple[dict[str, dict[str, Any]], Tensor]:
    """Take each attribute from a face with the other value; return the judge's verdicts, and edits (64, 6, C, H, W).

    `taken`: the judge sees the source's value, mean over both directions; `before`: it does so unedited; `bound`: it
    does so in the source's own reconstruction; `random`: when the random factor is taken. `kept`: its verdict on the
    other five is that on the reconstruction.
    """
    plain = judge.verdict(pipeline.decode(z_bar))
    found, pictures = {}, []
    for k, name in enumerate(NAMES):
        source = differing(values[:, k], seed=k)
        new = values[source][:, k : k + 1]
        share = lambda verdict: float(balanced(verdict[:, k : k + 1], new)[0])  # noqa: E731, B023
        edited = pipeline.decode(swap(concepts, z_bar, z_bar[source], name))
        verdict = judge.verdict(edited)
        by_chance = judge.verdict(pipeline.decode(swap(concepts, z_bar, z_bar[source], RANDOM)))
        pictures.append(edited[:64])
        unchanged = (verdict == plain).double().mean(0)
        others = [j for j in range(len(NAMES)) if j != k]
        found[name] = {
            "taken": share(verdict), "before": share(plain), "random": share(by_chance), "bound": share(plain[source]),
            "kept": float(unchanged[others].mean()),
            "kept_random": float((by_chance == plain).double().mean(0)[others].mean()),
            "kept_each": {NAMES[j]: float(unchanged[j]) for j in others},
        }  # fmt: skip
    return found, torch.stack(pictures, dim=1)


# ---- everything


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="directory with images.zip and attributes.csv")
    parser.add_argument("--weights", required=True, help="checkpoint of MobileFaceNet")
    parser.add_argument("--out", type=Path, default=Path("runs/celeba"))
    parser.add_argument("--autoencoder-steps", type=int, default=5000)
    parser.add_argument("--concept-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=1000, help="steps of t at each layer")
    parser.add_argument("--judge-steps", type=int, default=1200)
    parser.add_argument("--width", type=int, default=1, help="dimensions of an attribute's factor; 0: as eq. 11 of IIN")
    parser.add_argument("--unaligned", action="store_true", help="start e anywhere, as in the papers")
    parser.add_argument("--only-edits", action="store_true", help="stop before the other layers")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--smoke", action="store_true", help="few faces, few steps: to see that it runs")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    smoke, out = arguments.smoke, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    model = load_face_net(arguments.weights)
    data = faces(arguments.data_dir, train=True, few=300 if smoke else None)
    held_out = faces(arguments.data_dir, train=False, few=40 if smoke else None)
    # Two values of an attribute differ by their mean, which is one direction: one dimension a factor. Any more hold
    # whatever else two faces share, and move whenever it is edited.
    widths = [arguments.width] * (len(NAMES) + 1)
    config = for_few_faces(
        eval_every=50, aligned=not arguments.unaligned,
        sizes=(128 - sum(widths), *widths) if arguments.width else None,
    )  # fmt: skip
    config = config.replace(flow_training=config.flow_training.replace(eval_every=100))
    layers = LAYERS
    if smoke:
        small = {"blocks": 1, "width": 32}
        config = config.replace(
            autoencoder_width=8, flow=config.flow.replace(**small), concepts=config.concepts.replace(**small)
        )
        layers = LAYERS[2:]
    fit = {"steps": 20, "autoencoder_steps": 20, "concept_steps": 20} if smoke else {
        "steps": arguments.steps, "autoencoder_steps": arguments.autoencoder_steps,
        "concept_steps": arguments.concept_steps,
    }  # fmt: skip
    judge_steps = 20 if smoke else arguments.judge_steps
    started = time.perf_counter()
    mirrored = Mirrored(data)
    # Nearly all who wear a beard are men: a pair drawn for one attribute is told to share the others too where it
    # does, so that what belongs to men is not taken for the beard.
    concepts_of = AttributeSource(attributes_of(mirrored), concepts=NAMES, agree="all")

    def sweep(chosen: tuple[str, ...]) -> SweepResult:
        # The first layer fits autoencoder and e for all: the embedding, whose z is small.
        return layer_sweep(
            model, chosen, mirrored, held_out=held_out, concepts=concepts_of, out=out / "layers",
            spec=ImageSpec(size=(SIZE, SIZE)), preset=config, seed=0, fit=fit,
        )  # fmt: skip

    def say(text: str) -> None:
        print(f"[{(time.perf_counter() - started) / 60:5.1f} min] {text}", flush=True)

    def save(name: str, figure: Any) -> None:
        (out / f"{name}.png").write_bytes(to_png(figure, dpi=100))

    sweep((EMBEDDING,))
    at = {EMBEDDING: Interpreter.load(out / "layers" / EMBEDDING / "bundle", model=model)}
    pipeline, concepts = at[EMBEDDING].pipeline, at[EMBEDDING].concept_model
    pictures, values = pixels_of(data), values_of(data)
    kept, kept_values = pixels_of(held_out) / 255, values_of(held_out)
    judge = train_judge(pictures, values, judge_steps, out)
    say("autoencoder, e, t at the embedding, and the judge are trained")

    z_bar = pipeline.encode(kept)[0]
    z_train = torch.cat([pipeline.encode(part.float() / 255)[0] for part in pictures.split(512)])
    found: dict[str, Any] = {"fit": fit | {"judge_steps": judge_steps, "faces": len(data), "held_out": len(held_out)}}
    found["identity"] = identity_kept(pipeline, kept)
    on_photographs = balanced(judge.verdict(kept), kept_values)
    on_decoded = balanced(judge.verdict(pipeline.decode(z_bar)), kept_values)
    found["edits"], edited = edits(pipeline, concepts, judge, z_bar, kept_values)
    for k, name in enumerate(NAMES):
        found["edits"][name] |= {
            "width": concepts.factor_dims[concepts.index(name)],
            "judge_photographs": float(on_photographs[k]), "judge_decoded": float(on_decoded[k]),
            **factor_probes(concepts, name, (z_train, values[:, k]), (z_bar, kept_values[:, k])),
        }  # fmt: skip
    shown = torch.arange(8)
    columns = [kept[shown][:, None], pipeline.decode(z_bar[shown])[:, None], edited[shown]]
    titles = ("input", "decoded", *(f"other\n{text}" for text in ATTRIBUTES.values()))
    save("edits", grid(columns_of(torch.cat(columns, dim=1), headings=titles, gaps=(2,))))
    labels = {name: kept_values[:400, k] for k, name in enumerate(NAMES)}
    sensitivity = analysis.concept_sensitivity(pipeline, concepts, z_bar[:400], [*NAMES, RANDOM], labels=labels)
    found["sensitivity"] = sensitivity.to_dict()
    save("sensitivity", sensitivity.figure())
    found["same_person"] = same_person(model, arguments.data_dir, data, values, NAMES, pairs=20 if smoke else 300)
    report(found, out)
    print((out / "edits.md").read_text(), f"{found['identity']=}\n{found['same_person']=}", sep="\n")
    say("edits and embedding distances are measured")
    if arguments.only_edits:
        return

    result = sweep(layers[::-1])
    result = SweepResult(result.points[::-1], "layer")
    (out / "layers.md").write_text(result.table() + "\n")
    save("relevance", result.figure())
    for layer in layers[:-1]:
        at[layer] = Interpreter.load(out / "layers" / layer / "bundle", model=model)
    lines = ["| layer | " + " | ".join(NAMES) + " |", "|---" * (1 + len(NAMES)) + "|"]
    table = {name: kept_values[:, k] for k, name in enumerate(NAMES)}
    for layer in layers:
        shares = at[layer].pair_shares(kept, table)
        found["pair_shares"] = found.get("pair_shares", {}) | {layer: shares.to_dict()}
        told = [f"{100 * s.value:.1f} ± {100 * s.standard_error:.1f} %" if s.is_learned else "not learned" for s in
                (shares[name] for name in NAMES)]  # fmt: skip
        lines.append(f"| {layer} | " + " | ".join(told) + " |")
    (out / "pair_shares.md").write_text("\n".join(lines) + "\n")
    maps = analysis.invariance_maps(
        {x: at[x].pipeline for x in layers}, kept[: 4 if smoke else 100], samples=4 if smoke else 32, kept=4
    )
    save("invariance", maps.figure())
    found |= {"layers": result.to_dict(), "maps": maps.to_dict()}
    v = torch.randn(8, pipeline.latent_dim, generator=torch.Generator().manual_seed(0))
    rows = [
        torch.cat([kept[k][None], pipeline.decode(z_bar[k : k + 1]), at[x].sample(kept[k : k + 1], v=v)[0]])
        for k in (0, 5) for x in layers
    ]  # fmt: skip
    texts = [x.removeprefix("network.") for x in layers] * 2
    titles = ("input", "decoded", *(f"v {k + 1}" for k in range(8)))
    save("samples", grid(columns_of(torch.stack(rows), headings=titles, gaps=(2,)), row_labels=texts))
    report(found, out)
    print(result.table(), "\n\n", maps.caption, sep="")
    say("done")


def report(found: dict[str, Any], out: Path) -> None:
    """Write down the table of edits, and all numbers."""
    columns = (
        "judge_photographs", "judge_decoded", "probe_latent", "probe_factor", "probe_rest", "before", "random", "taken",
        "bound", "kept", "kept_random",
    )  # fmt: skip
    lines = ["| attribute | " + " | ".join(columns) + " | euclidean | cosine | ratio |", "| --- " * 15 + "|"]
    moved = {c["name"]: c for c in found["sensitivity"]["concepts"]}
    for name, row in found["edits"].items():
        far = moved[name]
        cells = [f"{100 * row[c]:.1f}" for c in columns]
        cells += [f"{far['edit'][kind]:.3f}" for kind in ("euclidean", "cosine")] + [f"{far['ratio']:.2f}"]
        lines.append(f"| {ATTRIBUTES[name]} ({name}, {row['width']}) | " + " | ".join(cells) + " |")
    (out / "edits.md").write_text("\n".join(lines) + "\n")
    (out / "celeba_faces.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
