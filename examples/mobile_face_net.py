"""MobileFaceNet (Chen et al. 2018, arXiv:1804.07573), the 112 x 96 form, as a network over central squares of CelebA.

The network wants faces upright with eyes, nose and mouth in fixed places, 112 pixels high and 96 wide. The autoencoder
wants squares. `AlignedFaceNet` takes squares and cuts out what the network wants, differentiably, so that decoded
squares reach it in the same way as photographs do.

    python examples/mobile_face_net.py --data-dir DIR --weights FILE [--pairs 400] [--picture crops.png]

checks the weights: how well cosine similarity tells pairs of one person from pairs of two, for crops made from the
files as they are and for crops made from 64-pixel squares.
"""

from __future__ import annotations

import argparse
import csv
import io
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from posthoc_inn.drawing import columns_of, grid, to_png
from posthoc_inn.images import pil_to_tensor
from posthoc_inn.pipeline import Pipeline
from posthoc_inn.plugins import get_plugin_manager
from posthoc_inn.weights import load_weights

SIZE = (112, 96)
"""Height and width of the network's input, in pixels."""
STAGES = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))
"""Expansion, channels, repeats and first stride of the bottlenecks."""
ALIGNMENT = (1.8933, -35.657, -53.246)
"""Scale s and shifts tx, ty: x' = s x + tx, y' = s y + ty takes points of an aligned CelebA file at half size
(89 x 109) to points of the network's input. Both count from the upper left corner of the upper left pixel."""
FILE = (109, 89)
"""Height and width of these files, in pixels."""


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm and, unless it is linear, PReLU."""

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        *,
        depthwise: bool = False,
        linear: bool = False,
    ) -> None:
        super().__init__()
        groups = before if depthwise else 1
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(after)
        self.prelu = nn.Identity() if linear else nn.PReLU(after)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.prelu(self.bn(self.conv(x)))
        return out


class Bottleneck(nn.Module):
    """Inverted residual: widen, filter depthwise, narrow; added to its input where shapes agree."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.is_residual = stride == 1 and before == after
        wide = before * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(before, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.PReLU(wide),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.PReLU(wide),
            nn.Conv2d(wide, after, 1, bias=False), nn.BatchNorm2d(after),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.is_residual else out


class MobileFaceNet(nn.Module):
    """Embedding (B, 128) of aligned faces (B, 3, 112, 96) in [-1, 1]; compare embeddings by cosine.

    `blocks.4`, `blocks.11` and `blocks.14` end the stages of 28 x 24, 14 x 12 and 7 x 6 pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBlock(3, 64, 3, 2, 1)
        self.dw_conv1 = ConvBlock(64, 64, 3, 1, 1, depthwise=True)
        blocks, before = [], 64
        for expansion, after, repeats, first in STAGES:
            for k in range(repeats):
                blocks.append(Bottleneck(before, after, first if k == 0 else 1, expansion))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.conv2 = ConvBlock(before, 512, 1)
        self.linear7 = ConvBlock(512, 512, (7, 6), depthwise=True, linear=True)
        self.linear1 = ConvBlock(512, 128, 1, linear=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.blocks(self.dw_conv1(self.conv1(x))))
        out: Tensor = self.linear1(self.linear7(x)).flatten(1)
        return out


def square_to_crop() -> Tensor:
    """Return the affine map (2, 3) from the network's input to the square, both in [-1, 1], as `affine_grid` wants it.

    The square is what `fit_canonical` makes of a file: the shorter side, the width, becomes the square's; the height
    becomes int(side * 109 / 89) pixels, of which the middle ones are kept. For 64 pixels: 78, of which 7 above and
    below go. Other sizes round differently, by less than half a pixel.
    """
    side, (height, width) = 64, FILE
    tall = int(side * height / width)
    scale, tx, ty = ALIGNMENT
    # Point of the crop, 0 to 96 and 0 to 112 -> point of the file -> of the square, 0 to 1.
    a_x, b_x = 1 / scale / width, -tx / scale / width
    a_y, b_y = 1 / scale / height * tall / side, (-ty / scale / height * tall - round((tall - side) / 2)) / side
    # The same between -1 and 1: u = 2 (a * (p + 1) / 2 * extent + b) - 1.
    return torch.tensor(
        [[a_x * SIZE[1], 0.0, a_x * SIZE[1] + 2 * b_x - 1], [0.0, a_y * SIZE[0], a_y * SIZE[0] + 2 * b_y - 1]]
    )


class AlignedFaceNet(nn.Module):
    """MobileFaceNet over canonical squares (B, 3, S, S) in [0, 1]: the central squares of aligned CelebA faces."""

    affine: Tensor

    def __init__(self, network: MobileFaceNet) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("affine", square_to_crop(), persistent=False)

    def crop(self, squares: Tensor) -> Tensor:
        """Return aligned crops (B, 3, 112, 96) in [0, 1] for squares (B, 3, S, S) in [0, 1]."""
        theta = self.affine.to(squares).expand(len(squares), 2, 3)
        grid = F.affine_grid(theta, [len(squares), 3, *SIZE], align_corners=False)
        return F.grid_sample(squares, grid, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)

    def forward(self, squares: Tensor) -> Tensor:
        # (pixel - 127.5) / 128 for pixels 0 to 255.
        embedding: Tensor = self.network((self.crop(squares) * 255 - 127.5) / 128)
        return embedding


def load_face_net(weights: str | Path) -> AlignedFaceNet:
    """Return the network with the weights of a checkpoint, in evaluation mode; no code in the file is run.

    Raises:
        DataError: The file is no checkpoint of this network.
    """
    network = MobileFaceNet()
    load_weights(network, weights)
    return AlignedFaceNet(network).eval().to(memory_format=torch.channels_last)


# ---- photographs of one person, and the check


def people_of(data_dir: str, data: Any) -> list[str]:
    """Return who is in each face of the data set, from the column `identity` of attributes.csv."""
    with (Path(data_dir) / "attributes.csv").open(encoding="utf-8") as file:
        table = {row["image_id"]: row["identity"] for row in csv.DictReader(file)}
    return [table[name] for name in data.names]


@torch.no_grad()
def same_person(
    model: nn.Module, data_dir: str, data: Any, values: Tensor, names: Sequence[str], *, pairs: int
) -> dict[str, dict[str, float]]:
    """Return distances of embeddings between photographs of one person that differ in one attribute, or in none.

    No edits, no decoder: what the network itself makes of an attribute. (Gender does not change: where it does, a label
    is wrong.) A person gives one pair an attribute.

    Args:
        model: Over canonical squares.
        data_dir: Directory with attributes.csv.
        data: Faces.
        values: Their attributes, (N, K), 0 or 1.
        names: Names of these.
        pairs: At most so many of each kind.
    """
    groups = defaultdict(list)
    for k, person in enumerate(people_of(data_dir, data)):
        groups[person].append(k)
    chosen: dict[str, list[tuple[int, int]]] = {name: [] for name in ("none", *names)}
    for group in groups.values():
        new: dict[str, tuple[int, int]] = {}
        for a, b in combinations(group, 2):
            apart = (values[a] != values[b]).nonzero()[:, 0].tolist()
            if len(apart) <= 1:
                new.setdefault(names[apart[0]] if apart else "none", (a, b))
        for name, pair in new.items():
            if len(chosen[name]) < pairs:
                chosen[name].append(pair)
    needed = sorted({k for found in chosen.values() for pair in found for k in pair})
    parts = [needed[start : start + 64] for start in range(0, len(needed), 64)]
    rows = torch.cat([model(torch.stack([data[k][0] for k in part])) for part in parts]) if parts else torch.empty(0)
    place = {k: row for row, k in enumerate(needed)}
    out = {}
    for name, found in chosen.items():
        if len(found) >= 5:
            a, b = (rows[[place[pair[j]] for pair in found]] for j in (0, 1))
            euclidean, cosine = (a - b).norm(dim=1), 1 - F.cosine_similarity(a, b)
            out[name] = {"pairs": float(len(found))}
            for kind, distance in (("euclidean", euclidean), ("cosine", cosine)):
                out[name] |= {kind: float(distance.mean()), f"{kind}_error": float(distance.std() / len(found) ** 0.5)}
    return out


@torch.no_grad()
def identity_kept(pipeline: Pipeline, images: Tensor) -> dict[str, float]:
    """Return cosines of embeddings: a face and its reconstruction, a face and another's reconstruction."""
    photographs = pipeline.features(images).flatten(1)
    decoded = pipeline.ask_model(pipeline.decode(pipeline.encode(images)[0]))[0].flatten(1)
    own = F.cosine_similarity(photographs, decoded)
    other = F.cosine_similarity(photographs, decoded.roll(1, 0))
    above = float((own[:, None] > other).double().mean())
    return {"own": float(own.mean()), "other": float(other.mean()), "auc": above}


def same_and_different(people: list[str], pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return indices (pairs, 2) of two pictures of one person, a pair a person, and of two people."""
    rows = defaultdict(list)
    for k, person in enumerate(people):
        rows[person].append(k)
    generator = torch.Generator().manual_seed(seed)
    several = [r for r in rows.values() if len(r) > 1]
    chosen = torch.randperm(len(several), generator=generator)[:pairs].tolist()
    same = torch.tensor([several[k][:2] for k in chosen])
    different = torch.empty(0, 2, dtype=torch.long)
    while len(different) < pairs:
        drawn = torch.randint(len(people), (2 * pairs, 2), generator=generator)
        apart = torch.tensor([people[a] != people[b] for a, b in drawn.tolist()])
        different = torch.cat([different, drawn[apart]])
    return same, different[:pairs]


@torch.no_grad()
def embed(network: nn.Module, crops: Tensor) -> Tensor:
    """Return embeddings (B, 256) of crops (B, 3, 112, 96) and of their mirror images, joined."""
    out = []
    for part in crops.split(32):
        x = (part * 255 - 127.5) / 128
        out.append(torch.cat([network(x), network(x.flip(3))], dim=1))
    return torch.cat(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True, help="directory with images.zip and attributes.csv")
    parser.add_argument("--weights", required=True, help="checkpoint of MobileFaceNet")
    parser.add_argument("--pairs", type=int, default=400, help="pairs of one person, and as many of two")
    parser.add_argument("--picture", type=Path, default=None, help="save crops of both kinds side by side")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = load_face_net(arguments.weights)
    faces = get_plugin_manager().build_dataset("celeba", arguments.data_dir, train=True, size=64)
    same, different = same_and_different(people_of(arguments.data_dir, faces), arguments.pairs, seed=0)
    needed, place = torch.cat([same, different]).unique(return_inverse=True)
    scale, tx, ty = ALIGNMENT
    crops: dict[str, list[Tensor]] = {"from files": [], "from 64 px squares": []}
    # Pillow's transform of the whole file is the independent one of the two crops.
    archive = zipfile.ZipFile(Path(arguments.data_dir) / "images.zip")
    for k in needed.tolist():
        whole = Image.open(io.BytesIO(archive.read(faces.names[k]))).convert("RGB")
        cut = whole.transform(
            (SIZE[1], SIZE[0]), Image.Transform.AFFINE, (1 / scale, 0, -tx / scale, 0, 1 / scale, -ty / scale),
            Image.Resampling.BICUBIC,
        )  # fmt: skip
        crops["from files"].append(pil_to_tensor(cut))
        crops["from 64 px squares"].append(model.crop(faces[k][0][None])[0])
    for name, given in crops.items():
        embedding = F.normalize(embed(model.network, torch.stack(given)))[place]
        cosine = (embedding[:, 0] * embedding[:, 1]).sum(1)
        one, two = cosine[: len(same)], cosine[len(same) :]
        best = max(float((one > t).double().mean() + (two <= t).double().mean()) / 2 for t in cosine.tolist())
        print(
            f"{name}: {len(same)} + {len(different)} pairs, mean cosine {one.mean():.2f} against {two.mean():.2f}, "
            f"AUC {float((one[:, None] > two).double().mean()):.3f}, {100 * best:.1f} % right at the best threshold"
        )
    if arguments.picture is not None:
        rows = torch.stack([torch.stack(given[:8]) for given in crops.values()])
        arguments.picture.write_bytes(to_png(grid(columns_of(rows), row_labels=list(crops), inch=1.0)))


if __name__ == "__main__":
    main()
