"""Latents moved towards z, against the model asked anew, a slow likelihood, and what must not change."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from layer_parts import DIM, classifier, generator, linear_autoencoder, pictures, pipeline
from torch import nn

from posthoc_inn.analysis import guided, moved, refinement, refining, samples
from posthoc_inn.autoencoders import GivenGenerator
from posthoc_inn.config import ImageSpec
from posthoc_inn.errors import ConfigError, ShapeError
from posthoc_inn.features.guard import untouched

SPEC = ImageSpec(size=(8, 8), mean=(0.0,), std=(1.0,))


@pytest.fixture(scope="module")
def parts():
    return pipeline(autoencoder=linear_autoencoder(reach=0.5))


@pytest.fixture(scope="module")
def z(parts):
    # Of pictures that the decoder can make: there are latents that have exactly this z.
    return parts.features(parts.decode(torch.randn(5, DIM, generator=generator(3))))


@pytest.fixture(scope="module")
def drawn(parts, z):
    return parts.sample_latents(parts.context(z), torch.randn(5, 4, DIM, generator=generator(4)))


def misfits(parts, latents, z):
    """The model asked picture by picture, in NumPy."""
    mean = parts.flow.conditioner.z_mean.double().numpy()
    found = []
    for row, own in zip(latents, z.double().numpy(), strict=True):
        for latent in row:
            seen = parts.ask_model(parts.decode(latent[None]))[0].double().numpy()[0]
            found.append(np.square(seen - own).sum() / np.square(own - mean).sum())
    return np.array(found)


def slow_nats(parts, latents, z):
    """-log p(z_bar given z) from the Jacobian of t, in float64."""
    flow = pipeline(model=parts.extractor.model, autoencoder=parts.autoencoder).flow
    flow.load_state_dict(parts.flow.state_dict())
    flow = flow.double().eval()
    found = []
    for row, own in zip(latents.double(), z.double(), strict=True):
        context = flow.context(own[None])
        for latent in row:
            v = flow(latent[None], context)[0][0]
            jacobian = torch.autograd.functional.jacobian(lambda x, c=context: flow(x[None], c)[0][0], latent)
            log_det = float(torch.linalg.slogdet(jacobian)[1])
            found.append(0.5 * float(v.square().sum()) + 0.5 * DIM * math.log(2 * math.pi) - log_det)
    return np.array(found)


def test_every_sample_comes_nearer_and_none_loses_more_likelihood_than_it_gains(parts, z, drawn):
    found = moved(parts, drawn, z, 20)
    before, after = misfits(parts, drawn, z), misfits(parts, found, z)
    risen = slow_nats(parts, found, z) - slow_nats(parts, drawn, z)
    assert (after < before).all()
    assert np.mean(after) < 0.7 * np.mean(before)
    price = refining.WEIGHT * DIM
    assert (price * after + np.maximum(0, risen) <= price * before * (1 + 1e-4)).all()


def test_many_steps_reach_the_z_that_was_asked_for(parts, z, drawn):
    found = moved(parts, drawn, z, 100, weight=1e6)
    assert np.median(misfits(parts, found, z)) < 0.1 * np.median(misfits(parts, drawn, z))


def test_a_small_weight_lets_t_decide(parts, z, drawn):
    # Nothing to gain from the model: no sample may become less likely.
    found = moved(parts, drawn, z, 20, weight=1e-6)
    assert (slow_nats(parts, found, z) <= slow_nats(parts, drawn, z) + 1e-4).all()


def test_a_step_that_is_far_too_long_is_not_taken(parts, z, drawn, monkeypatch):
    monkeypatch.setattr(refining, "RATE", 1e4)
    assert (misfits(parts, moved(parts, drawn, z, 5), z) <= misfits(parts, drawn, z) + 1e-6).all()


def test_the_result_tells_before_and_after_as_they_are(parts, z, drawn):
    prediction = parts.extractor.said(parts.predict(pictures(5)))
    found = refinement(parts, drawn, z, prediction, 10)
    assert (found.images, found.samples, found.steps) == (5, 4, 10)
    assert found.nats_before == pytest.approx(slow_nats(parts, drawn, z).mean(), abs=1e-3)
    nats = slow_nats(parts, found.latents, z)
    assert found.nats == pytest.approx(nats.mean(), abs=1e-3)
    by_image = (nats - slow_nats(parts, drawn, z)).reshape(5, 4).mean(1)
    assert found.nats_error == pytest.approx(by_image.std(ddof=1) / math.sqrt(5), abs=1e-3)
    spread = [part.double().numpy().var(axis=1, ddof=1).sum(-1).mean() for part in (found.latents, drawn)]
    assert found.spread_kept == pytest.approx(spread[0] / spread[1], rel=1e-5)
    far = np.square((found.latents - drawn).double().numpy()).sum(-1).mean()
    assert found.moved == pytest.approx(math.sqrt(far / spread[1]), rel=1e-5)
    for told, latents in ((found.before, drawn), (found.after, found.latents)):
        seen, output = parts.ask_model(parts.decode(latents.flatten(0, 1)))
        a, b = seen.flatten(1).double().numpy(), z.flatten(1).double().repeat_interleave(4, 0).numpy()
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert told.similarity == pytest.approx(cosine.mean(), abs=1e-5)
        same = parts.extractor.said(output) == prediction.repeat_interleave(4)
        assert told.agreement == pytest.approx(float(same.double().mean()))
    assert found.after.similarity > found.before.similarity
    assert "latents" not in found.to_dict()
    assert f"from {found.before.similarity:.3f} to {found.after.similarity:.3f}" in found.caption


def test_the_same_bits_in_any_mode_and_nothing_is_touched(parts, z, drawn):
    model = parts.extractor.model
    with untouched(model), untouched(parts.autoencoder), untouched(parts.flow):
        first = moved(parts, drawn, z, 3)
    with torch.no_grad():
        again = moved(parts, drawn, z, 3)
    with torch.inference_mode():
        third = moved(parts, drawn.clone(), z.clone(), 3)
    assert torch.equal(first, again)
    assert torch.equal(first, third)
    assert not first.requires_grad
    for module in (model, parts.autoencoder, parts.flow):
        assert all(p.grad is None for p in module.parameters())


def test_chunks_change_no_sample(parts, z, drawn, monkeypatch):
    whole = moved(parts, drawn, z, 3)
    monkeypatch.setattr(refining, "ROWS", 3)
    torch.testing.assert_close(moved(parts, drawn, z, 3), whole, rtol=1e-3, atol=1e-4)
    alone = moved(parts, drawn[2:3], z[2:3], 3)
    torch.testing.assert_close(alone, whole[2:3], rtol=1e-3, atol=1e-4)


def test_no_steps_leave_samples_alone_and_what_is_no_number_of_steps_is_refused(parts, z, drawn):
    assert torch.equal(moved(parts, drawn, z, 0), drawn)
    for wrong in (-1, 2.5, True, "3"):
        with pytest.raises(ConfigError, match="refine takes the number of gradient steps"):
            moved(parts, drawn, z, wrong)
        with pytest.raises(ConfigError, match="refine takes the number of gradient steps"):
            samples(parts, pictures(2), 2, refine=wrong)
    with pytest.raises(ShapeError, match=r"Latents must be \(B, N, 6\) with B = 5"):
        moved(parts, drawn[:, 0], z, 1)


class OfBytes(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.float() / 127.5 - 1)


class WithoutGradients(OfBytes):
    @torch.no_grad()
    def forward(self, x):
        return self.model(x)


def test_what_passes_no_gradient_is_named(parts, z, drawn):
    basis = np.random.default_rng(0).normal(size=(DIM, 3 * 8 * 8)) / 20
    numpy = GivenGenerator(lambda w: (w.numpy() @ basis + 0.5).reshape(-1, 3, 8, 8), DIM)
    with pytest.raises(ConfigError, match="the decoder passes none on"):
        moved(replace(parts, autoencoder=numpy), drawn, z, 1)
    whole_numbers = pipeline("model.features.2", model=OfBytes(classifier()), autoencoder=parts.autoencoder)
    whole_numbers = replace(whole_numbers, adapter=replace(parts.adapter, spec=SPEC, dtype="uint8"))
    frozen = pipeline("model.features.2", model=WithoutGradients(classifier()), autoencoder=parts.autoencoder)
    with pytest.raises(ConfigError, match="the model passes none from its images to this layer"):
        moved(frozen, drawn, z, 1)
    with pytest.raises(ConfigError, match="the model passes none from its images to this layer"):
        moved(whole_numbers, drawn, z, 1)


def test_a_generator_in_torch_is_refined_at_its_own_size(parts, z, drawn):
    own = GivenGenerator(lambda w: torch.sigmoid(parts.autoencoder.decoder(w)), DIM, size=16)
    own.decode = None  # the model gets the generator's own pictures, not those of the size that is shown
    found = refinement(replace(parts, autoencoder=own), drawn, z, None, 8)
    assert found.after.similarity > found.before.similarity
    assert math.isnan(found.after.agreement)


def test_guided_latents_start_at_random_and_need_no_t(parts, z):
    none = replace(parts, flow=pipeline(strength=0.0).flow)
    first, other = (guided(none, z, 3, 60, seed=seed) for seed in (0, 1))
    start = torch.randn(5, 3, DIM, generator=generator(0))
    assert misfits(parts, first, z).mean() < 0.3 * misfits(parts, start, z).mean()
    assert torch.equal(first, guided(parts, z, 3, 60, seed=0))
    assert not torch.allclose(first, other)
    known = 3 + 0.1 * torch.randn(500, DIM, generator=generator(5))
    assert float((guided(parts, z, 50, 0, known=known) - 3).abs().max()) < 0.6


def test_samples_show_what_was_refined(parts):
    plain, found = (samples(parts, pictures(3), 4, refine=steps) for steps in (0, 8))
    assert plain.refinement is None
    assert torch.equal(found.pictures.flatten(0, 1), parts.decode(found.refinement.latents.flatten(0, 1)))
    assert not torch.equal(found.pictures, plain.pictures)
    assert found.agreement == found.refinement.after.agreement
    assert plain.agreement == found.refinement.before.agreement
    assert found.caption.endswith("spread and likelihood are.")
