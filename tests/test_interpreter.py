"""The facade end to end, on real digits and tiny networks."""

from __future__ import annotations

import copy

import pytest
import torch
from small_parts import SPEC, TINY
from small_parts import network_with_state as network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from posthoc_inn import Interpreter, untouched
from posthoc_inn.autoencoders import GivenAutoencoder
from posthoc_inn.config import AutoencoderConfig, ImageSpec
from posthoc_inn.datasets import ColorDigits
from posthoc_inn.errors import ConfigError, DataError, LayerNotFoundError, NotFittedError, ShapeError
from posthoc_inn.progress import Reporter


@pytest.fixture(scope="module")
def digits():
    images = torch.stack([ColorDigits(train=True, seed=0)[k][0] for k in range(160)])
    return images


def interpreter(model=None, layer="3", **more):
    given = {"preset": TINY, "precision": "32"} | more
    return Interpreter(model if model is not None else network(), layer, **given)


@pytest.fixture(scope="module")
def fitted(digits):
    return interpreter(spec=SPEC).fit(digits)


def test_fit_returns_the_interpreter_and_learned_names_end_in_an_underscore(fitted):
    assert isinstance(fitted, Interpreter)
    for name in ("autoencoder_", "flow_", "adapter_", "metrics_", "history_", "pipeline_"):
        assert hasattr(fitted, name)
    assert fitted.metrics_["images"].items() >= {"train": 144, "held_out": 16}.items()


def test_it_shows_itself_in_a_notebook_and_all_text_is_escaped(fitted, monkeypatch):
    fresh = interpreter()._repr_html_()
    assert "<td>False</td>" in fresh
    assert "shape of z" not in fresh
    monkeypatch.setattr(fitted, "layer", "<b>3</b>")
    shown = fitted._repr_html_()
    assert "&lt;b&gt;3&lt;/b&gt;" in shown
    assert "<b>" not in shown
    for text in ("Interpreter of Sequential", "size of z_bar and v", "Same prediction as the image"):
        assert text in shown


def test_samples_are_pictures_and_depend_on_the_seed_alone(fitted, digits):
    first = fitted.sample(digits[:3], n=4, seed=1)
    assert first.shape == (3, 4, 3, 28, 28)
    assert first.min() >= 0
    assert first.max() <= 1
    torch.manual_seed(7)
    assert torch.equal(fitted.sample(digits[:3], n=4, seed=1), first)
    assert not torch.equal(fitted.sample(digits[:3], n=4, seed=2), first)
    # A picture does not depend on what else is in the batch.
    v = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(fitted.sample(digits[1:2], v=v[1:2]), first[1:2], atol=1e-5)


def test_the_same_invariances_can_be_used_at_every_z(fitted, digits):
    v = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    assert fitted.sample(digits[:3], v=v).shape == (3, 2, 3, 28, 28)
    with pytest.raises(ShapeError, match=r"v must have shape \(B, N, 8\)"):
        fitted.sample(digits[:3], v=torch.randn(2, 9))


def test_invariances_with_their_own_z_give_back_the_encoded_image(fitted, digits):
    mean, _ = fitted.pipeline_.encode(digits[:5])
    assert torch.allclose(fitted.reconstruct(digits[:5]), fitted.pipeline_.decode(mean), atol=1e-3)


def test_invariances_recombine_with_the_z_of_other_images(fitted, digits):
    mixed = fitted.reconstruct(digits[:5], z_of=digits[5:10])
    assert mixed.shape == (5, 3, 28, 28)
    assert not torch.allclose(mixed, fitted.reconstruct(digits[:5]), atol=1e-3)


def test_log_likelihood_is_the_change_of_variables_with_all_constants(fitted, digits):
    x = digits[:4]
    mean, std = fitted.pipeline_.encode(x)
    z_bar = (mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))).double()
    flow = copy.deepcopy(fitted.flow_).double().requires_grad_(False)
    context = flow.context(fitted.pipeline_.features(x).double())
    got = fitted.log_likelihood(x)
    normal = torch.distributions.Normal(torch.zeros(8).double(), 1.0)
    for k in range(4):
        f = lambda y, k=k: flow(y[None], context[k : k + 1])[0][0]  # noqa: E731
        jacobian = torch.autograd.functional.jacobian(f, z_bar[k])
        expected = normal.log_prob(f(z_bar[k])).sum() + torch.linalg.slogdet(jacobian)[1]
        assert float(got[k]) == pytest.approx(float(expected), abs=1e-3)


def test_the_model_is_untouched_by_everything(digits):
    model = network().train()
    model[1].eval()
    with untouched(model):
        it = interpreter(model, spec=SPEC).fit(digits)
        it.sample(digits[:2], n=2)
        it.invariances(digits[:2])
        it.log_likelihood(digits[:2])
        it.explained_by_invariances(digits[:8], samples=32)


def test_a_bare_model_gets_the_loaders_tensors_unchanged(digits):
    seen = []

    class Watching(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, x):
            seen.append(x)
            return self.net(x)

    normalised = (digits - 0.3) / 0.2
    it = interpreter(Watching(), "net.3", mean=(0.3,), std=(0.2,))
    it.fit(DataLoader(TensorDataset(normalised, torch.arange(160)), batch_size=50))
    rows = {tuple(row.flatten().tolist()) for row in normalised}
    # The first passes are on the user's tensors; pictures made by the decoder come later.
    assert tuple(seen[0][0].flatten().tolist()) in rows
    assert it.adapter_.spec.mean == (0.3,)
    assert torch.allclose(it.adapter_.to_images(normalised), digits, atol=1e-5)
    assert torch.allclose(it.adapter_.images_to_model(digits), normalised, atol=1e-5)


def test_a_known_normalisation_is_recognised_and_said(digits):
    notes = []

    class Notes(Reporter):
        def note(self, text):
            notes.append(text)

    interpreter().fit(digits * 2 - 1, progress=Notes())
    assert any("mean 0.5" in note or "[-1, 1]" in note for note in notes), notes


def test_an_unknown_normalisation_says_what_to_pass(digits):
    with pytest.raises(DataError, match=r"mean="):
        interpreter().fit(digits * 31 - 7)


def test_one_channel_dicts_and_other_sizes_work(digits):
    grey = digits.mean(1, keepdim=True)
    big = nn.functional.interpolate(grey, size=(40, 50))
    loader = DataLoader([{"image": x, "label": 3} for x in big], batch_size=16)
    it = interpreter(nn.Sequential(network(1)[:5], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), "0.3")
    it.fit(loader)
    assert it.adapter_.image_size == 32
    assert it.sample(big[:2], n=3).shape == (2, 3, 1, 32, 40)


def test_a_spec_without_a_size_feeds_pictures_at_the_size_of_the_images(digits):
    big = nn.functional.interpolate(digits, size=(37, 37))
    model = nn.Sequential(network()[:5], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    it = interpreter(model, "0.3", spec=ImageSpec(), image_size=32).fit(big)
    assert it.adapter_.images_to_model(it.sample(big[:2], n=1)[:, 0]).shape == (2, 3, 37, 37)
    assert it.metrics_["faithfulness"]["similarity"] is not None


def test_a_fitted_autoencoder_is_shared_and_not_trained_again(fitted, digits):
    before = {k: v.clone() for k, v in fitted.autoencoder_.state_dict().items()}
    other = interpreter(layer="0", spec=SPEC, autoencoder=fitted.autoencoder_).fit(digits)
    assert other.autoencoder_ is fitted.autoencoder_
    assert other.autoencoder_history_ is None
    assert all(torch.equal(v, before[k]) for k, v in fitted.autoencoder_.state_dict().items())


def test_a_users_own_encoder_and_decoder_serve(digits):
    own = GivenAutoencoder(
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 784, 6)),
        nn.Sequential(nn.Linear(6, 3 * 784), nn.Unflatten(1, (3, 28, 28)), nn.Sigmoid()),
        size=28,
    )
    it = interpreter(spec=SPEC, autoencoder=own).fit(digits)
    assert it.invariances(digits[:2]).shape == (2, 6)


def test_the_shape_of_a_new_autoencoder_can_be_given(digits):
    shape = AutoencoderConfig(size=32, latent_dim=5, width=4)
    it = interpreter(spec=SPEC, autoencoder=shape).fit(digits)
    assert it.sample(digits[:1], n=2).shape == (1, 2, 3, 32, 32)
    assert it.pipeline_.latent_dim == 5


def test_a_model_that_is_no_classifier_has_no_agreement_but_all_else(digits):
    it = interpreter(network()[:4], "3", spec=SPEC).fit(digits)
    assert it.metrics_["faithfulness"]["agreement"] is None
    assert it.metrics_["faithfulness"]["similarity"] is not None


def test_the_same_seed_gives_the_same_fit(digits, fitted):
    again = interpreter(spec=SPEC).fit(digits)
    assert torch.equal(again.sample(digits[:2], n=2), fitted.sample(digits[:2], n=2))
    other = interpreter(spec=SPEC, seed=1).fit(digits)
    assert not torch.equal(other.sample(digits[:2], n=2), fitted.sample(digits[:2], n=2))


def test_a_fit_interrupted_in_any_stage_resumes_to_the_same_bits(digits, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = interpreter(spec=SPEC).fit(digits, out=tmp_path / "whole")

        class Kill(Exception):
            pass

        class KillAt(Reporter):
            def __init__(self, stage, step):
                self.wanted, self.at, self.now = stage, step, ""

            def stage(self, name, total):
                self.now = name

            def advance(self, done, figures=None):
                if self.now == self.wanted and done >= self.at:
                    raise Kill

        for stage, step in (("reading images and features", 128), ("autoencoder", 7), ("t", 6)):
            with pytest.raises(Kill):
                interpreter(spec=SPEC).fit(digits, out=tmp_path / "run", resume=True, progress=KillAt(stage, step))
        resumed = interpreter(spec=SPEC).fit(digits, out=tmp_path / "run", resume=True)
        for name in ("autoencoder_", "flow_"):
            a, b = getattr(whole, name).state_dict(), getattr(resumed, name).state_dict()
            assert all(torch.equal(a[k], b[k]) for k in a)
        assert not (tmp_path / "run" / "cache").exists()
    finally:
        torch.set_num_threads(threads)


def test_nothing_can_be_asked_before_fit(digits):
    with pytest.raises(NotFittedError, match=r"call fit\(loader\) first"):
        interpreter().sample(digits)


def test_all_wrong_arguments_are_reported_together(digits):
    with pytest.raises(ConfigError, match=r"steps must be.*epochs must be.*not both.*draws.*resume needs out"):
        interpreter().fit(digits, steps=0, epochs=-1, draws=0, resume=True)


def test_a_wrong_layer_names_the_nearest():
    with pytest.raises(LayerNotFoundError, match="'3'"):
        Interpreter(network(), "33")


def test_epochs_become_steps(digits):
    it = interpreter(spec=SPEC).fit(digits, epochs=2, evaluate=False)
    assert it.history_.rows[-1]["step"] == round(2 * 144 / 32)


def test_what_is_going_to_happen_is_announced_first(digits):
    plans = []
    interpreter(spec=SPEC).fit(digits, announce=plans.append, evaluate=False)
    text = "\n".join(plans[0].lines)
    for part in ("8×7×7", "28 px", "8 steps of 32", "minutes", "memory"):
        assert part in text
    assert plans[0].seconds["t"] > 0


def test_metrics_say_what_bf16_would_change(fitted):
    found = fitted.metrics_["likelihood"]
    assert found["round_trip"] < 1e-3
    assert found["round_trip"] < found["bf16_round_trip"] < 0.1
    assert 0 < found["bf16_error"] < 0.05
    assert 0 < abs(found["bf16_held_out"] - found["held_out"]) < 0.1


def test_samples_can_be_drawn_in_bf16(fitted, digits):
    exact, low = (fitted.sample(digits[:3], n=4, seed=1, precision=p) for p in ("32", "bf16"))
    assert not torch.equal(exact, low)
    assert (exact - low).abs().mean() < 0.02
    assert torch.equal(fitted.sample(digits[:3], n=4, seed=1), exact)


def test_an_unknown_precision_is_refused_before_anything_is_done(fitted, digits):
    with pytest.raises(ConfigError, match="'fp16'"):
        Interpreter(network(), layer="0", precision="fp16")
    with pytest.raises(ConfigError, match="auto"):
        fitted.sample(digits[:2], precision="16")
