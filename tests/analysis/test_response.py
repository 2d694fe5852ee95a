"""The network response against closed forms of the process and a slow rewrite of the statistics."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from concept_parts import digit_net, make_concepts, make_pipeline, random_rows
from torch import nn

from posthoc_inn.analysis.response import ornstein_uhlenbeck, response
from posthoc_inn.analysis.response_embedding import nearest_labels, response_embedding
from posthoc_inn.errors import ConfigError, PluginError, ShapeError, UnknownNameError
from posthoc_inn.images import apply_spec
from posthoc_inn.seeds import derived

D = 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- the process


def test_the_walk_is_the_exact_recursion_with_its_noise():
    start = torch.randn(3, 2, dtype=torch.float64, generator=seeded(1))
    found = ornstein_uhlenbeck(start, 4, 0.8, seeded(7)).numpy()
    source = seeded(7)
    for row in range(3):
        noise = torch.randn(4, 2, generator=source).double().numpy()
        x = start.numpy()[row]
        np.testing.assert_array_equal(found[row, 0], x)
        for step in range(4):
            x = 0.8 * x + np.sqrt(1 - 0.64) * noise[step]
            np.testing.assert_allclose(found[row, step + 1], x, atol=1e-12)


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9])
def test_from_a_fixed_start_mean_and_variance_relax_as_the_process_does(a):
    walk = ornstein_uhlenbeck(torch.full((40_000, 1), 3.0), 6, a, seeded())[..., 0]
    for t in range(7):
        assert float(walk[:, t].mean()) == pytest.approx(3 * a**t if t else 3.0, abs=0.03)
        assert float(walk[:, t].var()) == pytest.approx(1 - a ** (2 * t) if t else 0.0, abs=0.03)


def test_the_stationary_law_is_kept_and_correlations_fall_as_powers():
    walk = ornstein_uhlenbeck(torch.randn(40_000, 1, generator=seeded(3)), 5, 0.7, seeded(4))[..., 0]
    found = torch.cov(walk.T).numpy()
    expected = 0.7 ** np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    np.testing.assert_allclose(found, expected, atol=0.03)


@pytest.mark.parametrize(("steps", "a"), [(0, 0.5), (3, 1.0), (3, -0.1)])
def test_processes_that_make_no_sense_are_refused(steps, a):
    with pytest.raises(ConfigError, match=r"ornstein_uhlenbeck: (steps|correlation) must be"):
        ornstein_uhlenbeck(torch.zeros(1, 1), steps, a, seeded())


# ---- the response, given a head


@pytest.fixture
def e():
    return make_concepts(dtype=torch.float64)


@pytest.fixture
def x():
    return random_rows(7, D, seed=1, dtype=torch.float64)


def curved_head(rows):
    weight = torch.randn(D, 4, dtype=torch.float64, generator=seeded(2))
    return 2 * (rows.flatten(1).double() @ weight).tanh()


def slow_response(e, x, head, number, steps, a, seed):
    """All statistics of one factor, image by image and step by step."""
    part = e.part(number)
    joined = e.joined(x)
    walk = ornstein_uhlenbeck(joined[:, part], steps, a, seeded(derived(seed, "walk", number)))
    spreads, changed, classes, moved = [], [], [], []
    for i in range(len(x)):
        start = head(x[i : i + 1]).numpy()[0]
        logs, seen, away = [], [], []
        for step in range(1, steps + 1):
            factors = joined[i].clone()
            factors[part] = walk[i, step]
            point = e.inverse(factors[None])
            scores = head(point).numpy()[0]
            logs.append(scores - np.log(np.sum(np.exp(scores))))
            seen.append(int(np.argmax(scores)))
            away.append(float((point - x[i]).norm()))
        spreads.append(np.std(logs, axis=0, ddof=1))
        changed.append(np.mean([k != int(np.argmax(start)) for k in seen]))
        classes.append(len({*seen, int(np.argmax(start))}))
        moved.append(np.mean(away))
    between = np.mean([float((x[i] - x[i - 1]).norm()) for i in range(len(x))])
    return np.array(spreads), np.array(changed), np.mean(classes), np.mean(moved) / between


def test_statistics_equal_a_slow_rewrite(e, x):
    result = response(curved_head, e, x, steps=9, correlation=0.6, seed=4)
    assert [f.name for f in result.factors] == ["residual", "digit", "color"]
    spread = {}
    for number, factor in enumerate(result.factors):
        spreads, changed, classes, moved = slow_response(e, x, curved_head, number, 9, 0.6, 4)
        assert factor.spread == pytest.approx(spreads.mean(), rel=1e-7)
        assert factor.spread_error == pytest.approx(spreads.mean(1).std(ddof=1) / np.sqrt(7), rel=1e-7)
        np.testing.assert_allclose(factor.spread_per_class, spreads.mean(0), rtol=1e-7)
        assert factor.changed == pytest.approx(changed.mean(), abs=1e-12)
        assert factor.changed_error == pytest.approx(changed.std(ddof=1) / np.sqrt(7), abs=1e-12)
        assert factor.classes == pytest.approx(classes)
        assert factor.moved == pytest.approx(moved, rel=1e-7)
        spread[factor.name] = factor.spread
    assert any(f.changed > 0 for f in result.factors)
    assert result.ratio["digit"]["color"] == pytest.approx(spread["digit"] / spread["color"])
    low, high = result.ratio_interval["digit"]["color"]
    assert low <= result.ratio["digit"]["color"] <= high


@pytest.mark.parametrize("end", [torch.softmax, torch.log_softmax])
def test_a_model_that_ends_in_a_softmax_responds_as_it_does_before_it(e, x, end):
    before = response(curved_head, e, x, steps=9, seed=4)
    after = response(lambda rows: end(curved_head(rows), 1), e, x, steps=9, seed=4)
    for a, b in zip(after.factors, before.factors, strict=True):
        assert a.spread == pytest.approx(b.spread, rel=1e-6)
        assert (a.changed, a.classes) == (b.changed, b.classes)


def test_the_size_of_chunks_changes_nothing(e, x, monkeypatch):
    whole = response(curved_head, e, x, steps=9, seed=4)
    module = sys.modules["posthoc_inn.analysis.response"]  # the package has the function under this name
    monkeypatch.setattr(module, "ROWS", 20)
    monkeypatch.setattr(module, "MODEL_ROWS", 3)
    small = response(curved_head, e, x, steps=9, seed=4)
    for a, b in zip(small.factors, whole.factors, strict=True):
        assert a.spread == pytest.approx(b.spread, rel=1e-9)
        assert (a.changed, a.classes) == (b.changed, b.classes)
    assert torch.allclose(small.changes, whole.changes, atol=1e-5)
    assert torch.equal(small.counts, whole.counts)


def test_a_linear_margin_has_its_known_spread_and_share_of_changes(e):
    """Scores (c, 0) with c = 30 + w·e: log p of the second class is -c, and its deviation |w| over a factor."""
    w = torch.tensor([0.0, 0.5, 0.0, 3.0, 4.0, 0.0], dtype=torch.float64)
    x = random_rows(20, D, seed=1, dtype=torch.float64)

    def head(rows):
        c = 60 + e.joined(rows) @ w
        return torch.stack([c, torch.zeros_like(c)], 1)

    result = response(head, e, x, steps=600, correlation=0.0)
    assert result["digit"].spread_per_class[1] == pytest.approx(5, rel=0.02)
    assert result["residual"].spread_per_class[1] == pytest.approx(0.5, rel=0.02)
    assert result["color"].spread < 1e-9
    assert result["digit"].changed == 0
    assert result.ratio["digit"]["residual"] == pytest.approx(10, rel=0.03)

    def threshold(rows):
        c = e.joined(rows) @ w
        return torch.stack([c, torch.zeros_like(c)], 1)

    start = e.joined(x) @ w
    rest = (e.joined(x)[:, [1]] @ w[[1]]).numpy()  # what stays when the digit walks
    below = np.array([0.5 * math.erfc(r / 5 / math.sqrt(2)) for r in rest])
    expected = np.where(start.numpy() > 0, below, 1 - below).mean()
    found = response(threshold, e, x, "digit", steps=600, correlation=0.0)["digit"]
    assert found.changed == pytest.approx(expected, abs=0.02)
    assert found.classes == 2


def test_results_depend_on_the_seed_alone_and_each_factor_has_its_own_stream(e, x):
    torch.manual_seed(1)
    first = response(curved_head, e, x, steps=5, seed=3)
    torch.manual_seed(2)
    assert response(curved_head, e, x, steps=5, seed=3).to_dict() == first.to_dict()
    assert response(curved_head, e, x, "color", steps=5, seed=3)["color"] == first["color"]
    assert response(curved_head, e, x, steps=5, seed=4)["color"] != first["color"]


def test_one_image_has_no_standard_error_and_the_plain_data_say_so(e, x):
    result = response(curved_head, e, x, images=1, steps=5).to_dict()
    assert result["images"] == 1
    assert result["factors"][0]["spread_error"] is None
    assert "changes" not in result


def test_what_cannot_be_walked_is_refused(e, x):
    with pytest.raises(ShapeError, match="class scores"):
        response(lambda rows: rows[:, 0], e, x, steps=2)
    with pytest.raises(UnknownNameError, match="no concept 'shape'"):
        response(curved_head, e, x, ["shape"], steps=2)
    with pytest.raises(ConfigError, match="at least one image"):
        response(curved_head, e, x[:0])
    with pytest.raises(ConfigError, match="at least one factor"):
        response(curved_head, e, x, [])
    with pytest.raises(ConfigError, match="4 classes, got 2 class_names"):
        response(curved_head, e, x, steps=2, class_names=("a", "b"))
    with pytest.raises(KeyError, match="there are digit"):
        response(curved_head, e, x, "digit", steps=2)["shape"]


# ---- through the fitted parts


@pytest.fixture
def images():
    return torch.rand(5, 1, 8, 8, generator=seeded(6))


def test_over_a_layers_z_the_walk_goes_through_the_rest_of_the_model(images):
    net = digit_net(width=D)
    pipeline = make_pipeline(net, "1")
    e = make_concepts(space="z", rows=net[1](torch.rand(300, 64, generator=seeded(2))).detach())
    found = response(pipeline, e, images, steps=6)
    given = response(lambda z: net[3](net[2](z)).detach(), e, net[1](images.flatten(1)).detach(), steps=6)
    for a, b in zip(found.factors, given.factors, strict=True):
        assert a.spread == pytest.approx(b.spread, rel=1e-4)
        assert a.changed == pytest.approx(b.changed, abs=1e-9)
    assert (found.space, found.is_cut, found.via) == ("z", True, "the model resumed from '1'")
    assert given.is_cut is None
    assert "around this layer" not in found.caption


class Around(nn.Module):
    """Logits of a layer plus those of the image itself: the layer is no cut."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(64, D)
        self.head = nn.Linear(D, 3)
        self.skip = nn.Linear(64, 3)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(self.inner(x)) + self.skip(x)


def test_a_layer_that_is_no_cut_is_said_to_be_none_and_keeps_each_images_own_bypass(images):
    net = Around().eval()
    pipeline = make_pipeline(net, "inner")
    e = make_concepts(space="z", rows=net.inner(torch.rand(300, 64, generator=seeded(2))).detach())
    found = response(pipeline, e, images[:1], steps=6)
    skip = net.skip(images[:1].flatten(1)).detach()
    given = response(lambda z: net.head(z).detach() + skip, e, net.inner(images[:1].flatten(1)).detach(), steps=6)
    assert found.is_cut is False
    assert "around this layer" in found.caption
    assert found["digit"].spread == pytest.approx(given["digit"].spread, rel=1e-4)


def test_over_z_bar_the_walk_goes_through_the_decoder_and_the_whole_model(images):
    net = digit_net()
    pipeline = make_pipeline(net, "1")
    e = make_concepts()
    found = response(pipeline, e, images, steps=6)
    ask = lambda z_bar: net(apply_spec(pipeline.decode(z_bar), pipeline.adapter.spec)).detach()  # noqa: E731
    given = response(ask, e, pipeline.encode(images)[0], steps=6)
    assert found["digit"].to_dict() == given["digit"].to_dict()
    assert (found.space, found.is_cut) == ("z_bar", None)
    assert "decoder" in found.via


# ---- pictures


def test_the_figure_has_a_row_a_factor_and_shows_at_most_twelve_classes(e, x):
    weight = torch.randn(D, 30, dtype=torch.float64, generator=seeded(2))
    result = response(lambda rows: rows @ weight, e, x, ["digit", "color"], steps=5)
    assert len(result.class_names) == 12
    assert result.changes.shape == (2, 35, 12)
    figure = result.figure()
    assert len(figure.axes) == 4
    assert figure.axes[0].get_title(loc="left").startswith("digit (2 dims): spread")
    names = [str(k) * 2 for k in range(4)]
    assert response(curved_head, e, x, steps=5, class_names=names).class_names == tuple(names)


def test_counts_of_predictions_add_up_to_all_steps(e, x):
    result = response(curved_head, e, x, steps=5)
    np.testing.assert_array_equal(result.counts.sum((1, 2)).numpy(), [35, 35, 35])
    for k, factor in enumerate(result.factors):
        assert float(result.counts[k, 1].sum()) / 35 == pytest.approx(factor.changed)


def clusters():
    """Three groups of z, told apart by their digit factor alone."""
    e = make_concepts(space="z", curved=False)
    labels = torch.arange(120) % 3
    factors = 0.1 * torch.randn(120, D, generator=seeded(1))
    factors[:, 3] += torch.tensor([-2.0, 0.0, 2.0])[labels]
    return e, e.inverse(factors), labels


@pytest.mark.slow  # numba compiles UMAP for half a minute
def test_a_walk_in_the_factor_of_the_clusters_leaves_its_own_and_the_picture_is_repeatable():
    pytest.importorskip("umap")
    e, z, labels = clusters()
    result = response_embedding(e, z, labels, ("digit", "color"), start=0, steps=30, neighbors=5, seed=1)
    digit, color = result.walks
    assert color.stays == 1
    assert color.labels == 1
    assert digit.stays < 0.9
    assert digit.labels > 1
    assert result.points.shape == (120, 2)
    assert result.paths.shape == (2, 31, 2)
    # The start is an image, and is placed where that image is.
    assert torch.allclose(result.paths[0, 0], result.points[0], atol=0.5)
    again = response_embedding(e, z, labels, ("digit", "color"), start=0, steps=30, neighbors=5, seed=1)
    assert torch.equal(again.paths, result.paths)
    figure = result.figure()
    assert [ax.get_title() for ax in figure.axes][1] == "walk in color: 100 % of steps keep the label"
    assert "stays among images of its own label" in result.caption
    assert set(result.to_dict()) >= {"walks", "images", "start"}


def test_points_get_the_label_that_most_of_their_nearest_images_have():
    images = torch.tensor([[0.0, 0], [1, 0], [0, 1], [9, 9], [8, 9], [9, 8], [5, 5]])
    labels = torch.tensor([2, 2, 0, 1, 1, 0, 0])
    points = torch.tensor([[0.2, 0.1], [9.0, 9.1], [5.0, 5.2]])
    expected = []
    for point in points.numpy():
        order = np.argsort(np.linalg.norm(images.numpy() - point, axis=1))[:3]
        votes = [int((labels.numpy()[order] == k).sum()) for k in range(3)]
        expected.append(int(np.argmax(votes)))
    assert nearest_labels(images, labels, points, 3).tolist() == expected == [2, 1, 0]


def test_an_embedding_that_cannot_be_made_is_refused(monkeypatch):
    e, z, labels = clusters()
    with pytest.raises(ShapeError, match="labels must be whole numbers"):
        response_embedding(e, z, labels.float(), "digit")
    with pytest.raises(ConfigError, match=r"start must be a row.*neighbors must be 2 to 119"):
        response_embedding(e, z, labels, "digit", start=120, neighbors=500)
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(PluginError, match=r"pip install posthoc-inn\[umap\]"):
        response_embedding(e, z, labels, "digit")
