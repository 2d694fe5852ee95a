"""Edits between images, and the model's verdict on them, image by image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from concept_parts import digit_net, make_concepts, make_pipeline

from posthoc_inn.analysis import edit_gallery
from posthoc_inn.analysis.editing import swap
from posthoc_inn.errors import ConfigError, ShapeError, UnknownNameError
from posthoc_inn.features import LayerExtractor


@pytest.fixture
def parts():
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(2)) * 0.8 + 0.1
    net = digit_net(seen=6)
    with torch.no_grad():
        net[3].bias -= net(images).mean(0)  # no class is always the likeliest
    return make_pipeline(net, "1"), make_concepts(), images


def test_verdicts_are_those_of_a_loop_over_images(parts):
    pipeline, concepts, images = parts
    found = edit_gallery(pipeline, concepts, images, shown=3)
    assert [c.name for c in found.concepts] == ["residual", "digit", "color"]
    assert found.pictures.shape == (3, 6, 1, 8, 8)
    latents = pipeline.encode(images)[0]

    def classes(x):
        return [int(pipeline.ask_model(pipeline.decode(row[None]))[1].argmax()) for row in x]

    plain = classes(latents)
    for concept in found.concepts:
        part = concepts.part(concept.name)
        kept, taken, total, change = 0, 0, 0, 0.0
        for k in range(12):
            other = (k + 1) % 12
            factors = concepts.joined(latents[k : k + 1])
            factors[:, part] = concepts.joined(latents[other : other + 1])[:, part]
            edited = concepts.inverse(factors)
            after = classes(edited)[0]
            change += float((pipeline.decode(edited) - pipeline.decode(latents[k : k + 1])).square().mean()) / 12
            kept += after == plain[k]
            if plain[k] != plain[other]:
                total += 1
                taken += after == plain[other]
        assert concept.kept == pytest.approx(kept / 12)
        assert concept.taken == pytest.approx(taken / total)
        assert concept.change == pytest.approx(change, rel=1e-4)


def test_sets_of_labels_are_kept_or_taken_whole(parts):
    pipeline, concepts, images = parts
    pipeline = replace(pipeline, extractor=LayerExtractor(pipeline.extractor.model, "1", prediction_kind="multilabel"))
    found = edit_gallery(pipeline, concepts, images)
    latents = pipeline.encode(images)[0]

    def labels(x):
        return pipeline.ask_model(pipeline.decode(x))[1] > 0

    edited = swap(concepts, latents, latents.roll(-1, 0), "digit")
    kept = (labels(edited) == labels(latents)).all(1).double().mean()
    assert found.concepts[1].kept == pytest.approx(float(kept))
    alone = replace(pipeline, extractor=LayerExtractor(pipeline.extractor.model, "1", prediction_kind="embedding"))
    assert {c.kept for c in edit_gallery(alone, concepts, images).concepts} == {None}


def test_sources_can_be_given_and_concepts_chosen(parts):
    pipeline, concepts, images = parts
    found = edit_gallery(pipeline, concepts, images[:4], images[4:8], names=["color"])
    assert [c.name for c in found.concepts] == ["color"]
    assert torch.allclose(found.pictures[:, 2], pipeline.decode(pipeline.encode(images[4:8])[0]), atol=1e-5)
    figure = found.figure()
    texts = {t.get_text() for t in figure.axes[0].texts}
    assert "color\nof source" in texts
    assert "the prediction becomes the source's" in found.caption
    assert "pictures" not in found.to_dict()


def test_what_cannot_be_edited_is_refused(parts):
    pipeline, concepts, images = parts
    with pytest.raises(ShapeError, match="at least 2 images, and a source each"):
        edit_gallery(pipeline, concepts, images[:1])
    with pytest.raises(ShapeError, match="a source each; got 4"):
        edit_gallery(pipeline, concepts, images[:4], images[:3])
    with pytest.raises(UnknownNameError, match="no concept 'shape'"):
        edit_gallery(pipeline, concepts, images, names="shape")
    with pytest.raises(ConfigError, match="over the autoencoder's latents"):
        edit_gallery(pipeline, make_concepts(space="z"), images)
