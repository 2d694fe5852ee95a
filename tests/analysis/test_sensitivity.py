"""Distances after edits, through fitted parts whose every map is known, and the baselines' sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from concept_parts import digit_net, make_concepts, make_pipeline, random_rows

from posthoc_inn.analysis.editing import swap
from posthoc_inn.analysis.sensitivity import SUBSPACES, concept_sensitivity, random_subspace_swap, step_of_size
from posthoc_inn.errors import ConfigError, ShapeError, UnknownNameError

D = 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def embed(net, z_bar, layers):
    """The model's embedding of the decoded latents, pixel by pixel, in NumPy."""
    pixels = np.full((len(z_bar), 64), 0.5)
    pixels[:, :D] = 1 / (1 + np.exp(-z_bar.double().numpy()))
    out = pixels @ net[1].weight.detach().double().numpy().T + net[1].bias.detach().double().numpy()
    if layers == "output":
        out = np.tanh(out) @ net[3].weight.detach().double().numpy().T + net[3].bias.detach().double().numpy()
    return out


@pytest.mark.parametrize("at", ["layer", "output"])
def test_distances_of_a_swap_equal_a_rewrite_in_numpy(at):
    net = digit_net()
    pipeline, e = make_pipeline(net, "1"), make_concepts()
    x = random_rows(2, D, seed=1)  # of two images each is the other's source
    result = concept_sensitivity(pipeline, e, x, at=at)
    before = embed(net, x, at)
    for concept in result.concepts:
        edited = swap(e, x, x.flip(0), concept.name)
        after = embed(net, edited, at)
        away = np.linalg.norm(after - before, axis=1)
        cosine = 1 - (after * before).sum(1) / np.linalg.norm(after, axis=1) / np.linalg.norm(before, axis=1)
        assert concept.edit.euclidean == pytest.approx(away.mean(), rel=1e-4)
        assert concept.edit.euclidean_error == pytest.approx(away.std(ddof=1) / np.sqrt(2), rel=1e-3, abs=1e-6)
        assert concept.edit.cosine == pytest.approx(cosine.mean(), rel=1e-3, abs=1e-6)
        assert concept.moved == pytest.approx(float((edited - x).norm(dim=1).mean()), rel=1e-5)
        assert concept.ratio == pytest.approx(concept.edit.euclidean / concept.same_width.euclidean)
    between = np.linalg.norm(before[0] - before[1])
    assert result.between.euclidean == pytest.approx(between, rel=1e-4)
    assert [c.width for c in result.concepts] == [3, 2, 1]


def test_a_concept_that_the_model_cannot_see_moves_nothing_though_random_edits_do():
    e = make_concepts(curved=False)  # each factor is some of the values of z_bar, scaled
    probe = torch.zeros(1, D)
    base = e.inverse(probe)
    owner = [int((e.inverse(probe + 5 * torch.eye(D)[k]) - base).abs().argmax()) for k in range(D)]
    net = digit_net()
    unseen = owner[5]  # the pixel that "color" paints
    net[1].weight.data[:, unseen] = 0
    result = concept_sensitivity(make_pipeline(net, "1"), e, random_rows(60, D, seed=1), seed=2)
    assert result["color"].edit.euclidean < 1e-4
    assert result["color"].moved > 0.5
    assert result["color"].ratio < 1e-3
    assert result["color"].same_width.euclidean > 0.1
    assert result["digit"].ratio > 0.5


def test_resampling_draws_the_factor_from_a_standard_normal():
    net = digit_net()
    pipeline, e = make_pipeline(net, "1"), make_concepts()
    x = random_rows(400, D, seed=1)
    result = concept_sensitivity(pipeline, e, x, "digit", edit="resample", seed=5)
    draws = torch.randn(400, D, generator=seeded(5))
    factors = e.joined(x)
    factors[:, 3:5] = draws[:, 3:5]
    away = np.linalg.norm(embed(net, e.inverse(factors), "layer") - embed(net, x, "layer"), axis=1)
    assert result["digit"].edit.euclidean == pytest.approx(away.mean(), rel=1e-4)
    assert (result.edit, result.images) == ("resample", 400)


def test_swaps_take_images_that_differ_in_the_label():
    pipeline, e = make_pipeline(digit_net(), "1"), make_concepts()
    # Two images alike but for the label, many times: a source of the same label would change nothing.
    pair = random_rows(2, D, seed=1)
    labels = torch.arange(20) % 2
    x = pair[labels]
    apart = concept_sensitivity(pipeline, e, pair, "digit")["digit"].edit
    found = concept_sensitivity(pipeline, e, x, "digit", labels={"digit": labels})["digit"].edit
    assert found.euclidean == pytest.approx(apart.euclidean, rel=1e-5)
    assert concept_sensitivity(pipeline, e, x, "digit")["digit"].edit.euclidean < 0.9 * apart.euclidean


# ---- baselines


def test_a_random_subspace_of_full_width_is_the_whole_swap():
    a, b = random_rows(20, D, seed=1), random_rows(20, D, seed=2)
    assert torch.allclose(random_subspace_swap(a, b, D, seeded()), b, atol=1e-5)


def test_a_random_subspace_swap_projects_the_difference():
    a, b = random_rows(2 * SUBSPACES, D, seed=1).double(), random_rows(2 * SUBSPACES, D, seed=2).double()
    found = random_subspace_swap(a, b, 2, seeded())
    g = seeded()
    for turn in range(SUBSPACES):
        drawn = torch.randn(D, 2, generator=g, dtype=torch.float64).numpy()
        onto = drawn @ np.linalg.inv(drawn.T @ drawn) @ drawn.T
        for row in (turn, turn + SUBSPACES):
            expected = a[row].numpy() + onto @ (b[row] - a[row]).numpy()
            np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-9)
    share = ((found - a).norm(dim=1) ** 2 / (b - a).norm(dim=1) ** 2).mean()
    assert float(share) == pytest.approx(2 / D, abs=0.12)


def test_a_step_of_given_size_lies_at_that_distance_on_its_ray_in_e():
    e = make_concepts(dtype=torch.float64)
    x = random_rows(30, D, seed=1, dtype=torch.float64)
    factors, size = e.joined(x), torch.linspace(0.01, 6, 30, dtype=torch.float64)
    step = torch.randn(30, D, generator=seeded(), dtype=torch.float64)
    found = step_of_size(e, x, factors, step, size)
    assert torch.allclose((found - x).norm(dim=1), size, rtol=1e-3)
    along = e.joined(found) - factors
    amount = (along * step).sum(1) / step.square().sum(1)
    assert torch.allclose(along, amount[:, None] * step, atol=1e-6)
    assert bool((amount > 0).all())


def test_results_depend_on_the_seed_alone():
    pipeline, e = make_pipeline(digit_net(), "1"), make_concepts()
    x = random_rows(30, D, seed=1)
    torch.manual_seed(1)
    first = concept_sensitivity(pipeline, e, x, seed=1)
    torch.manual_seed(2)
    assert concept_sensitivity(pipeline, e, x, seed=1) == first
    assert concept_sensitivity(pipeline, e, x, seed=2) != first


def test_what_cannot_be_measured_is_refused():
    pipeline, e = make_pipeline(digit_net(), "1"), make_concepts()
    x = random_rows(4, D, seed=1)
    with pytest.raises(ConfigError, match=r"must work on z_bar.*edit must be.*at must be"):
        concept_sensitivity(pipeline, make_concepts(space="z"), x, edit="blend", at="logits")
    with pytest.raises(ShapeError, match="at least 2 images"):
        concept_sensitivity(pipeline, e, x[:1])
    with pytest.raises(UnknownNameError, match="no concept 'shape'"):
        concept_sensitivity(pipeline, e, x, labels={"shape": torch.arange(4)})
    with pytest.raises(ShapeError, match=r"labels of 'digit' must be whole numbers \(4,\)"):
        concept_sensitivity(pipeline, e, x, labels={"digit": torch.arange(3)})
    with pytest.raises(ConfigError, match="All 4 images have the label 1 of 'digit'"):
        concept_sensitivity(pipeline, e, x, labels={"digit": torch.ones(4, dtype=torch.long)})


def test_the_figure_sorts_the_bars_and_marks_the_baselines():
    result = concept_sensitivity(make_pipeline(digit_net(), "1"), make_concepts(), random_rows(30, D, seed=1))
    figure = result.figure()
    left = figure.axes[0]
    lengths = [bar.get_width() for bar in left.patches]
    assert lengths == sorted(lengths)
    longest = max(result.concepts, key=lambda c: c.edit.euclidean)
    assert [t.get_text() for t in left.get_yticklabels()][-1] == f"{longest.name} ({longest.width})"
    assert len(figure.legends[0].get_texts()) == 4
    assert result.caption.index(f"{longest.name} {longest.edit.euclidean:.3g}") > 0
    assert set(result.to_dict()["concepts"][0]) == {
        "name",
        "width",
        "moved",
        "edit",
        "same_width",
        "same_norm",
        "ratio",
    }
