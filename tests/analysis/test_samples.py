from __future__ import annotations

import json

import pytest
import torch
from layer_parts import linear_autoencoder, pictures, pipeline
from torch import nn

from posthoc_inn.analysis import samples
from posthoc_inn.analysis.samples import CONCLUSION, LIMITS
from posthoc_inn.errors import ConfigError, DataError, ShapeError


@pytest.fixture(scope="module")
def parts():
    # Far enough from grey for samples of several classes.
    return pipeline(autoencoder=linear_autoencoder(reach=3.0))


def test_samples_have_their_shapes_and_depend_on_the_seed_alone(parts):
    first = samples(parts, pictures(3), n=4, seed=1)
    assert first.pictures.shape == (3, 4, 3, 8, 8)
    assert first.inputs.shape == first.reconstructions.shape == (3, 3, 8, 8)
    assert torch.equal(first.pictures, samples(parts, pictures(3), n=4, seed=1).pictures)
    assert not torch.equal(first.pictures, samples(parts, pictures(3), n=4, seed=2).pictures)


def test_the_agreement_is_the_share_of_samples_without_a_label(parts):
    found = samples(parts, pictures(6), n=8)
    labels = [label for row in found.sample_predictions for label in row]
    assert found.agreement == sum(label == "" for label in labels) / 48
    assert 0 < found.agreement < 1
    assert [int(k) for k in found.predictions] == parts.predict(pictures(6)).argmax(1).tolist()


def test_the_caption_tells_how_near_samples_are_to_the_layer(parts):
    found = samples(parts, pictures(3), n=4)
    z = parts.features(pictures(3)).flatten(1)
    seen = parts.features(found.pictures.flatten(0, 1)).flatten(1).unflatten(0, (3, 4))
    each = torch.cosine_similarity(seen, z[:, None].expand_as(seen), dim=-1)
    others = [torch.cosine_similarity(z[i], z[j], dim=0) for i in range(3) for j in range(3) if i != j]
    assert found.similarity == pytest.approx(float(each.mean()), abs=1e-5)
    assert found.similarity_between == pytest.approx(float(torch.stack(others).mean()), abs=1e-5)
    assert f"is {found.similarity:.2f} (1: the same; different images here have" in found.caption
    alone = samples(parts, pictures(1), n=4)
    assert alone.similarity_between is None
    assert "(1: the same)." in alone.caption


def test_class_names_replace_numbers_where_there_are_as_many_as_classes(parts):
    classes = parts.predict(pictures(1)).shape[1]
    names = [f"class {k}" for k in range(classes)]
    numbers = samples(parts, pictures(4), 2).predictions
    assert samples(parts, pictures(4), 2, 0, names).predictions == tuple(f"class {k}" for k in numbers)
    assert samples(parts, pictures(4), 2, 0, names[1:]).predictions == numbers


def test_rows_are_named_by_file_and_prediction_shortened_in_the_figure_alone(parts):
    long = ["a name of a class that is long"] * parts.predict(pictures(1)).shape[1]
    found = samples(parts, pictures(2), 2, 0, long, names=["a.png", "b.png"])
    assert found.predictions == (long[0], long[0])
    assert found.row_labels == ["a.png: a name of a c…", "b.png: a name of a c…"]
    assert samples(parts, pictures(1), 1, 0, long).row_labels == ["predicts a name of a c…"]


def test_the_figure_shows_every_picture_and_frames_what_differs(parts):
    found = samples(parts, pictures(6), n=8)
    ax = found.figure().axes[0]
    assert len(ax.images) == 6 * 10
    assert len(ax.patches) == sum(label != "" for row in found.sample_predictions for label in row)


def test_the_plain_data_fits_json_and_leaves_pictures_out(parts):
    found = samples(parts, pictures(2), n=2).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    known = {"images", "samples", "seed", "agreement", "names", "predictions", "sample_predictions"}
    assert set(found) == known | {
        "prediction_kind",
        "label_overlap",
        "output_similarity",
        "similarity",
        "similarity_between",
        "refinement",
    }


def test_a_model_that_is_no_classifier_is_not_asked():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 1, 3, 2, 1)).eval()
    found = samples(pipeline("1", model=model), pictures(2), n=2)
    assert (found.agreement, found.predictions, found.sample_predictions) == (None, (), ())
    assert "is no classifier" in found.caption
    assert found.figure().axes[0].images


def test_the_caption_says_what_to_conclude_and_what_not(parts):
    found = samples(parts, pictures(4), n=4)
    assert found.caption.startswith(found.legend)
    assert CONCLUSION in found.caption
    assert LIMITS in found.caption
    assert f"{100 * (1 - found.agreement):.1f} % of these samples" in found.caption


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"images": torch.rand(0, 3, 8, 8)}, DataError, "are empty"),
        ({"images": torch.rand(3, 8, 8)}, ShapeError, r"must be a tensor \(B, C, H, W\)"),
        ({"n": 0}, ConfigError, "n must be at least 1"),
        ({"names": ["a"]}, ConfigError, "a name for each image or none, got 1 for 2"),
    ],
)
def test_what_cannot_be_sampled_is_refused(parts, given, error, message):
    with pytest.raises(error, match=message):
        samples(parts, **{"images": pictures(2), **given})
