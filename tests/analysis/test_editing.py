"""Edits and walks against NumPy rewrites: what is replaced, what stays, and where paths go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from concept_parts import make_concepts, random_rows

from posthoc_inn.analysis.editing import (
    direction,
    latent_walk,
    replace,
    resample,
    spherical,
    swap,
    walk,
    walk_along,
)
from posthoc_inn.analysis.walk_density import concept_nll, walk_density
from posthoc_inn.errors import ConfigError, ShapeError, UnknownNameError
from posthoc_inn.objectives import standard_normal_nll

D = 6


@pytest.fixture
def e():
    return make_concepts(dtype=torch.float64)


@pytest.fixture
def x():
    return random_rows(5, D, seed=1, dtype=torch.float64)


@pytest.fixture
def other():
    return random_rows(5, D, seed=2, dtype=torch.float64)


def close(a, b, tolerance=1e-9):
    return torch.allclose(a.double(), torch.as_tensor(b).double(), atol=tolerance, rtol=0)


# ---- edits


@pytest.mark.parametrize(
    ("names", "columns"), [("digit", [3, 4]), (["color", "residual"], [0, 1, 2, 5]), ([2, 1], [3, 4, 5])]
)
def test_a_swap_takes_the_named_columns_of_e_from_the_source_and_keeps_the_others(e, x, other, names, columns):
    found = e.joined(swap(e, x, other, names)).numpy()
    own, foreign = e.joined(x).numpy(), e.joined(other).numpy()
    for row in range(5):
        for column in range(D):
            expected = foreign if column in columns else own
            assert found[row, column] == pytest.approx(expected[row, column], abs=1e-9)
    assert not close(swap(e, x, other, names), x, 1e-2)


def test_one_source_row_serves_all_rows(e, x, other):
    assert close(swap(e, x, other[:1], "digit"), swap(e, x, other[:1].expand(5, D), "digit"), 1e-12)


def test_swapping_every_factor_gives_the_source_and_swapping_with_itself_nothing(e, x, other):
    assert close(swap(e, x, other, e.factor_names), other)
    assert close(swap(e, x, x, "digit"), x)


def test_a_representation_keeps_its_shape(x, other):
    e = make_concepts(space="z", shape=(3, 2, 1), dtype=torch.float64)
    maps, source = x.reshape(5, 3, 2, 1), other.reshape(5, 3, 2, 1)
    flat = make_concepts(dtype=torch.float64)
    assert close(swap(e, maps, source, "color").flatten(1), swap(flat, x, other, "color"))
    assert walk(e, maps, source, 4).shape == (5, 4, 3, 2, 1)
    assert resample(e, maps, "digit", 3).shape == (5, 3, 3, 2, 1)


@pytest.mark.parametrize("shape", [(2,), (5, 2)])
def test_replace_sets_a_factor_to_the_value(e, x, shape):
    value = torch.randn(shape, dtype=torch.float64)
    found = e.joined(replace(e, x, "digit", value))
    assert close(found[:, 3:5], value.expand(5, 2))
    assert close(found[:, [0, 1, 2, 5]], e.joined(x)[:, [0, 1, 2, 5]])


def test_resampled_factors_are_standard_normal_and_the_others_stay(e, x):
    found = e.joined(resample(e, x, "digit", 2000, seed=3))
    drawn = found[..., 3:5].flatten(0, 1)
    assert close(found[..., [0, 1, 2, 5]], e.joined(x)[:, None, [0, 1, 2, 5]].expand(5, 2000, 4))
    assert drawn.mean(0).abs().max() < 0.05
    assert (torch.cov(drawn.T) - torch.eye(2)).abs().max() < 0.05


def test_resampling_depends_on_its_seed_alone_and_leaves_the_global_generator(e, x):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = resample(e, x, "digit", 2, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(resample(e, x, "digit", 2, seed=3), first)
    assert not torch.equal(resample(e, x, "digit", 2, seed=4), first)


def test_inputs_are_not_changed_by_edits(e, x, other):
    before, source = x.clone(), other.clone()
    swap(e, x, other, "digit")
    replace(e, x, "color", torch.zeros(1, dtype=torch.float64))
    walk(e, x, other, 3)
    assert torch.equal(x, before)
    assert torch.equal(other, source)


def test_edits_that_cannot_be_made_are_refused(e, x, other):
    with pytest.raises(UnknownNameError, match="Did you mean 'digit'"):
        swap(e, x, other, "digits")
    with pytest.raises(ShapeError, match="one row, or as many as the 5 of x"):
        swap(e, x, other[:3], "digit")
    with pytest.raises(ConfigError, match="at least one factor"):
        swap(e, x, other, [])
    with pytest.raises(ShapeError, match=r"'digit' has shape \(2,\)"):
        replace(e, x, "digit", torch.zeros(3))
    with pytest.raises(ConfigError, match="n must be at least 1"):
        resample(e, x, "digit", 0)


# ---- directions and walks


def test_a_direction_is_the_difference_of_the_means_of_e_and_not_of_the_latents(e):
    with_x, without_x = random_rows(40, D, seed=3, dtype=torch.float64), random_rows(30, D, seed=4, dtype=torch.float64)
    expected = e.joined(with_x).numpy().mean(0) - e.joined(without_x).numpy().mean(0)
    assert close(direction(e, with_x, without_x), expected, 1e-5)
    restricted = direction(e, with_x, without_x, "digit")
    assert close(restricted, np.where(np.isin(np.arange(D), [3, 4]), expected, 0), 1e-5)


def test_a_direction_needs_examples(e, x):
    with pytest.raises(ShapeError, match="without_x must be latents"):
        direction(e, x, x[:0])


def test_walking_along_a_direction_adds_it_to_e(e, x):
    way = torch.randn(D, dtype=torch.float64)
    found = walk_along(e, x, way, [-1.0, 0.0, 2.5])
    for k, amount in enumerate((-1.0, 0.0, 2.5)):
        assert close(e.joined(found[:, k]), e.joined(x) + amount * way, 1e-8)
    assert close(found[:, 1], x)
    with pytest.raises(ShapeError, match=r"direction \(6,\)"):
        walk_along(e, x, way[:3], [1.0])
    with pytest.raises(ShapeError, match="amounts"):
        walk_along(e, x, way, [])


def test_a_linear_walk_is_straight_in_e_and_curved_in_the_latents(e, x, other):
    path = walk(e, x, other, 7)
    a, b = e.joined(x).numpy(), e.joined(other).numpy()
    for k in range(7):
        assert close(e.joined(path[:, k]), a + k / 6 * (b - a), 1e-8)
    assert not close(path, latent_walk(x, other, 7), 1e-2)


@pytest.mark.parametrize("kind", ["linear", "spherical"])
def test_the_ends_of_a_walk_are_exact(e, x, other, kind):
    path = walk(e, x, other, 5, kind)
    assert torch.equal(path[:, 0], x)
    assert torch.equal(path[:, -1], other)
    part = walk(e, x, other, 5, kind, names="digit")
    assert torch.equal(part[:, 0], x)
    assert torch.equal(part[:, -1], swap(e, x, other, "digit"))


@pytest.mark.parametrize("kind", ["linear", "spherical"])
def test_a_walk_in_one_factor_leaves_the_others(e, x, other, kind):
    found = e.joined(walk(e, x, other, 5, kind, names=["digit"]))
    kept = [0, 1, 2, 5]
    assert close(found[..., kept], e.joined(x)[:, None, kept].expand(5, 5, 4), 1e-8)
    assert not close(found[:, 0, 3:5], found[:, 2, 3:5], 1e-2)


def slow_slerp(a, b, t):
    length_a, length_b = np.linalg.norm(a), np.linalg.norm(b)
    angle = np.arccos(np.dot(a, b) / (length_a * length_b))
    unit = (np.sin((1 - t) * angle) * a / length_a + np.sin(t * angle) * b / length_b) / np.sin(angle)
    return unit * ((1 - t) * length_a + t * length_b)


def test_a_spherical_walk_is_a_great_circle(e, x, other):
    found = e.joined(walk(e, x, other, 5, "spherical")).numpy()
    a, b = e.joined(x).numpy(), e.joined(other).numpy()
    for row in range(5):
        for k in range(5):
            np.testing.assert_allclose(found[row, k], slow_slerp(a[row], b[row], k / 4), atol=1e-8)


@pytest.mark.parametrize("factor", [1.0, 3.0, -1.0, -0.5, 0.0])
def test_parallel_and_antiparallel_vectors_are_joined_linearly(factor):
    a = torch.tensor([[1.0, 2.0, -2.0]], dtype=torch.float64)
    time = torch.linspace(0, 1, 5, dtype=torch.float64)
    found = spherical(a, factor * a, time)
    assert close(found[0], a + time[:, None] * (factor - 1) * a, 1e-12)


def test_nearly_parallel_vectors_keep_their_small_angle():
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[np.cos(1e-4), np.sin(1e-4)]], dtype=torch.float64)
    middle = spherical(a, b, torch.tensor([0.5], dtype=torch.float64))[0, 0]
    assert middle[1].item() == pytest.approx(np.sin(5e-5), rel=1e-7)


def test_a_latent_walk_is_straight_in_the_latents_and_one_row_serves_all(x, other):
    path = latent_walk(x, other[:1], 3)
    assert torch.equal(path[:, -1], other[:1].expand(5, D))
    assert close(path[:, 1], (x + other[:1]) / 2, 1e-12)


def test_walks_that_cannot_be_made_are_refused(e, x, other):
    with pytest.raises(ConfigError, match="at least 2, both ends included"):
        walk(e, x, other, 1)
    with pytest.raises(ConfigError, match="'linear', 'spherical', got 'cubic'"):
        walk(e, x, other, 3, "cubic")
    with pytest.raises(ShapeError, match="as many rows as they start from"):
        walk(e, x, other[:2], 3)
    with pytest.raises(ShapeError, match="as many rows as they start from"):
        latent_walk(x, other[:2], 3)


# ---- density along a path


def test_the_density_of_e_is_its_change_of_variables(e, x):
    found = concept_nll(e, x).numpy()
    for row in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda v: torch.cat(e.flow(v[None])[0], -1)[0], x[row])
        v = e.joined(x)[row].numpy()
        expected = 0.5 * np.sum(v**2) + D / 2 * np.log(2 * np.pi) - np.linalg.slogdet(jacobian.numpy())[1]
        assert found[row] == pytest.approx(expected, abs=1e-8)


def test_nats_along_a_walk_are_means_over_paths_with_standard_errors(e, x, other):
    paths = {"in e": walk(e, x, other, 4), "in z_bar": latent_walk(x, other, 4)}
    result = walk_density(paths, standard_normal_nll, name="N(0, 1)")
    for kind, path in paths.items():
        nats = 0.5 * (path.numpy() ** 2).sum(-1) + D / 2 * np.log(2 * np.pi)
        np.testing.assert_allclose(result.nats[kind], nats.mean(0), rtol=1e-9)
        np.testing.assert_allclose(result.errors[kind], nats.std(0, ddof=1) / np.sqrt(5), rtol=1e-9)
    gap = 0.5 * ((paths["in z_bar"].numpy() ** 2).sum(-1) - (paths["in e"].numpy() ** 2).sum(-1))[:, 1:-1].mean(1)
    assert result.difference == {"in e": 0.0, "in z_bar": pytest.approx(gap.mean(), abs=1e-9)}
    assert result.difference_error["in z_bar"] == pytest.approx(gap.std(ddof=1) / np.sqrt(5), abs=1e-9)
    assert result.positions == pytest.approx((0, 1 / 3, 2 / 3, 1))
    assert result.to_dict()["density"] == "N(0, 1)"
    assert "in z_bar costs" in result.caption


def test_a_density_tells_walks_round_a_ring_from_walks_across_it():
    # Half a ring: the mean of two points lies inside it, off the data.
    angle = torch.linspace(0.2, 3.0, 400, dtype=torch.float64)
    radius = 3 + 0.1 * torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ring = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)

    def ring_nll(rows):
        return 0.5 * ((rows.norm(dim=1) - 3) / 0.1) ** 2

    bent = torch.stack(
        [
            3 * torch.linspace(0.2, 3.0, 5, dtype=torch.float64).cos(),
            3 * torch.linspace(0.2, 3.0, 5, dtype=torch.float64).sin(),
        ],
        1,
    ).expand(2, 5, 2)
    straight = latent_walk(ring[:2], ring[-2:], 5)
    result = walk_density({"round": bent, "across": straight}, ring_nll, name="ring")
    assert result.difference["across"] > 100
    assert max(result.nats["round"]) < 1


def test_paths_that_cannot_be_compared_are_refused(e, x, other):
    path = walk(e, x, other, 4)
    with pytest.raises(ConfigError, match="There are no paths"):
        walk_density({}, e)
    with pytest.raises(ConfigError, match="needs a name"):
        walk_density({"a": path}, standard_normal_nll)
    with pytest.raises(ShapeError, match="all alike"):
        walk_density({"a": path, "b": path[:, :3]}, e)
    with pytest.raises(ShapeError, match="one value a row"):
        walk_density({"a": path}, lambda rows: rows, name="wrong")
    with pytest.raises(ShapeError, match="e takes z_bar"):
        concept_nll(e, x[:, :3])


def test_the_figure_has_a_line_a_kind(e, x, other):
    figure = walk_density({"in e": walk(e, x, other, 4), "in z_bar": latent_walk(x, other, 4)}, e).figure()
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["in e", "in z_bar"]
    assert "e over z_bar" in figure.axes[0].get_title(loc="left")
