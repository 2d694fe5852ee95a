"""Painted and augmented copies of held-out images train nothing."""

from __future__ import annotations

import pytest
import torch
from small_parts import TINY, network
from torch.utils.data import Dataset

from posthoc_inn import Interpreter
from posthoc_inn.concepts import GivenPairs, JoinedSources
from posthoc_inn.concepts.sketches import SketchSource
from posthoc_inn.fit import FitRequest, stages

N = 60


class Numbered(Dataset):
    """Images of one shade each, which tells their number; with noise, drawn anew each time, below a tenth of a step."""

    def __init__(self, noise=0.0):
        self.noise = noise

    def __len__(self):
        return N

    def __getitem__(self, index):
        if index >= N:
            raise IndexError(index)
        return torch.full((3, 28, 28), (index + 0.5) / N) + self.noise / N * torch.rand(3, 28, 28)


def number(pixels):
    """The number of cached images, painted ones included."""
    return (pixels.float().flatten(1).mean(1) / 255 * N).floor().long()


def copy(images, sketch, *, progress=None):
    """Paints nothing: what is painted of an image is an exact copy."""
    return images


def interpreter():
    return Interpreter(network(), "3", preset=TINY, mean=(0.0,) * 3, std=(1.0,) * 3)


def painted(name="style", images=40, seed=0):
    sketches = torch.zeros(1, 28, 28), torch.ones(1, 28, 28)
    return SketchSource(Numbered(), *sketches, name=name, stylize=copy, images=images, seed=seed)


SOURCES = {
    "painted": lambda: painted(),
    "joined": lambda: JoinedSources(
        [painted(), GivenPairs({"near": [(k, k + 1) for k in range(N - 1)]}), painted("other", 30, 1)], length=N
    ),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_what_was_painted_from_held_out_images_trains_nothing(kind, monkeypatch):
    seen = {}

    def autoencoder_task(autoencoder, train, held_out, *, extra, **options):
        seen["extra"] = number(extra["images"].tensor())
        seen["train"] = number(train["images"].tensor())
        return usual_task(autoencoder, train, held_out, extra=extra, **options)

    def fit_concepts(bound, *rows, **options):
        seen["pairs"] = bound.source.pairs(300, seed=3)
        return usual_fit(bound, *rows, **options)

    usual_task, usual_fit = stages.AutoencoderTask, stages.fit_concepts
    monkeypatch.setattr(stages, "AutoencoderTask", autoencoder_task)
    monkeypatch.setattr(stages, "fit_concepts", fit_concepts)
    source = SOURCES[kind]()
    fit = interpreter().prepare(FitRequest(data=Numbered(), held_out=0.4, concepts=source, evaluate=False))
    result = fit.run()
    held_out = set(number(result.held_out["images"].tensor()).tolist())
    assert len(held_out) == 24
    assert not held_out & set(seen["train"].tolist())
    assert not held_out & set(seen["extra"].tolist())
    # Nothing else was left out.
    wanted = [k for k in source.extra_of.tolist() if k not in held_out]
    assert seen["extra"].tolist() == wanted
    # Pairs are still of what they are said to be of: an image and what was painted from it have one number.
    numbers = torch.cat([seen["train"], seen["extra"]])
    a, b, shared = seen["pairs"]
    differing = shared[:, 0]
    assert differing.sum() > 50
    assert torch.equal(numbers[a[differing]], numbers[b[differing]])


def test_held_out_data_of_its_own_leaves_all_that_was_painted():
    source = painted()
    request = FitRequest(data=Numbered(), held_out=torch.rand(20, 3, 28, 28), concepts=source, evaluate=False)
    fit = interpreter().prepare(request)
    assert len(fit.parts.concepts.extra) == 80


def test_all_draws_of_an_image_are_on_one_side():
    fit = interpreter().prepare(FitRequest(data=Numbered(0.1), held_out=0.4, draws=3, evaluate=False))
    result = fit.run()
    train, held_out = (number(rows["images"].tensor()).tolist() for rows in (result.train, result.held_out))
    assert len(train) == 3 * 36
    assert sorted(train) == sorted(3 * list(set(train)))
    assert not set(train) & set(held_out)
