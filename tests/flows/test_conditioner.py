from __future__ import annotations

import numpy as np
import pytest
import torch

from posthoc_inn.config import ConditionerConfig
from posthoc_inn.errors import ConfigError, DataError, NotFittedError, ShapeError
from posthoc_inn.flows import Conditioner, set_compute_dtype

SHAPES = {
    "vector": (12,),
    "scalar": (1,),
    "pixel": (12, 1, 1),
    "map": (6, 8, 8),
    "odd_map": (3, 13, 5),
    "thin_map": (2, 1, 9),
    "small_map": (5, 2, 2),
    "tokens": (5, 8),
    "token": (1, 8),
}


def make(shape, *, dtype=torch.float64, n=64, **options):
    conditioner = Conditioner(ConditionerConfig(z_shape=shape, context_dim=7, **({"width": 16} | options))).to(dtype)
    z = torch.randn(n, *shape, dtype=torch.float64) * 3 + 1
    conditioner.fit_standardization([z])
    return conditioner, z


@pytest.fixture(params=list(SHAPES), ids=list(SHAPES))
def shape(request):
    return SHAPES[request.param]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_every_shape_gives_a_context_and_every_parameter_a_gradient(shape, depth):
    conditioner, z = make(shape, depth=depth)
    context = conditioner(z)
    assert context.shape == (64, 7)
    (context * torch.randn(7)).square().sum().backward()
    for name, parameter in conditioner.named_parameters():
        if "score" in name and shape[0] == 1:
            continue  # a softmax over one token is constant
        if name == "net.score.bias":
            continue  # adds the same to every token's score
        assert parameter.grad.abs().max() > 0, name


def test_rows_are_independent_and_one_row_works(shape):
    conditioner, z = make(shape)
    context = conditioner(z)
    torch.testing.assert_close(conditioner(z[3:4]), context[3:4])
    changed = z.clone()
    changed[0] += 1
    torch.testing.assert_close(conditioner(changed)[1:], context[1:])
    assert not torch.allclose(conditioner(changed)[0], context[0])


def test_leading_dimensions_are_free():
    conditioner, z = make((6, 8, 8))
    torch.testing.assert_close(conditioner(z.reshape(8, 8, 6, 8, 8)), conditioner(z).reshape(8, 8, 7))


def test_the_context_starts_small_but_not_lost(shape):
    conditioner, z = make(shape, n=256, width=64)
    assert 0.02 < conditioner(z).std() < 1


@pytest.mark.parametrize("name", ["map", "odd_map", "small_map"])
def test_a_map_is_told_from_its_mirror_image(name):
    """Averaging over positions would lose where things are."""
    conditioner, z = make(SHAPES[name])
    assert (conditioner(z) - conditioner(z.flip(-1))).abs().mean() > 0.05


def test_every_pixel_of_a_map_reaches_the_context():
    conditioner, z = make((3, 13, 5))
    z = z[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(conditioner(z).square().sum(), z)
    assert (gradient != 0).all()


def test_tokens_are_told_from_the_same_tokens_in_another_order():
    conditioner, z = make((5, 8))
    torch.nn.init.normal_(conditioner.net.place)
    assert (conditioner(z) - conditioner(z[:, [0, 2, 1, 3, 4]])).abs().mean() > 0.01
    assert (conditioner(z) - conditioner(z.flip(1))).abs().mean() > 0.01


def test_a_map_of_one_pixel_is_a_vector():
    pixel, z = make((12, 1, 1))
    vector, _ = make((12,))
    vector.fit_standardization([z.flatten(1)], force=True)
    torch.testing.assert_close(pixel(z), vector(z.flatten(1)))


@pytest.mark.parametrize(
    ("name", "axes"),
    [("vector", (0,)), ("map", (0, 2, 3)), ("tokens", (0, 1)), ("pixel", (0, 2, 3))],
)
def test_statistics_are_numpys_however_the_data_are_cut_into_batches(name, axes):
    shape = SHAPES[name]
    z = torch.randn(100, *shape) * torch.rand(shape[-1]) * 1e2 + 1e4
    whole, cut = (Conditioner(ConditionerConfig(z_shape=shape, width=4)).double() for _ in range(2))
    whole.fit_standardization(iter([z]))
    cut.fit_standardization(z[a:b] for a, b in [(0, 1), (1, 1), (1, 40), (40, 100)])
    for conditioner in (whole, cut):
        values = z.double().numpy()
        np.testing.assert_allclose(conditioner.z_mean.flatten(), values.mean(axes), rtol=1e-12)
        np.testing.assert_allclose(conditioner.z_std.flatten(), values.std(axes), rtol=1e-9)


def test_standardised_z_has_unit_scale_and_is_clipped_at_ten_deviations():
    conditioner, z = make((12,))
    standardised = conditioner.standardize(z)
    torch.testing.assert_close(standardised.std(0, unbiased=False), torch.ones(12, dtype=torch.float64))
    z[0, 0], z[1, 0] = 1e9, -1e9
    assert conditioner.standardize(z)[:2, 0].tolist() == [10, -10]
    assert conditioner(z).isfinite().all()


def test_a_dead_channel_and_a_constant_feature_are_only_centred():
    z = torch.randn(50, 3, 4, 4)
    z[:, 0], z[:, 1] = 0.0, 123.456
    conditioner = Conditioner(ConditionerConfig(z_shape=(3, 4, 4), width=8))
    conditioner.fit_standardization([z[:20], z[20:]])
    assert conditioner.z_std.flatten()[:2].tolist() == [1, 1]
    standardised = conditioner.standardize(z)
    assert standardised[:, :2].abs().max() < 1e-4
    z[0, 0] = 5.0
    assert conditioner.standardize(z)[0, 0].max() == 5.0


def test_a_feature_of_tiny_scale_is_standardised_all_the_same():
    z = torch.randn(50, 2) * torch.tensor([1.0, 1e-8])
    conditioner = Conditioner(ConditionerConfig(z_shape=(2,), width=8))
    conditioner.fit_standardization([z])
    assert conditioner.standardize(z)[:, 1].std(unbiased=False).item() == pytest.approx(1, rel=1e-4)


def test_before_fitting_it_raises(shape):
    conditioner = Conditioner(ConditionerConfig(z_shape=shape, width=8))
    with pytest.raises(NotFittedError, match=r"fit_standardization"):
        conditioner(torch.zeros(2, *shape))


def test_fitting_twice_is_an_error_unless_forced():
    conditioner, z = make((12,))
    with pytest.raises(ConfigError, match=r"already fitted.*force=True"):
        conditioner.fit_standardization([z])
    conditioner.fit_standardization([z + 5], force=True)
    assert conditioner.standardize(z + 5).mean().abs() < 1e-9


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], DataError, "got 0 rows"),
        ([torch.zeros(1, 4)], DataError, "got 1 rows; at least 2"),
        ([torch.zeros(3, 4), torch.full((2, 4), torch.nan)], DataError, "NaN or infinity"),
        ([torch.zeros(3, 5)], ShapeError, r"z has shape \(3, 5\).*built for \(B, 4\)"),
        ([torch.zeros(4)], ShapeError, r"z has shape \(4,\)"),
    ],
)
def test_unusable_batches_are_refused(batches, error, message):
    conditioner = Conditioner(ConditionerConfig(z_shape=(4,), width=8))
    with pytest.raises(error, match=message):
        conditioner.fit_standardization(batches)
    assert not conditioner.is_initialized


def test_another_shape_of_z_is_refused(shape):
    conditioner, _ = make(shape)
    with pytest.raises(ShapeError, match=r"this conditioner was built for"):
        conditioner(torch.zeros(2, *shape, 2))
    with pytest.raises(ShapeError, match=r"this conditioner was built for"):
        conditioner(torch.zeros(*shape))


def test_half_precision_z_is_taken_as_it_is_cached():
    conditioner, z = make((12,), dtype=torch.float32)
    context = conditioner(z.half())
    assert context.dtype == torch.float32
    torch.testing.assert_close(context, conditioner(z.float()), atol=0.02, rtol=0.02)


def test_bf16_products_change_little(shape):
    conditioner, z = make(shape, dtype=torch.float32)
    expected = conditioner(z)
    set_compute_dtype(conditioner, torch.bfloat16)
    context = conditioner(z)
    assert context.dtype == torch.float32
    assert 0 < (context - expected).abs().max() < 0.2


def test_large_inputs_are_reduced_before_they_are_flattened():
    with torch.device("meta"):
        large = Conditioner(ConditionerConfig(z_shape=(64, 112, 112)))
        wide = Conditioner(ConditionerConfig(z_shape=(100352,)))
    assert sum(p.numel() for p in large.parameters()) < 2e6
    assert sum(p.numel() for p in wide.parameters()) < 3e7


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(shape):
    before = torch.get_rng_state()
    first, second, other = (
        Conditioner(ConditionerConfig(z_shape=shape, width=8, seed=seed)).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((3, 13, 5), (4, 4)), ((6, 4, 4), (8, 8)), ((6, 32, 32), (4, 6)), ((17, 8), (4, 4)), ((16, 8), (2, 2))],
    ids=["odd", "smaller", "larger", "class token", "patches"],
)
def test_a_context_with_places_ends_with_a_map_and_every_parameter_has_a_gradient(shape, size):
    places = {"context_dim": 7 + 2 * size[0] * size[1], "map_channels": 2, "map_size": size}
    conditioner = Conditioner(ConditionerConfig(z_shape=shape, width=16, **places)).double()
    z = torch.randn(8, *shape, dtype=torch.float64)
    conditioner.fit_standardization([z])
    context = conditioner(z)
    assert context.shape == (8, places["context_dim"])
    context.square().sum().backward()
    for name, parameter in conditioner.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_what_lies_at_a_place_of_z_lies_there_in_the_context():
    config = ConditionerConfig(z_shape=(3, 32, 32), context_dim=7 + 2 * 64, width=16, map_channels=2, map_size=(8, 8))
    conditioner = Conditioner(config)
    z = torch.randn(4, 3, 32, 32)
    conditioner.fit_standardization([z])
    touched = z.clone()
    touched[0, :, 2:6, 26:30] += 3.0  # high up, on the right
    moved = (conditioner(touched) - conditioner(z))[0, 7:].reshape(2, 8, 8).abs().amax(0)
    # Touched are row 1 and columns 6 and 7 of 8 × 8; convolutions reach two places further, resizing one.
    assert moved[1, 6:].min() > 0
    assert moved[:, :3].max() == 0
    assert moved[5:].max() == 0


def test_the_class_token_has_no_place():
    config = ConditionerConfig(z_shape=(17, 8), context_dim=7 + 2 * 16, width=16, map_channels=2, map_size=(4, 4))
    conditioner = Conditioner(config)
    z = torch.randn(4, 17, 8)
    conditioner.fit_standardization([z])
    touched = z.clone()
    touched[:, 0] += 3.0
    moved = (conditioner(touched) - conditioner(z)).abs()
    assert moved[:, 7:].max() == 0
    assert moved[:, :7].max() > 0


@pytest.mark.parametrize(
    "places", [{"z_shape": (64,)}, {"z_shape": (10, 8, 1)[:2], "map_size": (4,)}, {"map_size": (9, 9)}]
)
def test_a_map_that_z_or_the_context_has_no_place_for_is_refused(places):
    with pytest.raises(ConfigError, match="map_channels"):
        ConditionerConfig(
            **({"z_shape": (3, 4, 4), "context_dim": 100, "map_channels": 2, "map_size": (2, 2)} | places)
        )


def test_a_map_of_many_channels_is_reduced_first_where_that_is_asked_for():
    shapes = {"z_shape": (80, 6, 6), "context_dim": 7 + 2 * 9, "map_channels": 2, "map_size": (3, 3), "width": 16}
    plain, reduced = (Conditioner(ConditionerConfig(**shapes, reduced=n)) for n in (0, 8))
    z = torch.randn(8, 80, 6, 6)
    for conditioner in (plain, reduced):
        conditioner.fit_standardization([z])
        assert conditioner(z).shape == (8, 25)
    first = next(p for p in reduced.net.parameters() if p.ndim == 4)
    assert first.shape[1] == 8
    assert plain.reduction is None
    # Fewer channels than it would be brought to: nothing is done.
    assert Conditioner(ConditionerConfig(z_shape=(4, 6, 6), context_dim=7, reduced=8)).reduction is None


@pytest.mark.parametrize("values", [1, 1 << 19], ids=["an image at a time", "all at once"])
def test_reducing_a_few_images_at_a_time_is_standardising_and_a_convolution(monkeypatch, values):
    monkeypatch.setattr("posthoc_inn.flows.fast.reduced.VALUES", values)
    conditioner = Conditioner(ConditionerConfig(z_shape=(20, 3, 4), context_dim=7, reduced=5, width=8)).double()
    conditioner.fit_standardization([torch.randn(64, 20, 3, 4, dtype=torch.float64)])
    # Some of it lies beyond the clip.
    z = (torch.randn(6, 20, 3, 4, dtype=torch.float64) * 6).requires_grad_()
    mix = conditioner.reduction.mix
    got = conditioner.reduction(z, conditioner.z_mean, conditioner.z_std)
    slow = conditioner.reduction.activation(mix(conditioner.standardize(z)))
    assert int(conditioner.clipped(z).sum()) > 0
    torch.testing.assert_close(got, slow)
    weights = torch.randn_like(got)
    ours, theirs = (
        torch.autograd.grad((out * weights).sum(), (z, mix.weight, mix.bias), retain_graph=True) for out in (got, slow)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_reducing_computes_in_bf16_where_that_is_asked_for_and_takes_half_precision():
    conditioner = Conditioner(ConditionerConfig(z_shape=(80, 6, 6), context_dim=7, reduced=8, width=16))
    z = torch.randn(16, 80, 6, 6)
    conditioner.fit_standardization([z])
    exact = conditioner(z.half().float())
    assert torch.equal(conditioner(z.half()), exact)
    set_compute_dtype(conditioner, torch.bfloat16)
    rounded = conditioner(z.half())
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)
