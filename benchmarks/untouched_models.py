"""Attaches to every torchvision classifier and many timm architectures, and checks that each is left untouched.

Each model is built at random weights, put in a mixed train/eval state with gradients and buffers of its own, and then,
under the guard: its layers are listed, a middle and a late layer are attached, features extracted, the model resumed
from them, gradients taken to the pixels, a failing pass survived, and everything detached. Run for instance

    python benchmarks/untouched_models.py --torchvision all --timm 200 --json untouched.json

With `--json` a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posthoc_inn.errors import PosthocInnError
from posthoc_inn.features import LayerExtractor, LayerInfo, list_layers, untouched

SMOKE = ["torchvision:squeezenet1_1", "torchvision:mobilenet_v3_small", "timm:vit_tiny_patch16_224", "timm:levit_128s"]
SIZE_WORDS = (
    "atto", "femto", "pico", "zepto", "nano", "micro", "xxtiny", "xtiny", "xxs", "tiny", "xs", "mini", "small", "s",
    "medium", "m", "base", "b", "large", "l", "xlarge", "xl", "huge", "giant", "gigantic", "enormous",
)  # fmt: skip


@dataclass
class Row:
    """One layer of one model."""

    model: str
    layer: str = "-"
    z_shape: tuple[int, ...] | None = None
    is_cut: bool | None = None
    is_untouched: bool = False
    seconds: float = 0.0
    problem: str = ""

    def line(self) -> str:
        """Write the row as a line of the table."""
        shape = "x".join(map(str, self.z_shape)) if self.z_shape else "-"
        cut = {True: "yes", False: "no", None: "-"}[self.is_cut]
        text = f"{self.model:<48} {self.layer:<40} {shape:>14} {cut:>4} {'yes' if self.is_untouched else 'NO':>9}"
        return f"{text} {self.seconds:>7.1f}" + (f"  {self.problem}" if self.problem else "")


def size_rank(name: str) -> tuple[int, int, str]:
    """Order the architectures of a family roughly by size, judged by name alone."""
    words = re.split(r"[_.]", name)
    sizes = [SIZE_WORDS.index(w) for w in words if w in SIZE_WORDS]
    numbers = [int(n) for n in re.findall(r"\d+", re.sub(r"_(1|2|3|4|5)\d\d$|patch\d+", "", name))]
    return (sizes[0] if sizes else len(SIZE_WORDS) // 2, max(numbers, default=0), name)


def torchvision_names(wanted: str) -> list[str]:
    """List torchvision's classifiers: "all", a number, or comma-separated names."""
    if wanted in ("0", "none", ""):
        return []
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if wanted != "all":
        names = names[: int(wanted)] if wanted.isdigit() else wanted.split(",")
    return [f"torchvision:{name}" for name in names]


def timm_candidates() -> Iterator[str]:
    """Yield timm's architectures: the smallest of each family first, then the second of each, and so on."""
    import timm

    families = [sorted(timm.list_models(module=module), key=size_rank) for module in timm.list_modules()]
    for position in range(max(map(len, families))):
        yield from (f"timm:{family[position]}" for family in families if position < len(family))


def build(name: str, max_parameters: float) -> tuple[nn.Module, tuple[int, int, int]] | None:
    """Build a model at random weights; None for one that has too many parameters to be worth the time."""
    library, _, architecture = name.partition(":")
    if library == "torchvision":
        import torchvision

        extra: dict[str, Any] = {}
        side = {"inception_v3": 96, "maxvit_t": 224, "vit_h_14": 56}.get(architecture, 64)
        if architecture in ("googlenet", "inception_v3"):
            extra["init_weights"] = False
        elif architecture.startswith("vit"):
            extra["image_size"] = side
        return torchvision.models.get_model(architecture, weights=None, **extra), (3, side, side)
    import timm

    with torch.device("meta"):
        try:
            count = sum(p.numel() for p in timm.create_model(architecture, pretrained=False).parameters())
        except (NotImplementedError, RuntimeError):
            count = 0  # It needs values to be built; it will be small enough or not.
    if count > max_parameters:
        return None
    model = timm.create_model(architecture, pretrained=False)
    settings: Any = model.pretrained_cfg
    size: tuple[int, int, int] = tuple(settings.get("input_size", (3, 224, 224)))
    small = (size[0], 96, 96)
    if not settings.get("fixed_input_size") and min(size[1:]) > 96 and takes(model, small):
        size = small
    return model, size


def takes(model: nn.Module, size: tuple[int, int, int]) -> bool:
    """Say whether the model runs on images of this size."""
    try:
        LayerExtractor(model, "output").predict(torch.zeros(2, *size))
    except Exception:
        return False
    return True


def disturb(model: nn.Module, seed: int) -> None:
    """Give the model a state worth keeping: mixed train flags, frozen weights, gradients, buffers off their start."""
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for number, module in enumerate(model.modules()):
        if number % 3 == 1:
            module.training = False
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            if number % 5 == 0:
                weight.requires_grad_(False)
            elif number % 7 == 0 and weight.numel() < 1 << 16:
                weight.grad = torch.full_like(weight, 0.5)
        for buffer in model.buffers():
            if buffer.is_floating_point() and buffer.ndim == 1:
                buffer.add_(0.1 * torch.rand(buffer.shape, generator=generator))


def choose(layers: list[LayerInfo]) -> list[LayerInfo]:
    """Choose a layer in the middle and a late true cut."""
    usable = [i for i in layers if i.shape is not None and i.calls == 1 and i.name != "output" and len(i.shape) <= 3]
    cuts = [i for i in usable if i.is_cut] or usable
    return [usable[len(usable) // 2], cuts[-1 if len(cuts) < 3 else -2]] if usable else []


class _PlannedError(Exception):
    """Raised inside a layer on purpose."""


def _fail(*_: Any) -> None:
    raise _PlannedError


def exercise(model: nn.Module, layer: LayerInfo, images: Tensor) -> str:
    """Attach to `layer`, use it in every way, detach; return what is wrong, if anything."""
    extractor = LayerExtractor(model, layer.name)
    z, prediction = extractor.features_and_prediction(images)
    if tuple(z.shape[1:]) != layer.shape:
        return f"z has shape {tuple(z.shape)}, the list says {layer.shape}"
    resumed = extractor.resume(images, z)
    scale = float(prediction.abs().max()) + 1e-12
    if float((resumed - prediction).abs().max()) > 1e-4 * scale:
        return "resuming from z does not give the prediction"
    if layer.is_cut:
        swapped = extractor.resume(images, z.roll(1, 0))
        if float((swapped - prediction.roll(1, 0)).abs().max()) > 1e-4 * scale:
            return "called a cut, but resuming from another image's z does not give its prediction"
    pixels = images[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(extractor.features(pixels).sum(), pixels)
    return "" if bool(gradient.isfinite().all()) else "gradient at the pixels is not finite"


def fails_cleanly(model: nn.Module, layer: LayerInfo, images: Tensor) -> None:
    """Run a pass in which a hook of the user's on the layer raises."""
    extractor = LayerExtractor(model, layer.name)
    handle = model.get_submodule(layer.name).register_forward_hook(_fail)
    try:
        extractor.features(images)
    except _PlannedError:
        return
    finally:
        handle.remove()
    raise RuntimeError("the exception raised in the layer did not come out")


def examine(name: str, seed: int, max_parameters: float) -> list[Row] | None:
    """Check one model; None when it was left out for its size."""
    start = time.perf_counter()
    rows: list[Row] = []
    try:
        torch.manual_seed(seed)
        built = build(name, max_parameters)
        if built is None:
            return None
        model, size = built
        disturb(model, seed)
        images = torch.rand(2, *size, generator=torch.Generator().manual_seed(seed))
        with untouched(model):
            layers = choose(list_layers(model, images))
        for layer in layers:
            begun = time.perf_counter()
            row = Row(name, layer.name, layer.shape, layer.is_cut)
            with untouched(model):
                row.problem = exercise(model, layer, images)
            with untouched(model):
                fails_cleanly(model, layer, images)
            row.is_untouched = True
            row.seconds = time.perf_counter() - begun
            rows.append(row)
        if not layers:
            rows.append(Row(name, problem="no layer with the batch first"))
    except Exception as error:
        summary = " | ".join(str(error).splitlines()[:4])
        kind = "" if isinstance(error, PosthocInnError) else f"{type(error).__name__}: "
        rows.append(Row(name, seconds=time.perf_counter() - start, problem=f"{kind}{summary}"))
    return rows


def passed(rows: list[Row]) -> bool:
    """Say whether every layer of a model worked and left it untouched."""
    return bool(rows) and not any(row.problem or not row.is_untouched for row in rows)


def save(path: Path | None, done: dict[str, list[Row]]) -> None:
    """Write what is done so far, so that a run can go on later."""
    if path is None:
        return
    text = json.dumps({name: [dataclasses.asdict(row) for row in rows] for name, rows in done.items()}, indent=1)
    scratch = path.with_suffix(".part")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def load(path: Path | None) -> dict[str, list[Row]]:
    """Read an earlier run; models that failed are tried again."""
    if path is None or not path.exists():
        return {}
    rows = {name: [Row(**row) for row in found] for name, found in json.loads(path.read_text(encoding="utf-8")).items()}
    return {name: found for name, found in rows.items() if not found or passed(found)}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--torchvision", default="all", help="all, none, a number, or comma-separated names")
    parser.add_argument("--timm", type=int, default=200, help="how many timm architectures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to keep results in, and to go on from")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-parameters", type=float, default=30e6, help="timm architectures above are left out")
    parser.add_argument("--smoke", action="store_true", help="four small models only")
    return parser.parse_args(arguments)


def run_all(options: argparse.Namespace, say: Callable[[str], None] = print) -> dict[str, list[Row]]:
    """Check model after model until enough are done or the time is over; an empty entry marks one left out."""
    begun = time.perf_counter()
    done = load(options.json)
    vision = [] if options.smoke else torchvision_names(options.torchvision)
    others: Iterator[str] = iter(SMOKE) if options.smoke else (timm_candidates() if options.timm else iter(()))
    say(f"{'model':<48} {'layer':<40} {'z':>14} {'cut':>4} {'untouched':>9} {'seconds':>7}")

    def check(name: str) -> None:
        if name not in done:
            done[name] = examine(name, options.seed, options.max_parameters) or []
            gc.collect()
            save(options.json, done)
        for row in done[name]:
            say(row.line())

    def is_late() -> bool:
        return bool(time.perf_counter() - begun > options.limit_seconds)

    for name in vision:
        if is_late():
            return done
        check(name)
    examined = 0
    for name in others:
        if is_late() or (examined >= options.timm and not options.smoke):
            break
        check(name)
        examined += bool(done[name])
    return done


def main(arguments: list[str] | None = None) -> int:
    """Print the table and the summary; the exit code is 0 when every model was left untouched."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    done = {name: rows for name, rows in run_all(options, lambda text: print(text, flush=True)).items() if rows}
    for library in ("torchvision", "timm"):
        models = {name: rows for name, rows in done.items() if name.startswith(library)}
        good = sum(passed(rows) for rows in models.values())
        print(f"{library}: {good} of {len(models)} untouched")
    good = sum(passed(rows) for rows in done.values())
    print(f"{good} of {len(done)} untouched")
    return 0 if good == len(done) else 1


if __name__ == "__main__":
    sys.exit(main())
