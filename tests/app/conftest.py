"""Two fitted layers of one small network, and one of another, as the page is opened on them."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from small_parts import SPEC, TINY, network
from torch.utils.data import Subset

from posthoc_inn import Interpreter
from posthoc_inn.ambient import plain_torch
from posthoc_inn.app.fitted import FittedLayer, Opened, Shown
from posthoc_inn.datasets import ColorDigits

CLASSES = [f"digit {k}" for k in range(10)]


def pictures(count=6):
    data = ColorDigits(seed=1)
    return tuple(Shown(f"picture {k}", data[k][0]) for k in range(count))


def fit(layer, seed=0, **options):
    with plain_torch():
        whole, some = ColorDigits(seed=0), range(240)
        values = {"digit": whole.digits[:240], "background": whole.background[:240].mean(1)}
        interpreter = Interpreter(network(seed), layer, spec=SPEC, preset=TINY, precision="32", **options)
        concepts = None if "concept_model" in options else values
        interpreter.fit(Subset(whole, some), concepts=concepts, progress=False)
        interpreter.origin = {"classes": CLASSES}
        return interpreter


@pytest.fixture(scope="session")
def opened() -> Opened:
    """Not to be changed."""
    first = fit("1")
    second = fit("3", autoencoder=first.autoencoder_, concept_model=first.concept_model_)
    other = fit("3", seed=1)
    layers = [
        FittedLayer(name, interpreter, (28, 28))
        for name, interpreter in (("early", first), ("late", second), ("another model", other))
    ]
    return Opened.of(layers, pictures())


@pytest.fixture(scope="module")
def collected():
    """Collect what gradio leaves open while nobody takes its warnings for errors of this package."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


@pytest.fixture(scope="session")
def without_concepts() -> FittedLayer:
    with plain_torch():
        data = torch.stack([shown.picture for shown in pictures(60)])
        interpreter = Interpreter(network(2), "3", spec=SPEC, preset=TINY, precision="32").fit(data, progress=False)
    return FittedLayer("alone", interpreter, (28, 28))
