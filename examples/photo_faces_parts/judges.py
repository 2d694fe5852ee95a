"""What judges that are no part of the explained network say of a face: nine numbers a picture.

Age, gender, smile and pose come from face-api. Glasses and beard are read linearly from the features of its networks,
by logistic regression on CelebA's labels. Hair and background are the brightness of fixed places.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from photo_faces_parts import crops, face_api

CHUNK = 25
LEARNED = {"glasses": "Eyeglasses", "no beard": "No_Beard"}
PLACES = {"hair": ((100, 24, 156, 56),), "background": ((4, 8, 30, 90), (226, 8, 252, 90))}
"""Boxes of a square of 256 pixels: left, top, right, bottom."""


class Photographs:
    """CelebA's aligned files as squares, with names and identities.

    Args:
        directory: With images.zip and attributes.csv.
    """

    def __init__(self, directory: str | Path) -> None:
        folder = Path(directory)
        with (folder / "attributes.csv").open(encoding="utf-8") as file:
            self.rows = list(csv.DictReader(file))
        self._archive = zipfile.ZipFile(folder / "images.zip")

    def squares(self, indices: Sequence[int]) -> Tensor:
        """Return squares (N, 3, 256, 256) in [0, 1]."""
        files = []
        for k in indices:
            with Image.open(io.BytesIO(self._archive.read(self.rows[k]["image_id"]))) as image:
                files.append(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255)
        return crops.celeba_squares(torch.stack(files))

    def pairs(self, number: int, seed: int = 0) -> list[int]:
        """Return indices of two photographs of each of so many people, one after the other."""
        people = defaultdict(list)
        for k, row in enumerate(self.rows):
            people[row["identity"]].append(k)
        several = [found[:2] for found in people.values() if len(found) > 1]
        chosen = np.random.default_rng(seed).permutation(len(several))[:number]
        return [k for c in chosen for k in several[c]]

    def with_and_without(self, name: str, number: int, seed: int = 0) -> list[int]:
        """Return indices in random order, half of them (or all there are) with the attribute."""
        rng = np.random.default_rng(seed)
        values = np.array([row[name] == "1" for row in self.rows])
        half = [rng.permutation(np.flatnonzero(values == which))[: number // 2] for which in (True, False)]
        return [int(k) for k in rng.permutation(np.concatenate(half))]


class Judges:
    """Numbers (N, K) for pictures, uint8 (N, 3, 256, 256); `names` says which.

    Args:
        directory: With the weights of face-api.
    """

    def __init__(self, directory: str | Path) -> None:
        load = face_api.load
        self.age = crops.attributes(load(directory, "age_gender"))
        self.expression = crops.attributes(load(directory, "face_expression"))
        self.landmarks = crops.attributes(load(directory, "face_landmark_68"))
        self._features: list[Tensor] = []
        for last in (self.age.network.age, self.expression.network.fc, self.landmarks.network.fc):
            last.register_forward_pre_hook(lambda _, given: self._features.append(given[0]))
        self._learned: dict[str, tuple[float, Tensor]] = {}
        self.quality: dict[str, float] = {}

    @property
    def names(self) -> list[str]:
        """What the numbers are."""
        return ["age", "gender", "smile", "turned", "raised", *PLACES, *self._learned]

    @torch.no_grad()
    def _all(self, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers (N, 5) that networks give as they are, and features (N, 1024)."""
        self._features.clear()
        age, smile, points = self.age(squares), self.expression(squares).log_softmax(1)[:, 1], self.landmarks(squares)
        points = points.unflatten(1, (68, 2))
        eyes = points[:, 36:48].mean(1)
        mouth, nose = points[:, 48:68].mean(1), points[:, 30]
        width = (points[:, 42:48].mean(1) - points[:, 36:42].mean(1))[:, 0]
        turned = (nose - (eyes + mouth) / 2)[:, 0] / width
        raised = (nose - eyes)[:, 1] / (mouth - eyes)[:, 1]
        return torch.stack([age[:, 0], age[:, 1], smile, turned, raised], 1), torch.cat(self._features, 1)

    def learn(self, photographs: Photographs, number: int = 1000) -> None:
        """Learn what face-api has no network for; a fifth is kept aside for `quality`, the AUC."""
        for name, attribute in LEARNED.items():
            chosen = photographs.with_and_without(attribute, number)
            parts = [chosen[k : k + CHUNK] for k in range(0, len(chosen), CHUNK)]
            x = torch.cat([self._all(photographs.squares(part))[1] for part in parts]).numpy()
            y = np.array([photographs.rows[k][attribute] == "1" for k in chosen])
            aside = len(x) // 5
            model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
            model.fit(x[aside:], y[aside:])
            self.quality[name] = float(roc_auc_score(y[:aside], model.decision_function(x[:aside])))
            scale, line = model[0], model[1]
            weight = torch.from_numpy(line.coef_[0] / scale.scale_).float()
            shift = float(line.intercept_[0]) - float((line.coef_[0] * scale.mean_ / scale.scale_).sum())
            self._learned[name] = (shift, weight)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return the numbers, (N, K)."""
        out = []
        for part in pictures.split(CHUNK):
            squares = part.float() / 255
            numbers, features = self._all(squares)
            grey = squares.mean(1)
            mean = lambda place: grey[:, place[1] : place[3], place[0] : place[2]].mean((1, 2))  # noqa: B023, E731
            places = [torch.stack([mean(place) for place in boxes]).mean(0) for boxes in PLACES.values()]
            read = [features @ weight + shift for shift, weight in self._learned.values()]
            out.append(torch.cat([numbers, torch.stack([*places, *read], 1)], 1))
        return torch.cat(out)


@torch.no_grad()
def embed(network: nn.Module, pictures: Tensor) -> Tensor:
    """Return embeddings (N, D) of pictures, uint8 or in [0, 1], (N, 3, 256, 256)."""
    parts = [part.float() / 255 if part.dtype == torch.uint8 else part for part in pictures.split(CHUNK)]
    return torch.cat([network(part).flatten(1) for part in parts])


def shares(values: Tensor) -> dict[str, float]:
    """Return which share of the variance of values (Z, V), a row a z and a column a v, z and v account for.

    First order: what the mean of a row (or column) tells. Total: that and what z and v do together. Two-way analysis
    of variance without replication, unbiased but for the ends of [0, 1].
    """
    rows, columns = values.shape
    x = values.double()
    mean, by_row, by_column = x.mean(), x.mean(1, keepdim=True), x.mean(0, keepdim=True)
    both = float(((x - by_row - by_column + mean) ** 2).sum() / ((rows - 1) * (columns - 1)))
    z = max(0.0, (float(by_row.var()) * columns - both) / columns)
    v = max(0.0, (float(by_column.var()) * rows - both) / rows)
    total = z + v + both or 1.0
    return {"z": z / total, "v": v / total, "z total": (z + both) / total, "v total": (v + both) / total}
