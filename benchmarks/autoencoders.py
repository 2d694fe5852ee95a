"""The built-in autoencoders beside each other, after equal steps or after equal seconds of one core.

    python benchmarks/autoencoders.py [--data color-mnist --data-dir DIR] [--steps 1000 2000] [--smoke]
    python benchmarks/autoencoders.py --seconds 60 --data cifar10 --data-dir DIR --judge FILE --resnet FILE
    python benchmarks/autoencoders.py --seconds 60 --data celeba --data-dir DIR --judge FILE --face-net FILE
                                      [--attribute-steps 1200]

Steps: kind "conv" and MSC tab. S1 as printed, over the same batches. Seconds: a vector beside maps, with and without a
perceptual distance in training. They are seconds of the processor, so that other work on the machine does not count.
With --attribute-steps a classifier of six attributes is trained on the photographs (that of examples/celeba_faces.py):
"attributes" is its balanced accuracy.
Errors are mean squares of images in [-1, 1]: after equal steps at draws of the encoder, after equal seconds at means.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

from posthoc_inn.autoencoders import ConvAutoencoder, GaussianAutoencoder
from posthoc_inn.config import AutoencoderConfig, ImageSpec, TrainConfig
from posthoc_inn.fit.metric import affordable_share
from posthoc_inn.images import BatchSource, apply_spec, resize
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.rows.cache import Cache, pixels, unit
from posthoc_inn.training import train
from posthoc_inn.training.perceptual import FeatureDistance, choose_layers
from posthoc_inn.training.precision import choose_precision
from posthoc_inn.training.tasks import AutoencoderTask

KINDS = {
    "conv, width 32 (ours)": AutoencoderConfig(kind="conv", width=32),
    "conv, width 64": AutoencoderConfig(kind="conv", width=64),
    "msc, width 64 (tab. S1)": AutoencoderConfig(kind="msc", width=64, min_gamma=0.0),
    "msc, width 32": AutoencoderConfig(kind="msc", width=32, min_gamma=0.0),
}
JUDGE_LAYERS = ("features.1", "features.4", "features.7", "features.9", "features.10", "features.11", "features.12")
"""Those of LPIPS over SqueezeNet, in torchvision's SqueezeNet 1.0."""
JUDGED_SIDE = 128
"""Pixels at which the judge sees pictures."""
IMAGENET = ImageSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
MEASURED = 2000
"""Held-out pictures that everything else is measured on."""
JUDGED = 500
"""Held-out pictures that the judge compares."""


def cached(data: object, is_smoke: bool = False) -> Cache:
    """Return all pictures of a data set as uint8."""
    cache = Cache()
    for batch in BatchSource(data, batch_size=500, limit=100 if is_smoke else None).batches():
        cache.append(images=pixels(batch["images"]))
    return cache


def read(given: argparse.Namespace, *, train: bool) -> Cache:
    """Return the pictures of a part: of a registered data set, or of CIFAR-10 as JPEG files in one array."""
    packed = Path(given.data_dir or ".") / f"cifar10_{'train' if train else 'test'}_jpeg.npz"
    if given.data != "cifar10" or not packed.is_file():
        manager = get_plugin_manager()
        takes = manager.datasets.get(given.data).metadata.get("options") or {}
        draws = {"draws": given.draws if train and not given.smoke else 1} if "draws" in takes else {}
        return cached(manager.build_dataset(given.data, given.data_dir, train=train, seed=0, **draws), given.smoke)
    arrays = np.load(packed)
    blob, ends = arrays["jpeg"].tobytes(), arrays["offsets"][: (20_001 if train else 2_001)]
    cache = Cache()
    for start, end in itertools.pairwise(ends):
        picture = np.asarray(Image.open(io.BytesIO(blob[start:end])).convert("RGB"))
        cache.append(images=torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])
    return cache


def schedule(steps: int, given: argparse.Namespace) -> TrainConfig:
    """Return how each is trained, for this many steps."""
    return TrainConfig(
        steps=steps, batch_size=given.batch_size, lr=given.lr, weight_decay=0.0, warmup=0.02, clip=1.0, eval_every=0,
        patience=0, checkpoint_every=10**9,
    )  # fmt: skip


# ---- equal steps


def equal_steps(given: argparse.Namespace, parts: list[Cache]) -> None:
    """Train "conv" and "msc" for the same steps, and print the table."""
    precision: Any = "bf16-mixed" if choose_precision("auto", torch.device("cpu")) == "bf16" else "32-true"
    print(f"{given.data}, batches of {given.batch_size}, {torch.get_num_threads()} threads, {precision}")
    print(f"{'autoencoder':26}{'steps':>7}{'error':>9}{'seconds':>9}")
    for name, config in KINDS.items():
        for steps in [10] if given.smoke else given.steps:
            started = time.perf_counter()
            task = AutoencoderTask(ConvAutoencoder(config), *parts, batch_size=given.batch_size, seed=0)
            fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
            error = train(task, schedule(steps, given), fabric=fabric).rows[-1]["error"]
            print(f"{name:26}{steps:7}{error:9.4f}{time.perf_counter() - started:9.0f}", flush=True)


# ---- equal seconds


class SmallKL(GaussianAutoencoder):
    """diffusers' AutoencoderKL at a small width, trained by the same objective."""

    def __init__(self, config: AutoencoderConfig) -> None:
        from diffusers import AutoencoderKL

        super().__init__(config)
        levels = round(math.log2(config.reduction)) + 1
        widths = [config.width * min(2**k, 4) for k in range(levels)]
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.model: Any = AutoencoderKL(
                in_channels=config.channels,
                out_channels=config.channels,
                down_block_types=("DownEncoderBlock2D",) * levels,
                up_block_types=("UpDecoderBlock2D",) * levels,
                block_out_channels=tuple(widths),
                layers_per_block=1,
                latent_channels=config.latent_channels,
                norm_num_groups=8,
                sample_size=config.size,
            )
        with torch.no_grad():
            self.model.quant_conv.bias[config.latent_channels :] -= 4.0  # as in ours
        self.to(memory_format=torch.channels_last)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of z_bar, each (B, D), for images (B, C, H, W) in [0, 1]."""
        found = self.model.encode((images * 2 - 1).contiguous(memory_format=torch.channels_last)).latent_dist
        return found.mean.flatten(1), found.std.flatten(1)

    def _decoded(self, z_bar: Tensor) -> Tensor:
        pictures: Tensor = self.model.decode(z_bar.view(-1, *self.latent_shape)).sample
        return pictures


@dataclass(frozen=True)
class Contender:
    """An autoencoder, and what it is trained by besides squared error.

    Attributes:
        config: Its shape.
        build: Makes it.
        is_perceptual: Whether the explained model's features are compared in training too.
    """

    config: AutoencoderConfig
    build: Callable[[AutoencoderConfig], Any]
    is_perceptual: bool = False


def contenders(size: int, weight: float) -> dict[str, Contender]:
    """Return what is compared at a size, by the name that is printed."""

    def registered(config: AutoencoderConfig) -> Any:
        manager = get_plugin_manager()
        return manager.build(manager.autoencoders, config.kind, config)

    def mapped(**more: Any) -> AutoencoderConfig:
        return AutoencoderConfig.of_map(size, perceptual_weight=weight, **more)

    vector = AutoencoderConfig(size=size, width=32, perceptual_weight=weight)
    found = {
        "conv 64, width 32": Contender(vector, registered),
        "conv 64, width 32, perceptual": Contender(vector, registered, True),
        "residual, width 16": Contender(mapped(width=16), registered),
        "residual, width 32": Contender(mapped(width=32), registered),
        "residual, width 16, perceptual": Contender(mapped(width=16), registered, True),
        "residual, width 32, perceptual": Contender(mapped(width=32), registered, True),
    }
    try:
        import diffusers  # noqa: F401
    except ImportError:
        return found
    return found | {"AutoencoderKL, width 16": Contender(mapped(width=16), SmallKL)}


def attributes(given: argparse.Namespace) -> Callable[[Tensor], float]:
    """Return what tells how often a classifier of CelebA's attributes is right on the first held-out faces."""
    from celeba_faces import balanced, faces, pixels_of, train_judge, values_of

    few = 100 if given.smoke else None
    train_part, kept = (faces(given.data_dir, train=part, few=few) for part in (True, False))
    with tempfile.TemporaryDirectory() as place:
        judge = train_judge(pixels_of(train_part), values_of(train_part), given.attribute_steps, Path(place))
    values = values_of(kept)

    def right(pictures: Tensor) -> float:
        return float(balanced(judge.verdict(pictures), values[: len(pictures)]).mean())

    print(f"attributes of the photographs themselves: {right(unit(pixels_of(kept)[:MEASURED])):.4f}", flush=True)
    return right


class Judges:
    """What pictures are judged by: a network that nothing is trained by, and the explained one."""

    def __init__(self, given: argparse.Namespace) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
        self.distance: FeatureDistance | None = None
        if given.judge is not None:
            network = get_plugin_manager().build_backbone("squeezenet1_0", weights=given.judge)
            self.distance = FeatureDistance(
                network, lambda x: apply_spec(resize(x, (JUDGED_SIDE, JUDGED_SIDE)), IMAGENET), JUDGE_LAYERS
            )
        self.model: nn.Module | None = None
        self.prepare: Callable[[Tensor], Tensor] = lambda x: x
        if given.resnet is not None:
            from cifar_resnet import SPEC, trained

            self.model, self.prepare = trained(given.resnet), lambda x: apply_spec(x, SPEC)
        elif given.face_net is not None:
            from mobile_face_net import load_face_net

            self.model = load_face_net(given.face_net)
        self.attributes: Callable[[Tensor], float] | None = None
        if given.attribute_steps:
            self.attributes = attributes(given)

    def metric(self, size: int) -> FeatureDistance | None:
        """Return the perceptual distance of the explained model, as `perceptual="model"` has it."""
        if self.model is None:
            return None
        twin = copy.deepcopy(self.model)
        layers = choose_layers(twin, self.prepare(torch.rand(2, 3, size, size)))
        return FeatureDistance(self.model, self.prepare, layers)

    @torch.no_grad()
    def judge(self, autoencoder: Any, held_out: Tensor) -> dict[str, float]:
        """Return figures of the reconstructions of pictures (N, C, H, W) uint8, at the encoder's means."""
        autoencoder.eval()
        images = unit(held_out)
        made = torch.cat([autoencoder.decode(autoencoder.encode(part)[0]) for part in images.split(200)])
        found = {"error": float(F.mse_loss(2 * made, 2 * images))}
        if self.distance is not None:
            pairs = zip(made[:JUDGED].split(100), images[:JUDGED].split(100), strict=True)
            found["distance"] = float(torch.stack([self.distance(a, b) for a, b in pairs]).mean())
        if self.attributes is not None:
            found["attributes"] = self.attributes(made)
        if self.model is not None:
            said = [torch.cat([self.model(self.prepare(p)) for p in x.split(200)]) for x in (made, images)]
            if said[0].shape[1] <= 10:
                found["agreement"] = float((said[0].argmax(1) == said[1].argmax(1)).double().mean())
            else:
                found["cosine"] = float(F.cosine_similarity(*said).mean())
        return found


def pace(task: AutoencoderTask, given: argparse.Namespace, steps: int = 12) -> float:
    """Return the seconds of the processor that a training step takes: the median of some."""
    ends: list[float] = []
    train(
        task,
        schedule(steps, given),
        fabric=Fabric(accelerator="cpu", devices=1),
        progress=lambda step, total, figures: ends.append(time.process_time()),
    )
    # The first steps warm up, and after the last one there is a look at held-out images.
    return statistics.median(after - before for before, after in itertools.pairwise(ends[2:-1]))


def equal_seconds(given: argparse.Namespace, parts: list[Cache]) -> None:
    """Train each for the same seconds of the processor, and print the table."""
    held_out = parts[1]["images"].rows(torch.arange(min(len(parts[1]), MEASURED)))
    size, judges = held_out.shape[-1], Judges(given)
    metric = judges.metric(size)
    print(
        f"{given.data}, {size} px, batches of {given.batch_size}, {given.seconds:g} s of {torch.get_num_threads()} "
        f"thread(s), fp32" + ("" if metric is None else f"; perceptual: {', '.join(metric.layers)}")
    )
    print(f"{'autoencoder':34}{'steps':>7}  figures")
    for name, one in contenders(size, given.perceptual_weight).items():
        if (given.only and not any(part == name for part in given.only)) or (one.is_perceptual and metric is None):
            continue

        def task(autoencoder: Any, one: Contender = one) -> AutoencoderTask:
            by = metric if one.is_perceptual else None
            return AutoencoderTask(autoencoder, *parts, batch_size=given.batch_size, seed=0, metric=by)

        autoencoder = one.build(one.config)
        if one.is_perceptual and metric is not None and not one.config.perceptual_share:
            share = affordable_share(autoencoder, metric, torch.device("cpu"))
            autoencoder = one.build(one.config.replace(perceptual_share=share))
            print(f"{'':34}{share:.3f} of a batch is compared", flush=True)
        steps = 2 if given.smoke else round(given.seconds / pace(task(copy.deepcopy(autoencoder)), given))
        train(task(autoencoder), schedule(max(1, steps), given), fabric=Fabric(accelerator="cpu", devices=1))
        figures = judges.judge(autoencoder, held_out)
        print(f"{name:34}{steps:7}  " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Train each kind and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="color-digits")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--seconds", type=float, default=None, help="compare after equal seconds instead")
    parser.add_argument("--only", nargs="+", default=[], help="contenders after equal seconds, by name")
    parser.add_argument("--judge", default=None, help="weights of SqueezeNet 1.0, which judges pictures")
    parser.add_argument("--resnet", default=None, help="weights of CIFAR's ResNet-20, which is explained")
    parser.add_argument("--face-net", default=None, help="weights of MobileFaceNet, which is explained")
    parser.add_argument("--attribute-steps", type=int, default=0, help="CelebA: of a classifier of attributes")
    parser.add_argument("--perceptual-weight", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    parts = [read(given, train=part) for part in (True, False)]
    (equal_steps if given.seconds is None else equal_seconds)(given, parts)


if __name__ == "__main__":
    main()
