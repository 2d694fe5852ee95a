"""The plan's memory, and what a fit takes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_parts import TINY, network

from posthoc_inn import Interpreter
from posthoc_inn.analysis.faithfulness import Asked, compare_with_model
from posthoc_inn.fit import memory, stages
from posthoc_inn.pipeline import Pipeline

FIT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from torch import nn
from small_parts import TINY
from posthoc_inn import Interpreter
from posthoc_inn.fit.plan import resident
images, width, features = json.loads(sys.argv[2])
data = torch.rand(images, 3, 64, 64)
layers = [nn.Conv2d(3, features, 3, 2, 1), nn.ReLU(), nn.Conv2d(features, features, 3, 2, 1), nn.ReLU()]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 10)).eval()
interpreter = Interpreter(model, "3", preset=TINY.replace(autoencoder_width=width), precision="32")
before = resident()
foretold = interpreter.plan(data).memory
interpreter.fit(data)
print(json.dumps([before, foretold, resident()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(3000, 8, 64), (1500, 8, 16), (1500, 32, 64)], ids=str)
def test_a_fit_takes_about_the_memory_that_its_plan_foretells(sizes):
    answer = subprocess.run(
        [sys.executable, "-c", FIT, str(Path(__file__).parents[1]), json.dumps(sizes)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, foretold, taken = json.loads(answer.stdout.splitlines()[-1])
    assert taken > before
    room = 100 * 2**20  # what imports, threads and the allocator take is not foretold to the megabyte
    assert abs(taken - foretold) < 0.35 * (foretold - before) + room, (before, foretold, taken)


def test_measuring_decodes_and_asks_in_parts(monkeypatch):
    largest = []
    decode, ask = Pipeline.decode, Pipeline.ask_model
    monkeypatch.setattr(Pipeline, "decode", lambda self, x: largest.append(len(x)) or decode(self, x))
    monkeypatch.setattr(Pipeline, "ask_model", lambda self, x: largest.append(len(x)) or ask(self, x))
    for module in ("faithfulness", "measure"):
        monkeypatch.setattr(importlib.import_module(f"posthoc_inn.analysis.{module}"), "PICTURES", 16)
    Interpreter(network(), "3", preset=TINY, precision="32").fit(torch.rand(300, 3, 28, 28))
    assert max(largest) <= 16


def test_parts_are_compared_as_the_whole_would_be():
    generator = torch.Generator().manual_seed(0)
    z, seen = torch.randn(7, 5, generator=generator), torch.randn(14, 5, generator=generator)
    scores = torch.randn(14, 3, generator=generator)
    classes = torch.randint(3, (7,), generator=generator)

    class Told:
        @property
        def extractor(self):
            return self

        def said(self, output):
            return output.argmax(1)

        def ask_model(self, pictures):
            rows = pictures.flatten().long()
            return seen[rows], scores[rows]

    pictures = torch.arange(14.0)[:, None]
    whole = compare_with_model(Told(), pictures, z, classes, 2)
    asked = Asked(Told(), 2)
    for part in torch.arange(7).split(3):
        asked.add(pictures[2 * part[0] : 2 * part[-1] + 2], z[part], classes[part])
    found, expected = asked.result().to_dict(), whole.to_dict()
    assert found.pop("agreement_interval") == pytest.approx(expected.pop("agreement_interval"))
    assert found == pytest.approx(expected)
    cosine = torch.nn.functional.cosine_similarity(z.double(), z.double().roll(1, 0), dim=1)
    assert found["similarity_between"] == pytest.approx(float(cosine.mean()))


def test_what_is_counted_is_what_stages_use():
    assert memory.INITIALIZATION_ROWS == stages.INITIALIZATION_ROWS
