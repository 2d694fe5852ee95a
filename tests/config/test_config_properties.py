"""Any valid configuration survives JSON; anything else is refused, with ConfigError and nothing else."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthoc_inn.config import (
    MAX_DIM,
    PRESETS,
    Activation,
    AutoencoderConfig,
    ConceptConfig,
    ConditionerConfig,
    FitConfig,
    FlowConfig,
    ImageSpec,
    TrainConfig,
)
from posthoc_inn.errors import ConfigError

few = settings(max_examples=40, deadline=None, derandomize=True)


def whole(low, high):
    return st.integers(low, high)


def real(low, high, **options):
    return st.floats(low, high, allow_nan=False, **options)


ACTIVATION = st.sampled_from(typing.get_args(Activation))
SEED = whole(0, 2**31)
SHARE = real(0, 1, exclude_max=True)


def image_specs():
    def of(channels):
        values = st.sampled_from((1, channels))
        return st.builds(
            ImageSpec,
            size=st.none() | st.tuples(whole(1, 4096), whole(1, 4096)),
            mean=values.flatmap(lambda n: st.tuples(*[real(-10, 10)] * n)),
            std=values.flatmap(lambda n: st.tuples(*[real(0, 10, exclude_min=True)] * n)),
            interpolation=st.sampled_from(("bilinear", "bicubic", "nearest", "area")),
            channels=st.just(channels),
            crop=real(0, 1, exclude_min=True),
        )

    return st.sampled_from((1, 3)).flatmap(of)


FLOWS = st.builds(
    FlowConfig,
    dim=whole(2, MAX_DIM),
    context_dim=whole(0, MAX_DIM),
    kind=st.text(max_size=8),
    blocks=whole(1, 1000),
    width=whole(1, 65536),
    depth=whole(1, 100),
    separate_nets=st.booleans(),
    scale_bound=real(0, 20, exclude_min=True),
    bins=whole(2, 256),
    tail=real(0, 1000, exclude_min=True),
    dropout=SHARE,
    activation=ACTIVATION,
    latent_shape=st.just(()),
    context_channels=st.just(0),
    seed=SEED,
)
CONDITIONERS = st.builds(
    ConditionerConfig,
    z_shape=st.lists(whole(1, MAX_DIM), min_size=1, max_size=3).map(tuple),
    reduced=whole(0, 65536),
    map_channels=st.just(0),
    map_size=st.just(()),
    picture_shape=st.just(()),
    picture_width=whole(1, 4096),
    context_dim=whole(1, MAX_DIM),
    width=whole(1, 65536),
    depth=whole(0, 20),
    dropout=SHARE,
    activation=ACTIVATION,
    seed=SEED,
)
AUTOENCODERS = st.builds(
    AutoencoderConfig,
    kind=st.text(max_size=8),
    size=whole(8, 1024),
    channels=st.sampled_from((1, 3)),
    latent_dim=whole(2, 65536),
    width=whole(1, 4096),
    min_gamma=real(0, 4),
    seed=SEED,
    latent=st.just("vector"),
    latent_channels=whole(1, 1024),
    reduction=st.sampled_from((2, 4, 8, 16, 32)),
    perceptual=st.text(min_size=1, max_size=8).filter(lambda name: name != "model"),
    perceptual_weights=st.text(max_size=8),
    perceptual_layers=st.lists(st.text(max_size=4), max_size=3).map(tuple),
    perceptual_weight=real(0, 1000),
    perceptual_share=real(0.01, 1),
    discriminator=real(0, 1000),
    discriminator_start=SHARE,
    discriminator_width=whole(1, 4096),
)
MAPS = st.builds(
    AutoencoderConfig.of_map,
    whole(2, 16).map(lambda side: 8 * side),
    st.sampled_from((1, 3)),
    latent_channels=whole(1, 16),
    reduction=st.sampled_from((2, 4, 8)),
    perceptual=st.sampled_from(("", "model")),
)
TRAININGS = st.builds(
    TrainConfig,
    steps=whole(1, 10**9),
    batch_size=whole(1, 10**6),
    optimizer=st.sampled_from(("adamw", "adam")),
    lr=real(0, 100, exclude_min=True),
    betas=st.tuples(SHARE, SHARE),
    weight_decay=real(0, 100),
    warmup=SHARE,
    final_lr=real(0, 1),
    clip=real(0, 1e9),
    max_nonfinite=whole(0, 1000),
    eval_every=whole(0, 10**6),
    patience=whole(0, 1000),
    checkpoint_every=whole(1, 10**6),
    ema=SHARE,
    seed=SEED,
)
CONCEPTS = st.builds(
    ConceptConfig,
    blocks=whole(1, 100),
    width=whole(1, 1000),
    depth=whole(1, 10),
    dropout=SHARE,
    activation=ACTIVATION,
    separate_nets=st.booleans(),
    rho=SHARE,
    learn_rho=st.booleans(),
    aligned=st.booleans(),
    sizes=st.none() | st.lists(whole(1, 1000), min_size=1, max_size=6).map(tuple),
    random=st.booleans(),
    training=TRAININGS,
)
FITS = st.builds(
    FitConfig,
    preset=st.text(max_size=8),
    latent_dim=whole(2, 1000),
    autoencoder_width=whole(1, 1000),
    context_dim=whole(1, 1000),
    conditioner_width=whole(1, 1000),
    conditioner_depth=whole(0, 20),
    flow=FLOWS,
    autoencoder_training=TRAININGS,
    flow_training=TRAININGS,
    concepts=CONCEPTS,
    latent=st.sampled_from(["auto", "vector", "map"]),
    map_flow=st.none() | FLOWS,
    map_autoencoder_training=st.none() | TRAININGS,
    map_flow_training=st.none() | TRAININGS,
    context_channels=whole(0, 4096),
    flow_on_concepts=st.booleans(),
    interaction_weight=real(0, 1e6),
    code_noise=real(0, 1),
    pictures=st.sampled_from(("auto", "never")),
    picture_training=TRAININGS,
    linear_fallback=st.booleans(),
    faithful=real(0, 100),
    map_faithful=st.none() | real(0, 100),
    faithful_weight=real(0, 1000),
)
CONFIGS = st.one_of(image_specs(), FLOWS, CONDITIONERS, AUTOENCODERS, MAPS, TRAININGS, CONCEPTS, FITS)
CLASSES = (ImageSpec, FlowConfig, ConditionerConfig, AutoencoderConfig, TrainConfig, ConceptConfig, FitConfig)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def objects_in(plain):
    """Return a configuration's own dict and those of the configurations in it."""
    return [plain, *(inner for value in plain.values() if isinstance(value, dict) for inner in objects_in(value))]


@few
@given(CONFIGS)
def test_a_valid_configuration_survives_json_unchanged(config):
    text = json.dumps(config.to_dict(), allow_nan=False)
    again = type(config).from_dict(json.loads(text))
    assert again == config
    assert again.to_dict() == config.to_dict()
    assert config.replace() == config


def test_the_strategies_leave_no_field_and_no_class_out():
    for strategy, cls in zip((FLOWS, CONDITIONERS, AUTOENCODERS, TRAININGS, CONCEPTS, FITS), CLASSES[1:], strict=True):
        assert strategy.example  # a strategy
        names = {f.name for f in dataclasses.fields(cls)}
        assert names == set(strategy.wrapped_strategy.kwargs), cls.__name__


@few
@given(CONFIGS, st.data())
def test_an_unknown_key_is_refused_wherever_it_stands(config, data):
    plain = config.to_dict()
    place = data.draw(st.sampled_from(objects_in(plain)))
    key = data.draw(st.text(max_size=12).filter(lambda k: k not in place))
    place[key] = data.draw(JSON)
    with pytest.raises(ConfigError, match="unknown key"):
        type(config).from_dict(plain)


@few
@given(CONFIGS, st.data())
def test_a_value_of_the_wrong_type_is_refused_by_name(config, data):
    plain = config.to_dict()
    place = data.draw(st.sampled_from(objects_in(plain)))
    key = data.draw(st.sampled_from(sorted(place)))
    # No field takes an object of these keys, a nested list of text, or a number that is none.
    place[key] = data.draw(st.sampled_from(({"no": "field"}, [["text"]], float("nan"), float("inf"), 10**400)))
    with pytest.raises(ConfigError, match=f"{key}|unknown key"):
        type(config).from_dict(plain)


@few
@given(CONFIGS, st.data())
def test_any_value_in_any_place_is_taken_or_refused_with_a_config_error(config, data):
    plain = config.to_dict()
    place = data.draw(st.sampled_from(objects_in(plain)))
    place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    try:
        taken = type(config).from_dict(plain)
    except ConfigError:
        return
    assert type(config).from_dict(json.loads(json.dumps(taken.to_dict(), allow_nan=False))) == taken


@few
@given(st.sampled_from(CLASSES), JSON | st.dictionaries(st.text() | st.integers() | st.none(), JSON))
def test_any_json_at_all_is_taken_or_refused_with_a_config_error(cls, anything):
    try:
        taken = cls.from_dict(anything)
    except ConfigError:
        return
    assert isinstance(taken, cls)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_survives_json(name):
    assert FitConfig.from_dict(json.loads(json.dumps(PRESETS[name].to_dict()))) == PRESETS[name]


def test_a_long_value_is_cut_in_the_message():
    with pytest.raises(ConfigError, match="activation must be one of") as caught:
        FlowConfig(dim=4, activation="x" * 100_000)
    assert len(str(caught.value)) < 500


def test_a_number_too_long_to_be_written_is_refused_all_the_same():
    with pytest.raises(ConfigError, match="width must be a whole number of at most 63 bits"):
        FlowConfig(dim=4, width=10**5000)
