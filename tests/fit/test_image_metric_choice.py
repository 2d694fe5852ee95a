"""By which image metric the autoencoder of maps is trained where nobody says: the explained model, where that can."""

from __future__ import annotations

import pytest
import torch
from small_parts import STEPS, TINY
from torch import nn

from posthoc_inn import Interpreter
from posthoc_inn.config import AutoencoderConfig, FlowConfig, ImageSpec
from posthoc_inn.errors import ConfigError, LayerNotFoundError
from posthoc_inn.fit import FitRequest
from posthoc_inn.progress import Reporter

SPEC = ImageSpec(mean=(0.5,), std=(0.5,))
MAPS = TINY.replace(
    latent="auto", map_flow=FlowConfig(dim=8, context_dim=8, kind="conv", blocks=1, width=8, depth=1),
    map_autoencoder_training=STEPS.replace(steps=4), map_flow_training=STEPS.replace(steps=4),
)  # fmt: skip


def convolutional(width=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, width, 5, 2, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


class OfVectors(nn.Module):
    """A network without maps: nothing of it compares pictures."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8), nn.ReLU(), nn.Linear(8, 10))

    def forward(self, x):
        return self.network(x)


class Rounding(nn.Module):
    """A network through which no gradient comes back."""

    def __init__(self):
        super().__init__()
        self.network = convolutional()

    def forward(self, x):
        return self.network((x * 10).round())


def prepared(model, layer, **options):
    notes = []

    class Notes(Reporter):
        def note(self, text):
            notes.append(text)

    interpreter = Interpreter(model, layer, **({"spec": SPEC, "preset": MAPS, "precision": "32"} | options))
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fit = interpreter.prepare(FitRequest(data=images, held_out=images[:12]), reporter=Notes())
    return fit.parts.autoencoder.config, " ".join(notes), fit


def test_it_is_the_explained_model_and_the_fit_says_so_and_the_bundle_too(tmp_path):
    model = convolutional()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config, notes, _ = prepared(model, "4")
    assert (config.perceptual, config.perceptual_share) == ("model", 0.25)
    assert "pictures are compared by the explained model too, at 1, 3, " in notes
    interpreter = Interpreter(model, "4", spec=SPEC, preset=MAPS, precision="32")
    interpreter.fit(torch.rand(40, 3, 32, 32), held_out=torch.rand(12, 3, 32, 32), progress=False)
    assert interpreter.metrics_["perceptual"]["features"] == "the explained model"
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    interpreter.save(tmp_path / "bundle")
    assert Interpreter.load(tmp_path / "bundle", model=model).autoencoder_.config == interpreter.autoencoder_.config


@pytest.mark.parametrize(
    ("model", "layer", "why"),
    [(OfVectors(), "network.1", "No layer of OfVectors gives maps"), (Rounding(), "network.4", "passes no gradient")],
)
def test_where_it_cannot_be_the_squared_error_serves_alone_and_the_reason_is_told(model, layer, why):
    config, notes, fit = prepared(model, layer)
    assert config.perceptual == ""
    assert fit.parts.metric() is None
    assert "squared error alone" in notes
    assert why in notes


@pytest.mark.parametrize("model", [OfVectors(), Rounding()])
def test_what_is_asked_for_is_an_error_where_it_cannot_be(model):
    layer = "network.1" if isinstance(model, OfVectors) else "network.4"
    with pytest.raises(ConfigError, match=r"gives maps|passes no gradient"):
        prepared(model, layer, autoencoder=AutoencoderConfig.of_map(32, width=8, perceptual="model"))
    with pytest.raises((ConfigError, LayerNotFoundError)):
        prepared(model, layer, autoencoder=AutoencoderConfig.of_map(32, width=8, perceptual_layers=("nine",)))


def test_vectors_and_a_configuration_that_says_no_are_trained_by_squared_error():
    for options in (
        {"preset": MAPS.replace(latent="vector")},
        {"autoencoder": AutoencoderConfig.of_map(32, perceptual="")},
    ):
        config, notes, fit = prepared(convolutional(), "4", **options)
        assert (config.perceptual, fit.parts.metric()) == ("", None)
        assert "compared" not in notes


def operations_of(module, run):
    """Multiplications and additions of the convolutions that `run` calls, and 60 for each value that a layer writes."""
    found = []

    def count(layer, args, output):
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            places = args[0] if isinstance(layer, nn.ConvTranspose2d) else output
            found.append(2 * places.numel() // places.shape[1] * layer.weight.numel())
        found.append(60 * output.numel())

    handles = [m.register_forward_hook(count) for m in module.modules() if not list(m.children())]
    run()
    for handle in handles:
        handle.remove()
    return sum(found)


@pytest.mark.parametrize("width", [4, 300, 500])
def test_the_share_of_a_batch_costs_half_of_what_the_autoencoder_does_by_operations(width):
    wanted = AutoencoderConfig.of_map(32, width=16)
    config, _, fit = prepared(convolutional(width), "4", autoencoder=wanted)
    autoencoder, image = fit.parts.autoencoder, torch.zeros(1, 3, 32, 32)
    own = operations_of(autoencoder, lambda: autoencoder.decode(autoencoder.encode(image)[0]))
    seen = convolutional(width)[:4]  # what is compared ends there
    share = min(0.25, 0.5 * own / operations_of(seen, lambda: seen(image)))
    assert config.perceptual_share == pytest.approx(max(1 / 64, share), rel=0.2, abs=1 / 64)
    assert (config.perceptual_share == 0.25) == (width == 4)
    kept = prepared(convolutional(width), "4", autoencoder=wanted.replace(perceptual_share=0.5))[0]
    assert kept.perceptual_share == 0.5
