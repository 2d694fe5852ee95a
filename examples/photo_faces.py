"""Photographs that a face network takes for one person: a given generator as the decoder, judged by another network.

    python examples/photo_faces.py setup --parts DIR
    python examples/photo_faces.py run --parts DIR --weights FILE --data-dir CELEBA [--out runs/photo-faces]

`setup` fetches the face generator and the judges; read its notice: the generator is for non-commercial research. `run`
draws faces, fits t at three layers of MobileFaceNet (FILE, see mobile_face_net.py) and at the embedding of the network
of face-api, and has the samples of each judged by the other. CELEBA holds images.zip and attributes.csv. Every picture
is made once and kept in --out, so that a run goes on where it was stopped. --animals DIR, any folder of pictures,
shows what becomes of pictures that t was not fitted to. `--smoke` is a few of everything.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mobile_face_net import MobileFaceNet
from photo_faces_parts import crops, face_api, setup, shift
from photo_faces_parts.generator import FaceGenerator, Kept
from photo_faces_parts.judges import Judges, Photographs, embed, shares
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Subset

from posthoc_inn import GivenGenerator, Interpreter
from posthoc_inn.config import FitConfig, preset
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.weights import load_weights

LAYERS = {"embedding": "network.linear1", "7 x 6": "network.blocks.14", "14 x 12": "network.blocks.11"}
"""Layers of MobileFaceNet, the last first."""
OTHER = "network.fc"
"""The embedding of the other network."""
STEP = 0.7
"""Share of what is missing that is asked for in addition, each round."""
SHOWN = (5, 6)
"""Rows and columns of the picture."""


@dataclass(frozen=True)
class Parts:
    """What the example works on.

    Attributes:
        decode: Latents (N, D) to pictures, uint8 (N, 3, S, S).
        latents: Of the draws, (N, D).
        explained: MobileFaceNet over squares.
        other: The network of face-api over squares.
        judges: Pictures to numbers, or None.
        photographs: CelebA, or None.
    """

    decode: Callable[[Any], Any]
    latents: Tensor
    explained: nn.Module
    other: nn.Module
    judges: Any = None
    photographs: Photographs | None = None


def read_parts(arguments: argparse.Namespace) -> Parts:
    """Return generator, networks and judges from their files."""
    faces = FaceGenerator(arguments.parts / "generator", threads=arguments.threads or 1)
    network = MobileFaceNet()
    load_weights(network, arguments.weights)
    photographs = Photographs(arguments.data_dir)
    judges = Judges(arguments.parts / "face-api")
    judges.learn(photographs)
    return Parts(
        decode=faces.decode,
        latents=torch.from_numpy(faces.latents(range(arguments.draws), arguments.seed)),
        explained=crops.mobile_face_net(network).eval().requires_grad_(False),
        other=crops.recognition(face_api.load(arguments.parts / "face-api", "face_recognition")),
        judges=judges,
        photographs=photographs,
    )


# ---- samples


@torch.no_grad()
def sample(
    pipeline: Pipeline, generator: GivenGenerator, z: Tensor, v: Tensor, rounds: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return for each round latents (B, N, D), pictures uint8 (B, N, 3, S, S) and their z (B, N, *z_shape).

    Round 0 is t⁻¹(v | z). t is fitted to few draws, and what it gives comes out beside z: the next round asks it for
    z and what was missing, with the same v; of each sample the round nearest to z counts. Nothing but t and the network
    itself is asked, and v stays what it was.
    """
    many = lambda x: x[:, None].expand(len(x), len(v), *x.shape[1:]).flatten(0, 1)  # noqa: E731
    wanted, each = many(z), v.repeat(len(z), 1)[:, None]
    asked, found = wanted.clone(), []
    best: list[Tensor] = []
    nearest = torch.full((len(wanted),), -2.0)
    for _ in range(rounds + 1):
        latents = pipeline.sample_latents(pipeline.context(asked), each)[:, 0]
        pictures = generator.native(latents)
        own = pipeline.features(pictures)
        asked = asked + STEP * (wanted - own)
        near = F.cosine_similarity(own.flatten(1), wanted.flatten(1))
        now = [latents, (pictures * 255).round().to(torch.uint8), own]
        is_nearer = near > nearest
        nearest = torch.maximum(near, nearest)
        pick = lambda new, old: torch.where(is_nearer.view(-1, *[1] * (new.ndim - 1)), new, old)  # noqa: B023, E731
        best = [pick(new, old) for new, old in zip(now, best, strict=True)] if best else now
        found.append(tuple(x.unflatten(0, (len(z), len(v))) for x in best))
    return found  # type: ignore[return-value]


def spread(latents: Tensor, prior: Tensor, pictures: Tensor, others: Tensor) -> dict[str, float]:
    """Return how far samples of one z lie apart, as a share of how far draws do: latents' variance, pictures' distance.

    latents (B, N, D), prior (M, D); pictures (B, N, C, H, W), others (M, C, H, W), uint8.
    """
    few = lambda x: F.avg_pool2d(x.flatten(0, -4).float() / 255, 8).flatten(1)  # noqa: E731
    small = few(pictures).unflatten(0, pictures.shape[:2])
    n = small.shape[1]
    inside = torch.cdist(small, small).sum() / (len(small) * n * (n - 1))
    between = torch.pdist(few(others)).mean()
    return {
        "latents": float(latents.var(1).sum(1).mean() / prior.var(0).sum()),
        "pictures": float(inside / between),
    }


# ---- the judge


def verdicts(distance: Tensor, thresholds: dict[str, float]) -> dict[str, float]:
    """Return the mean distance, and which share lies below each threshold."""
    return {"distance": float(distance.mean())} | {
        k: float((distance < t).double().mean()) for k, t in thresholds.items()
    }


def apart(rows: Tensor) -> Tensor:
    """Return all distances between two of these embeddings (N, D)."""
    return torch.pdist(rows)


def cosines(rows: Tensor) -> Tensor:
    """Return one minus cosine for all two of these embeddings (N, D)."""
    unit = F.normalize(rows)
    first, second = torch.triu_indices(len(rows), len(rows), 1)
    return 1 - (unit @ unit.T)[first, second]


def judge_photographs(parts: Parts, number: int) -> dict[str, Any]:
    """Return distances of photographs under both networks: of one person, of two, and the 1 % threshold."""
    if parts.photographs is None:
        return {}
    chosen = parts.photographs.pairs(number)
    rows: dict[str, list[Tensor]] = {"explained": [], "other": []}
    for start in range(0, len(chosen), 20):
        squares = parts.photographs.squares(chosen[start : start + 20])
        rows["explained"].append(embed(parts.explained, squares))
        rows["other"].append(embed(parts.other, squares))
    found = {}
    for name, measure in (("explained", cosines), ("other", apart)):
        z = torch.cat(rows[name])
        one = torch.cat([measure(z[k : k + 2]) for k in range(0, len(z), 2)])
        first, second = torch.triu_indices(len(z), len(z), 1)
        strangers = measure(z)[first // 2 != second // 2]
        limit = float(strangers.quantile(0.01))
        found[name] = {
            "one person": float(one.mean()), "strangers": float(strangers.mean()), "threshold": limit,
            "one person accepted": float((one < limit).double().mean()),
        }  # fmt: skip
    return found


def judged_draws(judges: Any, draws: Any, file: Path) -> dict[str, Tensor]:
    """Return what each judge says of each draw, name -> (N,); it is kept in `file`."""
    found = load_file(file) if file.exists() else {}
    if set(found) != set(judges.names) or any(len(column) != len(draws) for column in found.values()):
        parts = [judges((draws.images(k) * 255).round().to(torch.uint8)) for k in torch.arange(len(draws)).split(50)]
        found = {name: column.contiguous() for name, column in zip(judges.names, torch.cat(parts).T, strict=True)}
        save_file(found, file)
    return found


# ---- t


def settings(arguments: argparse.Namespace) -> FitConfig:
    """Return the preset for few pairs, for latents of this width."""
    few = preset("few")
    flow = few.flow.replace(dim=arguments.latent_dim)
    if arguments.smoke:
        flow = flow.replace(blocks=1, width=16)
    # Which of the two is used is decided here, by the same rows.
    # Slowly, and looked at often: what is to be learned from so few pairs beyond the linear is learned soon.
    training = few.flow_training.replace(lr=2e-4, eval_every=25)
    return few.replace(latent_dim=arguments.latent_dim, flow=flow, flow_training=training, linear_fallback=False)


def fit(
    arguments: argparse.Namespace, chosen: tuple[nn.Module, str], generator: GivenGenerator, draws: Any
) -> Interpreter:
    """Return t at a layer, couplings on what the linear Gaussian model leaves, and e where there are labels; the last
    draws are kept aside."""
    network, layer = chosen
    n, aside = len(draws), arguments.aside
    interpreter = Interpreter(network, layer, autoencoder=generator, preset=settings(arguments), device="cpu")
    name = f"{'explained' if network is arguments.explained else 'other'}-{layer}"
    concepts = {"concepts": "labels", "concept_steps": arguments.concept_steps} if draws.labels else {}
    interpreter.fit(
        Subset(draws, range(n - aside)), held_out=Subset(draws, range(n - aside, n)), steps=arguments.steps,
        out=arguments.out / "t" / (f"{name}-e" if concepts else name), resume=True, evaluate=False, **concepts,
    )  # fmt: skip
    return interpreter


@torch.no_grad()
def nats(pipeline: Pipeline, z: Tensor, latents: Tensor) -> Tensor:
    """Return -log p(latent | z) of rows, (N,)."""
    return pipeline.invariances(latents, pipeline.context(z))[1].double()


# ---- everything


def measure_layer(
    arguments: argparse.Namespace, parts: Parts, generator: GivenGenerator, draws: Any, chosen: tuple[nn.Module, str]
) -> dict[str, Any]:
    """Fit t at a layer; return its figures, and the samples of each round under "rounds"."""
    layer, n, aside = chosen[1], len(draws), arguments.aside
    held = torch.arange(n - aside, n)
    interpreter = fit(arguments, chosen, generator, draws)
    trained = interpreter.pipeline
    both = {"trained": trained, "linear": replace(trained, flow=trained.flow.linear_part())}
    z = torch.cat([trained.features(draws.images(part)) for part in held.split(25)])
    each = {kind: nats(t, z, draws.latents[held]) for kind, t in both.items()}
    gain = each["linear"] - each["trained"]
    found: dict[str, Any] = {
        "nats": {kind: float(values.mean()) for kind, values in each.items()},
        "gain": float(gain.mean()), "gain error": float(gain.std() / len(gain) ** 0.5),
    }  # fmt: skip
    used = "trained" if found["gain"] > 0 else "linear"
    rows, columns = arguments.grid if layer == LAYERS["embedding"] else (arguments.grid[0] // 2, arguments.grid[1])
    v = torch.randn(columns, arguments.latent_dim, generator=torch.Generator().manual_seed(arguments.seed + 1))
    samples = sample(both[used], generator, z[:rows], v, arguments.rounds)
    pictures = draws.images(held[:rows])
    own = {name: embed(net, pictures) for name, net in (("explained", parts.explained), ("other", parts.other))}
    found |= {"used": used, "by round": [], "rounds": samples, "inputs": (pictures * 255).round().to(torch.uint8)}
    limits = {name: arguments.photographs.get(name, {}).get("threshold", 0.0) for name in own}
    strangers = {"explained": cosines(own["explained"]), "other": apart(own["other"])}
    limits_draws = {name: float(d.quantile(0.01)) for name, d in strangers.items()}
    found["two draws"] = {name: float(d.mean()) for name, d in strangers.items()}
    others = (draws.images(range(min(60, n))) * 255).round().to(torch.uint8)
    for latents, made, _ in samples:
        flat = made.flatten(0, 1)
        there = {name: embed(getattr(parts, name), flat) for name in own}
        many = {name: rows_.repeat_interleave(columns, 0) for name, rows_ in own.items()}
        cosine = F.cosine_similarity(there["explained"], many["explained"])
        distance = {"explained": 1 - cosine, "other": (there["other"] - many["other"]).norm(dim=1)}
        found["by round"].append({
            "cosine": float(cosine.mean()), "least": float(cosine.min()), "most": float(cosine.max()),
            "spread": spread(latents, draws.latents, made, others),
        } | {
            name: verdicts(d, {"photographs": limits[name], "draws": limits_draws[name]})
            for name, d in distance.items()
        })  # fmt: skip
    if parts.judges is not None:
        values = parts.judges(samples[-1][1].flatten(0, 1)).unflatten(0, (rows, columns))
        found["kept"] = {name: shares(values[..., k]) for k, name in enumerate(parts.judges.names)}
    if draws.labels:
        kept_aside = Subset(draws, held.tolist())
        found["e"] = {
            "pairs": interpreter.pair_shares(kept_aside, "labels").to_dict()["concepts"],
            "variance": interpreter.concept_relevance(kept_aside).to_dict()["concepts"],
        }
    if arguments.animals and layer == LAYERS["embedding"]:
        groups = {"draws kept aside": draws.images(held[: arguments.strangers])}
        if parts.photographs is not None:
            groups["photographs (CelebA)"] = parts.photographs.squares(range(arguments.strangers))
        groups["animals"] = shift.animals(arguments.animals, arguments.strangers, generator.native_shape[1])
        networks = {"explained": parts.explained, "other": parts.other}
        draw = lambda z: sample(both[used], generator, z, v, arguments.rounds)  # noqa: E731
        found["shift"], shown = shift.measure(groups, trained, draw, networks, limits, rows)
        shift.save_grid(shown, arguments.out / "shift.jpg", 1 + columns)
    return found


def save_grid(found: dict[str, Any], file: Path, shown: list[int]) -> None:
    """Save these rows: the draw whose z is given, and samples, a v a column."""
    made = found["rounds"][-1][1]
    rows = [torch.cat([found["inputs"][k][None], made[k, : SHOWN[1] - 1]]) for k in shown if k < len(made)]
    picture = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, quality=88)


def concept_table(layer: str, figures: dict[str, Any]) -> str:
    """Return what z determines of each concept of e, as Markdown."""
    lines = [f"| e, {layer} | by pairs | best correlation | first order | total effect |", "| --- " * 5 + "|"]
    by_variance = {row["name"]: row for row in figures["variance"]}
    for row in figures["pairs"]:
        told = f"{100 * row['value']:.0f} ± {100 * row['standard_error']:.0f} %" if row["is_learned"] else "not learned"
        shares = (by_variance[row["name"]][key]["value"] for key in ("first_order", "total_effect"))
        first, total = (f"{100 * share:.0f} %" for share in shares)
        lines.append(f"| {row['name']} | {told} | {max(row['quality']['correlations']):.2f} | {first} | {total} |")
    return "\n".join(lines)


def report(found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| t given | nats: trained, linear | round | cosine | same to MobileFaceNet | distance to the other network | "
        "same to it | spread: latents, pictures |", "| --- " * 8 + "|",
    ]  # fmt: skip
    for layer, figures in found["layers"].items():
        pair = ", ".join(f"{x:.1f}" for x in figures["nats"].values())
        for k, row in enumerate(figures["by round"]):
            one, other, far = row["explained"], row["other"], row["spread"]
            lines.append(
                f"| {layer} | {pair} | {k} | {row['cosine']:.2f} ({row['least']:.2f} to {row['most']:.2f}) | "
                f"{100 * one['photographs']:.0f} % | {other['distance']:.2f} | {100 * other['photographs']:.0f} % "
                f"({100 * other['draws']:.0f} %) | {far['latents']:.2f}, {far['pictures']:.2f} |"
            )
    first = next(iter(found["layers"].values()))
    if "kept" in first:
        lines += ["", f"| {' | '.join(['share of', *first['kept']])} |", "| --- " * (1 + len(first["kept"])) + "|"]
        for layer, figures in found["layers"].items():
            for which in ("z", "z total", "v total"):
                cells = [f"{100 * row[which]:.0f} %" for row in figures["kept"].values()]
                lines.append(f"| {layer}: {which} | {' | '.join(cells)} |")
    for layer, figures in found["layers"].items():
        if "e" in figures:
            lines += ["", concept_table(layer, figures["e"])]
        if "shift" in figures:
            lines += ["", shift.table(figures["shift"])]
    return "\n".join(lines)


def run(arguments: argparse.Namespace, parts: Parts) -> dict[str, Any]:
    """Draw, fit, sample, judge; write figures and pictures to `arguments.out`."""
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{(time.perf_counter() - started) / 60:5.1f} min] {text}", flush=True)

    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.latent_dim, arguments.explained = parts.latents.shape[1], parts.explained
    kept = Kept(parts.decode, arguments.out / "pictures")
    generator = GivenGenerator(kept, arguments.latent_dim, prior=parts.latents)
    draws = generator.draws(len(parts.latents), arguments.seed)
    for k in range(0, len(draws), 250):
        missing = [w for w in draws.latents[k : k + 250] if not kept.file(w.numpy()).exists()]
        if missing:
            kept(torch.stack(missing))
            say(f"{min(k + 250, len(draws))} of {len(draws)} faces are drawn")
    if parts.judges is not None:
        draws = draws.with_labels(judged_draws(parts.judges, draws, arguments.out / "judged.safetensors"))
        say("the judges have seen all draws")
    arguments.photographs = judge_photographs(parts, arguments.pairs)
    found: dict[str, Any] = {"photographs": arguments.photographs, "layers": {}}
    if parts.judges is not None:
        found["judges"] = parts.judges.quality
    chosen = {f"MobileFaceNet, {k}": (parts.explained, layer) for k, layer in LAYERS.items()}
    chosen["face-api, embedding"] = (parts.other, OTHER)
    if unknown := set(arguments.layers or ()) - set(chosen):
        raise SystemExit(f"--layers: there are {list(chosen)}, got {sorted(unknown)}.")
    for name in arguments.layers or chosen:
        network = chosen[name]
        figures = measure_layer(arguments, parts, generator, draws, network)
        save_grid(figures, arguments.out / f"{name.replace(', ', '-').replace(' ', '')}.jpg", arguments.shown)
        del figures["rounds"], figures["inputs"]
        found["layers"][name] = figures
        say(f"{name}: {json.dumps(figures['by round'][-1])}")
        (arguments.out / "photo_faces.json").write_text(json.dumps(found, indent=1))
    table = report(found)
    (arguments.out / "photo_faces.md").write_text(table + "\n")
    print(table, json.dumps(arguments.photographs), sep="\n\n")
    return found


def main(given: list[str] | None = None, parts: Parts | None = None) -> dict[str, Any] | None:
    """Run the command line; `parts` instead of those in files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("setup", "run"))
    parser.add_argument("--parts", type=Path, required=True, help="directory of the generator and the judges")
    parser.add_argument("--weights", help="checkpoint of MobileFaceNet")
    parser.add_argument("--data-dir", help="directory with images.zip and attributes.csv of CelebA")
    parser.add_argument("--animals", help="directory of pictures that are no faces of people")
    parser.add_argument("--out", type=Path, default=Path("runs/photo-faces"))
    parser.add_argument("--draws", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=300, help="steps of t at each layer")
    parser.add_argument("--concept-steps", type=int, default=400, help="steps of e, over what the judges say")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in which samples are asked for again")
    parser.add_argument("--pairs", type=int, default=250, help="people of whom two photographs are compared")
    parser.add_argument("--shown", type=int, nargs="+", default=list(range(SHOWN[0])), help="rows of the picture")
    parser.add_argument("--layers", nargs="+", help="only these, as the table calls them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--smoke", action="store_true", help="few draws, few steps: to see that it runs")
    arguments = parser.parse_args(given)
    if arguments.step == "setup":
        setup.fetch(arguments.parts)
        return None
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.aside, arguments.grid, arguments.strangers = 300, (16, SHOWN[1]), 100
    if arguments.smoke:
        arguments.draws, arguments.steps, arguments.rounds, arguments.pairs = 400, 20, 1, 10
        arguments.concept_steps = 20
        arguments.aside, arguments.grid, arguments.strangers = 60, (6, SHOWN[1]), 20
    if parts is None:
        if not (arguments.weights and arguments.data_dir):
            parser.error("run needs --weights and --data-dir")
        parts = read_parts(arguments)
    return run(arguments, parts)


if __name__ == "__main__":
    main()
