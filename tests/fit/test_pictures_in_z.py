"""Early layers, which show the picture: t starts from it where that is there, and stays as it was where it is not."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small_parts import SPEC, TINY
from torch import nn

from posthoc_inn import Interpreter
from posthoc_inn.autoencoders import GivenAutoencoder
from posthoc_inn.config import TrainConfig, preset
from posthoc_inn.errors import BundleError, ConfigError
from posthoc_inn.fit import FitRequest
from posthoc_inn.fit.pictures import with_pictures, without_pictures
from posthoc_inn.fit.refits import reseeded
from posthoc_inn.progress import Reporter

NOISE = 0.05
PICTURES = TrainConfig(steps=40, batch_size=16, lr=2e-3, clip=1.0, eval_every=20, patience=0)
CONFIG = TINY.replace(
    flow=TINY.flow.replace(dim=48),
    picture_training=PICTURES,
    flow_training=TINY.flow_training.replace(steps=30, eval_every=10, checkpoint_every=10),
)


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class Blind(nn.Module):
    """Tells the mean colour of an image, at every place of it, and nothing else."""

    def forward(self, x):
        return x.mean((2, 3), keepdim=True).expand(-1, -1, 28, 28)


def network(*, is_blind=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = [Blind()] if is_blind else []
        last = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
        return nn.Sequential(nn.Sequential(*first, nn.Conv2d(3, 8, 3, padding=1)), *last).eval()


def autoencoder():
    """The means of 4 x 4 fields, with known noise: a code that the picture determines, and a known floor in pixels."""
    decoder = nn.Sequential(nn.Unflatten(1, (3, 4, 4)), nn.Upsample(scale_factor=7))
    return GivenAutoencoder(nn.Sequential(nn.AvgPool2d(7), nn.Flatten()), decoder, size=28, noise=NOISE)


def images(n, seed=0):
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(0.2 + 0.6 * coarse, (28, 28))


def fit(config=CONFIG, *, is_blind=False, **options):
    interpreter = Interpreter(network(is_blind=is_blind), "0", preset=config, spec=SPEC, autoencoder=autoencoder())
    notes = Notes()
    interpreter.fit(images(400), held_out=images(100, seed=1), evaluate=False, progress=notes, **options)
    return interpreter, notes.notes


@pytest.fixture(scope="module")
def sighted():
    return fit()


def test_where_z_determines_the_picture_samples_are_as_near_as_the_encoders_own_noise(sighted):
    interpreter, notes = sighted
    kept = images(100, seed=1)
    pipeline = interpreter.pipeline
    mean, std = pipeline.encode(kept)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    floor = float((pipeline.decode(mean + std * noise) - kept).square().mean())
    error = float((interpreter.sample(kept, n=4) - kept[:, None]).square().mean())
    assert floor == pytest.approx(NOISE**2, rel=0.1)
    assert error < 1.1 * floor
    assert any("explains 9" in note or "explains 100" in note for note in notes)


def test_without_pictures_it_is_far_from_that():
    # Or the test above would tell nothing.
    interpreter, _ = fit(CONFIG.replace(pictures="never"))
    kept = images(100, seed=1)
    assert float((interpreter.sample(kept, n=4) - kept[:, None]).square().mean()) > 4 * NOISE**2


def test_where_z_says_nothing_t_is_what_it_was():
    tried, notes = fit(is_blind=True)
    never, _ = fit(CONFIG.replace(pictures="never"), is_blind=True)
    assert any("does not start from it" in note for note in notes)
    assert tried.pipeline.flow.flow.config == never.pipeline.flow.flow.config
    for name, own in tried.pipeline.flow.state_dict().items():
        assert torch.equal(own, never.pipeline.flow.state_dict()[name]), name


def test_a_bundle_brings_it_back(sighted, tmp_path):
    interpreter, _ = sighted
    kept = images(3, seed=3)
    interpreter.save(tmp_path / "run")
    loaded = Interpreter.load(tmp_path / "run", model=network(), autoencoder=autoencoder())
    assert torch.equal(loaded.sample(kept, n=2), interpreter.sample(kept, n=2))
    assert loaded.pipeline.flow.asked() is loaded.pipeline.autoencoder
    assert "the picture in z" in (tmp_path / "run" / "README.md").read_text()


def test_the_autoencoder_is_left_as_it_was(sighted):
    interpreter, _ = sighted
    own = interpreter.pipeline.autoencoder
    assert all(p.grad is None for p in own.parameters())
    assert interpreter.pipeline.flow.asked() is own


def test_a_refit_starts_from_the_same_picture():
    parts = (
        Interpreter(network(), "0", preset=CONFIG, spec=SPEC, autoencoder=autoencoder())
        .prepare(FitRequest(data=images(40), held_out=images(20)))
        .parts
    )
    trained = copy.deepcopy(parts.flow)
    torch.nn.init.ones_(trained.pictures.linear.weight)
    again = reseeded(parts, trained, 1).flow
    assert torch.equal(again.pictures.linear.weight, trained.pictures.linear.weight)
    assert again.asked() is trained.asked()
    assert not any(p.requires_grad for p in again.pictures.parameters())


def test_the_plan_says_so():
    told = Interpreter(network(), "0", preset=CONFIG, spec=SPEC, autoencoder=autoencoder()).plan(
        images(40), held_out=images(20)
    )
    line = next(line for line in told.lines if line.startswith("pictures"))
    assert "40 steps of 16" in line
    assert "75 % of the code" in line
    assert told.seconds["pictures"] > 0


def test_it_is_tried_where_z_has_as_many_values_in_places_as_the_picture():
    own, picture = autoencoder(), (3, 28, 28)

    def kind(config, z_shape, given=own):
        found = with_pictures(config, given, z_shape, picture)
        return None if found is None else found.flow.kind

    assert kind(CONFIG, (3, 28, 28)) == "pictures+affine"
    assert kind(CONFIG.replace(flow=CONFIG.flow.replace(kind="spline")), (100, 24)) == "pictures+spline"
    assert kind(CONFIG, (64, 6, 6)) is None
    assert kind(CONFIG, (4096,)) is None
    assert kind(preset("quick"), (128, 4, 4)) is None  # the demo's deepest map
    assert kind(preset("quick"), (128, 1, 1)) is None  # and what is pooled of it
    assert kind(CONFIG.replace(pictures="never"), (3, 28, 28)) is None
    for name in ("paper-comparison", "few", "linear"):
        assert kind(preset(name), (32, 28, 28)) is None
    assert without_pictures(with_pictures(CONFIG, own, (3, 28, 28), picture)) == CONFIG


def test_a_generator_has_no_encoder_to_ask():
    given = SimpleNamespace(has_encoder=False)
    asked = CONFIG.replace(flow=CONFIG.flow.replace(kind="pictures+affine"))
    assert with_pictures(CONFIG, given, (3, 28, 28), (3, 28, 28)) is None
    with pytest.raises(ConfigError, match="asks an encoder"):
        with_pictures(asked, given, (3, 28, 28), (3, 28, 28))


def test_a_bundle_that_looks_for_other_pictures_is_refused(sighted, tmp_path):
    sighted[0].save(tmp_path / "run")
    file = tmp_path / "run" / "bundle.json"
    document = json.loads(file.read_text())
    document["conditioner"]["picture_shape"] = [3, 14, 14]
    file.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="not the autoencoder's"):
        Interpreter.load(tmp_path / "run", model=network(), autoencoder=autoencoder())
