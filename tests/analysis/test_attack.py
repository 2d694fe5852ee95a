"""MSC 4.3: attacks against closed forms, and the view against the equation written out image by image."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from layer_parts import NORMALIZED, SIDE, classifier, linear_autoencoder, pictures, pipeline, two_layers
from torch import nn

from posthoc_inn import untouched
from posthoc_inn.analysis.adversarial import Attack, attack_images, log_odds_against, random_signs
from posthoc_inn.analysis.attack import attack_view
from posthoc_inn.analysis.invariance import explained_by_invariances
from posthoc_inn.errors import ConfigError, DataError, PluginError, ShapeError

EPSILON = 0.1


class Linear(nn.Module):
    """Scores W x (or their softmax): an attack on it has a closed form."""

    def __init__(self, classes=4, *, scale=1.0, softmax=False):
        super().__init__()
        self.body = nn.Flatten()
        self.head = nn.Linear(3 * SIDE * SIDE, classes)
        self.softmax = softmax
        g = torch.Generator().manual_seed(3)
        self.head.weight.data.copy_(torch.randn(self.head.weight.shape, generator=g) * scale)
        self.head.bias.data.zero_()

    def forward(self, x):
        scores = self.head(self.body(x))
        return scores.softmax(1) if self.softmax else scores


def linear_pipeline(**options):
    return pipeline("body", model=Linear(**options), autoencoder=linear_autoencoder())


def slow_fgsm(x, w, label, epsilon, sign):
    """One step along the sign of the gradient of -log softmax(W (x - 0.5) / 0.5)[label], in NumPy."""
    pixels = x.double().numpy().reshape(-1)
    scores = w @ ((pixels - 0.5) / 0.5)
    p = np.exp(scores - scores.max())
    p /= p.sum()
    p[label] = 0
    p[label] = -p.sum()
    return np.clip(pixels + sign * epsilon * np.sign(w.T @ p), 0, 1).reshape(x.shape)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("scale", [0.1, 1e-9])
def test_fgsm_is_one_signed_step_of_the_gradient_clipped_to_pixels(targeted, scale):
    parts = linear_pipeline(scale=scale)
    x = torch.rand(70, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(70) % 4
    found = attack_images(parts, x, labels, Attack.of("fgsm", EPSILON, targeted=targeted))
    w = parts.extractor.model.head.weight.detach().double().numpy()
    for k in range(70):
        expected = slow_fgsm(x[k], w, int(labels[k]), EPSILON, -1 if targeted else 1)
        assert np.abs(found[k].numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("softmax", [False, True])
def test_images_that_the_model_is_sure_of_are_attacked_too(softmax):
    # The label's probability differs from 1 by less than float32, and in part float64, can tell: -log p has no slope.
    low, high = 1e-30, 1e-9
    parts = linear_pipeline(scale=6.0, softmax=softmax)
    x = pictures(1000)
    scores = parts.extractor.model.head((x - 0.5).flatten(1) / 0.5).detach().double()
    others = scores.softmax(1).sort(1).values[:, :-1].sum(1)
    sure = ((others > low) & (others < high)).nonzero().flatten()
    assert len(sure) > 20
    label = scores.argmax(1)[sure]
    found = attack_images(parts, x[sure], label, Attack.of("fgsm", EPSILON))
    w = parts.extractor.model.head.weight.detach().double().numpy()
    for k, number in enumerate(label.tolist()):
        expected = slow_fgsm(x[sure[k]], w, number, EPSILON, 1)
        assert np.mean(np.abs(found[k].numpy() - expected) < 1e-6) > 0.98


@pytest.mark.parametrize("scale", [1e-9, 0.1, 6.0])
def test_pgd_ends_in_the_corner_of_the_ball_for_a_linear_model_of_two_classes(scale):
    # The sign of the gradient is the same everywhere: from any start the corner is reached.
    parts = linear_pipeline(classes=2, scale=scale)
    x, labels = pictures(20), torch.zeros(20, dtype=torch.int64)
    w = parts.extractor.model.head.weight.detach()
    away = torch.sign(w[1] - w[0]).reshape(3, SIDE, SIDE)
    found = attack_images(parts, x, labels, Attack.of("pgd", EPSILON, steps=8, step_size=0.03))
    assert torch.allclose(found, x + EPSILON * away, atol=1e-6)


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_attacked_images_stay_in_the_ball_and_among_pixels(method):
    parts = pipeline()
    x = torch.rand(30, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    found = attack_images(parts, x, torch.zeros(30, dtype=torch.int64), Attack.of(method, 0.3))
    assert float((found - x).abs().max()) <= 0.3 + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert not found.requires_grad


def test_pgd_is_stronger_than_fgsm_and_both_than_chance():
    parts = {"features.2": pipeline()}
    x = pictures(120)
    fgsm = attack_view(parts, x, method="fgsm", epsilon=0.05, samples=40)
    pgd = attack_view(parts, x, method="pgd", epsilon=0.05, samples=40)
    assert pgd.changed >= fgsm.changed > fgsm.changed_by_noise
    assert pgd.changed_by_noise == fgsm.changed_by_noise


def test_pgd_starts_by_chance_from_its_seed_alone():
    parts, x, labels = pipeline(), pictures(5), torch.arange(5) % 4
    runs = []
    for globally, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(globally)
        before = torch.get_rng_state()
        # Steps too small to forget the start.
        runs.append(attack_images(parts, x, labels, Attack.of("pgd", EPSILON, steps=1, step_size=0.001, seed=seed)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(runs[0], runs[1])
    assert float((runs[0] - runs[2]).abs().max()) > 0.05


def test_log_odds_have_the_gradient_of_the_cross_entropy_up_to_a_positive_factor():
    scores = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(6) % 5
    (found,) = torch.autograd.grad(log_odds_against(scores, labels).sum(), scores)
    (entropy,) = torch.autograd.grad(nn.functional.cross_entropy(scores, labels, reduction="sum"), scores)
    p = scores.softmax(1).gather(1, labels[:, None])
    assert torch.allclose(found * (1 - p), entropy)
    assert torch.allclose(log_odds_against(scores, labels), ((1 - p) / p).log()[:, 0])


def slow_view(parts, x, attacked, k):
    """MSC 4.3 for image `k` alone: v from the clean image, z from the attacked one, decoded."""
    with torch.no_grad():
        z, z_star = (parts.extractor.features((y[k : k + 1] - 0.5) / 0.5) for y in (x, attacked))
        v, _ = parts.flow(parts.autoencoder.encode(x[k : k + 1])[0], parts.flow.context(z))
        latent = parts.flow.inverse(v, parts.flow.context(z_star))
        return latent, parts.autoencoder.decode(latent)


def test_the_view_is_the_equation_written_out_image_by_image():
    layers, x = two_layers(), pictures(9)
    view = attack_view(layers, x, epsilon=0.012, samples=40)
    assert [layer.layer for layer in view.layers] == list(layers)
    assert 0.2 < view.changed < 0.8
    for layer, parts in zip(view.layers, layers.values(), strict=True):
        moved, squares = [], []
        for k in range(9):
            latent, picture = slow_view(parts, x, view.attacked, k)
            assert torch.allclose(layer.decoded[k], picture[0], atol=1e-5)
            with torch.no_grad():
                own = parts.autoencoder.encode(x[k : k + 1])[0]
                moved.append(float((latent - own).square().mean()))
                squares.append(float((picture - parts.autoencoder.decode(own)).square().mean()))
                scores = parts.extractor.predict((picture - 0.5) / 0.5)[0]
            assert layer.predictions[k] == int(scores.argmax())
            assert layer.probabilities[k] == pytest.approx(float(scores.softmax(0).max()), abs=1e-4)
        assert layer.moved_latent == pytest.approx(np.mean(moved), rel=1e-3)
        assert layer.moved_latent_error == pytest.approx(np.std(moved, ddof=1) / 3, rel=1e-3)
        assert layer.moved_image == pytest.approx(np.mean(squares), rel=1e-3)
        assert layer.round_trip < 1e-4
        flips = [k for k in range(9) if view.attacked_predictions[k] != view.clean_predictions[k]]
        assert layer.as_attacked == np.mean([layer.predictions[k] == view.attacked_predictions[k] for k in flips])
        assert layer.as_clean == np.mean([layer.predictions[k] == view.clean_predictions[k] for k in flips])
    assert torch.allclose(view.reconstruction, parts.autoencoder.decode(parts.autoencoder.encode(x)[0]).detach())
    assert view.changed == np.mean(
        [a != b for a, b in zip(view.clean_predictions, view.attacked_predictions, strict=True)]
    )


def test_the_distances_to_compare_with_are_those_of_different_images():
    view = attack_view({"features.2": pipeline()}, pictures(7), epsilon=EPSILON, samples=40)
    rows = view.reconstruction.double().flatten(1).numpy()
    pairs = [np.mean((rows[i] - rows[j]) ** 2) for i in range(7) for j in range(7) if i != j]
    assert view.between_images == pytest.approx(np.mean(pairs), rel=1e-6)


def test_explained_shares_are_equation_19_of_the_images_or_of_a_given_z():
    layers, x = two_layers(), pictures(12)
    parts = layers["features.2"]
    view = attack_view(layers, x, epsilon=EPSILON, samples=200, seed=4)
    assert view.layers[1].explained == explained_by_invariances(parts, parts.features(x), samples=200, seed=4)
    other = {name: p.features(pictures(30, seed=5)) for name, p in layers.items()}
    view = attack_view(layers, x, epsilon=EPSILON, samples=200, seed=4, z=other)
    assert view.layers[1].explained == explained_by_invariances(parts, other["features.2"], samples=200, seed=4)


def test_noise_of_the_same_size_is_seen_through_the_same_v():
    parts, x = pipeline(), pictures(6)
    view = attack_view({"features.2": parts}, x, epsilon=EPSILON, samples=40, seed=2)
    noisy = (x + EPSILON * random_signs(x, 2)).clamp(0, 1)
    moved = []
    for k in range(6):
        latent, _ = slow_view(parts, x, noisy, k)
        with torch.no_grad():
            moved.append(float((latent - parts.autoencoder.encode(x[k : k + 1])[0]).square().mean()))
    assert view.layers[0].moved_latent_by_noise == pytest.approx(np.mean(moved), rel=1e-3)
    assert view.layers[0].moved_image_by_noise > 0
    # The attack is looked for; noise is not.
    assert view.layers[0].moved_latent > view.layers[0].moved_latent_by_noise


def test_an_attack_cannot_reach_a_layer_whose_t_ignores_z():
    view = attack_view({"features.2": pipeline(strength=0.0)}, pictures(6), epsilon=EPSILON, samples=40)
    assert view.changed > 0
    assert view.layers[0].moved_latent < 1e-10
    assert torch.allclose(view.layers[0].decoded, view.reconstruction, atol=1e-5)
    assert view.layers[0].explained.value > 0.999


def test_labels_and_targets_decide_what_counts_as_success():
    layers, x = {"features.2": pipeline()}, pictures(60)
    own = torch.tensor(attack_view(layers, x, epsilon=EPSILON, samples=40).clean_predictions)
    labels = torch.where(torch.arange(60) % 2 == 0, own, (own + 1) % 4)
    view = attack_view(layers, x, labels=labels, epsilon=0.01, samples=40)
    found = torch.tensor(view.attacked_predictions)
    right = own == labels
    assert view.success == pytest.approx(float((found != labels)[right].double().mean()))
    assert 0 < view.success < 1
    view = attack_view(layers, x, target=2, method="pgd", epsilon=0.02, samples=40)
    assert 0 < view.success < 1
    found = torch.tensor(view.attacked_predictions)
    assert view.attack.targeted
    assert view.success == pytest.approx(float((found == 2)[own != 2].double().mean()))
    assert view.success > float((own == 2).double().mean())


def test_a_model_fed_normalised_tensors_is_attacked_in_pixels():
    # The same network: once behind the spec that normalises, once fed what the user normalised.
    model, autoencoder, x = classifier(), linear_autoencoder(), pictures(8)
    normalised = pipeline(model=model, autoencoder=autoencoder, normalization=NORMALIZED)
    view = attack_view({"a": normalised}, NORMALIZED.apply(x), epsilon=EPSILON, samples=40)
    assert torch.allclose(view.clean, x, atol=1e-6)
    assert float((view.attacked - x).abs().max()) == pytest.approx(EPSILON, abs=1e-5)
    with torch.no_grad():
        model.eval()
        expected = model(NORMALIZED.apply(view.attacked)).argmax(1)
    assert view.attacked_predictions == tuple(expected.tolist())


def test_the_model_is_left_as_it_was_whatever_mode_it_is_in():
    model = classifier()
    model.features.eval()
    layers = two_layers(model=model)
    model.head.bias.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    with untouched(model):
        for method in ("fgsm", "pgd"):
            attack_view(layers, pictures(4), method=method, epsilon=EPSILON, samples=40)
    with untouched(model), pytest.raises(ConfigError, match="method must be"):
        attack_view(layers, pictures(4), method="cw", epsilon=EPSILON)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(mode):
    layers = {"features.2": pipeline()}
    expected = attack_view(layers, pictures(4), epsilon=EPSILON, samples=40).attacked
    with mode():
        found = attack_view(layers, pictures(4), epsilon=EPSILON, samples=40).attacked
    assert torch.equal(found, expected)


def test_copies_of_one_model_and_autoencoder_can_be_compared():
    layers = {"features.0": pipeline("features.0"), "features.2": pipeline("features.2")}
    assert len(attack_view(layers, pictures(4), epsilon=EPSILON, samples=40).layers) == 2


def test_results_are_plain_data_and_a_figure_for_one_image_too():
    view = attack_view(two_layers(), pictures(3), epsilon=EPSILON, samples=40, class_names=["cat", "dog", "owl", "fox"])
    plain = json.loads(json.dumps(view.to_dict()))
    assert plain["layers"][0]["layer"] == "features.0"
    assert "decoded" not in plain["layers"][0]
    assert "attacked" not in plain
    assert "features.2" in view.caption
    texts = [t.get_text() for t in view.figure().axes[0].texts]
    assert "features.2" in texts
    assert any(text.startswith(("cat", "dog", "owl", "fox")) for text in texts)
    # Four pictures of each image, and one a layer.
    assert len(view.figure(rows=2).axes[0].images) == 2 * 6
    one = attack_view(two_layers(), pictures(1), epsilon=EPSILON, samples=40)
    assert one.layers[0].explained is None
    assert json.loads(json.dumps(one.to_dict()))["between_images"] is None
    assert "nan" not in one.caption
    assert len(one.figure().axes[0].images) == 6


def test_random_signs_are_as_large_as_an_attack():
    signs = random_signs(torch.zeros(50, 3, 8, 8), 0)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, r"epsilon must be in \(0, 1\]"),
        ({"epsilon": 8}, r"8 of 255 levels are 8 / 255"),
        ({"epsilon": float("nan")}, "epsilon must be"),
        ({"method": "cw"}, "method must be 'fgsm' or 'pgd', got 'cw'"),
        ({"steps": 5}, "steps and step_size are for pgd"),
        ({"method": "pgd", "steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"method": "pgd", "step_size": -0.1}, "step_size must be in"),
        ({"labels": torch.zeros(4, dtype=torch.int64), "target": 1}, "not both"),
        ({"target": 4}, "target must be classes from 0 to 3, got 4 to 4"),
        ({"labels": torch.tensor([-1, 0, 0, 0])}, "labels must be classes from 0 to 3"),
        ({"z": {}}, "no representations for 'features.2'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        attack_view({"features.2": pipeline()}, pictures(4), **({"epsilon": EPSILON} | settings))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"one for each of 4 images, got \(3,\)"),
        (torch.zeros(4), "whole numbers"),
        (torch.zeros(4, 2, dtype=torch.int64), "one for each of 4 images"),
    ],
)
def test_labels_of_another_shape_are_refused(labels, message):
    with pytest.raises(ShapeError, match=message):
        attack_view({"features.2": pipeline()}, pictures(4), labels=labels)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (pictures(2) * 3 - 1, DataError, r"must lie in \[0, 1\], got values from"),
        (pictures(2) + float("nan"), DataError, r"must lie in \[0, 1\]"),
        (pictures(2)[:0], DataError, "no image"),
        (pictures(2)[0], ShapeError, r"Add the batch: images\[None\]"),
        ((pictures(2) * 255).to(torch.uint8), ShapeError, "must be floating-point"),
        (pictures(2).permute(0, 2, 3, 1), ShapeError, "channels first"),
    ],
)
def test_images_that_are_none_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        attack_view({"features.2": pipeline()}, images)


def test_images_that_were_not_normalised_are_refused_where_they_should_be():
    with pytest.raises(DataError, match=r"after undoing mean \(0.4, 0.5, 0.6\)"):
        attack_view({"a": pipeline(normalization=NORMALIZED)}, NORMALIZED.apply(pictures(2)) * 4)


def test_layers_that_cannot_be_compared_are_refused():
    model, autoencoder = classifier(), linear_autoencoder()
    first = pipeline("features.0", model=model, autoencoder=autoencoder)
    others = {
        "explain different models": pipeline(model=classifier(1), autoencoder=autoencoder),
        "have different autoencoders": pipeline(model=model, autoencoder=linear_autoencoder(1)),
        "take images differently": pipeline(model=model, autoencoder=autoencoder, normalization=NORMALIZED),
    }
    for message, other in others.items():
        with pytest.raises(ConfigError, match=f"'b' and 'a' {message}"):
            attack_view({"a": first, "b": other}, pictures(2))
    with pytest.raises(ConfigError, match="at least one layer's name"):
        attack_view({}, pictures(2))
    with pytest.raises(ConfigError, match="got Pipeline"):
        attack_view(first, pictures(2))
    with pytest.raises(ConfigError, match=r"interpreter.pipeline.*got str"):
        attack_view({"a": "features.0"}, pictures(2))


def test_a_model_without_class_scores_is_refused():
    class Map(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.body(x)

    with pytest.raises(ConfigError, match=r"one row of class scores per image.*got|gives \(2, 4, 6, 6\)"):
        attack_view({"body": pipeline("body", model=Map())}, pictures(2))


def test_without_captum_it_says_what_to_install(monkeypatch):
    parts = {"features.2": pipeline()}
    monkeypatch.setitem(sys.modules, "captum.robust", None)
    with pytest.raises(PluginError, match=r"pip install posthoc-inn\[attack\]"):
        attack_view(parts, pictures(2))
