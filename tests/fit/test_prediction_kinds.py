"""What of a model's predictions is compared, from where the user stands: classes, labels, embeddings, nothing."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from small_parts import TINY
from torch import nn

from posthoc_inn import ConfigError, Interpreter, analysis
from posthoc_inn.config import TrainConfig
from posthoc_inn.fit import FitRequest
from posthoc_inn.report import figures, findings
from posthoc_inn.rows.cache import Cache

FEW = TrainConfig(steps=2, batch_size=16, eval_every=2, checkpoint_every=2, patience=0)
SHORT = TINY.replace(autoencoder_training=FEW, flow_training=FEW)


def images(n=40):
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = F.interpolate(coarse, (28, 28), mode="bilinear")
    return (found - found.amin()) / (found.amax() - found.amin())


IMAGES = images()
OTHERS = IMAGES.flip(3)  # as like each other as held-out images are, and none the same


@pytest.fixture(autouse=True)
def _coarse_pictures(monkeypatch):
    monkeypatch.setattr(figures.to_png, "__defaults__", (30,))
    monkeypatch.setattr(figures.to_data_uri, "__defaults__", (30,))


class Ending(nn.Module):
    """A network whose outputs are spread around 0, and then go through `end`."""

    def __init__(self, width=6, end=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.Flatten())
            self.head = nn.Linear(16, width)
        self.end = nn.Identity() if end is None else end
        self.eval()
        with torch.no_grad():
            self.head.bias -= self.head(self.body(IMAGES)).mean(0)

    def forward(self, x):
        return self.end(self.head(self.body(x)))


class Unit(nn.Module):
    def forward(self, x):
        return F.normalize(x, dim=1)


class OneEach(nn.Module):
    def forward(self, x):
        return [{"boxes": row[:4].expand(1 + k % 3, 4), "scores": row[: 1 + k % 3]} for k, row in enumerate(x)]


def fitted(model, data=OTHERS, **options):
    interpreter = Interpreter(model, "body.1", preset=SHORT, precision="32", **options)
    return interpreter.fit(data, held_out=IMAGES)


def as_measured(values):
    """Values of the held-out images in the order in which they are measured, neighbours as different images."""
    order = Cache()
    order.append(z=torch.zeros(len(values), 1))
    return values[order.some(None, seed=0)]


def same_pairs(said):
    """The share of pairs of different images of which the model says the same."""
    n = len(said)
    return float(((said[:, None] == said).all(2).sum() - n) / (n * (n - 1)))


def labels_of(interpreter):
    return {f.label: f for f in findings(interpreter.metrics_)}


def test_classes_are_compared_beside_those_of_other_images():
    it = fitted(Ending(end=nn.Softmax(1)))
    found = it.metrics_["faithfulness"]
    predicted = it.extractor.predict(IMAGES).argmax(1)
    assert it.metrics_["prediction_kind"] == "classes"
    assert found["agreement_between"] == pytest.approx(same_pairs(predicted[:, None]))
    assert 0 < found["agreement_between"] < 1
    assert found["label_overlap"] is found["output_similarity"] is None
    assert "Two different images have the same in" in labels_of(it)["Same prediction as the image"].meaning
    assert it.metrics_["notes"] == []


def test_scores_of_which_nothing_is_known_are_classes_and_a_note_says_so():
    it = fitted(Ending())
    (note,) = it.metrics_["notes"]
    assert "taken as scores of classes" in note
    assert "prediction_kind=" in note
    assert fitted(Ending(), prediction_kind="classes").metrics_["notes"] == []


def test_the_number_of_the_data_s_classes_tells_classes():
    data = torch.utils.data.TensorDataset(OTHERS, torch.arange(40) % 6)
    it = fitted(Ending(), data)
    assert (it.metrics_["prediction_kind"], it.metrics_["notes"]) == ("classes", [])
    assert it.metrics_["prediction"] == "the data has 6 classes too"


def test_a_model_that_predicts_one_class_for_all_images_gets_no_verdict(tmp_path):
    model = Ending()
    with torch.no_grad():
        model.head.bias += 100 * torch.eye(6)[2]
    it = fitted(model)
    assert it.metrics_["faithfulness"]["agreement"] == it.metrics_["faithfulness"]["agreement_between"] == 1
    told = labels_of(it)["Same prediction as the image"]
    assert (told.value, told.status) == ("one for all images", "info")
    assert "predicts one class for all" in told.meaning
    assert not [f for f in findings(it.metrics_) if "predict" in f.label and f.status == "good"]
    page = it.report(tmp_path / "report.html").read_text()
    assert "predicts the same for all held-out images" in page
    assert "get the same prediction as their image" not in page
    assert "same for all held-out images" in (it.save(tmp_path / "bundle") / "README.md").read_text()


def test_an_embedding_is_compared_by_its_cosine_though_its_largest_value_is_always_the_same(tmp_path):
    model = Ending(32, Unit())
    with torch.no_grad():
        model.head.bias += 2 * torch.eye(32)[0]
    assert len(model(IMAGES).argmax(1).unique()) == 1
    it = fitted(model)
    found, output = it.metrics_["faithfulness"], as_measured(model(IMAGES).detach())
    assert it.metrics_["prediction_kind"] == "embedding"
    assert found["agreement"] is None
    assert found["output_similarity_between"] == pytest.approx(float((output * output.roll(1, 0)).sum(1).mean()))
    assert -1 <= found["output_similarity"] <= 1
    assert 0 <= it.metrics_["autoencoder"]["output_similarity"] <= 1
    assert f"Two different images have {found['output_similarity_between']:.3f}" in (
        labels_of(it)["Same output as the image"].meaning
    )
    page = it.report(tmp_path / "report.html").read_text()
    assert "embedding: rows have length 1" in page
    assert "cosine similarity" in (it.save(tmp_path / "bundle") / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"needs a model that gives class scores, and this one's .* 'embedding'"):
        it.analyze("attack", IMAGES[:4])


@pytest.mark.parametrize(("end", "word"), [(nn.Sigmoid(), "auto"), (nn.Identity(), "multilabel")])
def test_sets_of_labels_are_compared_whole_and_by_their_overlap(end, word, tmp_path):
    it = fitted(Ending(end=end), prediction_kind=word)
    found = it.metrics_["faithfulness"]
    own = it.extractor.predict(IMAGES) > it.extractor.threshold
    assert it.metrics_["prediction_kind"] == "multilabel"
    assert it.extractor.threshold == (0.5 if word == "auto" else 0)
    assert found["agreement_between"] == pytest.approx(same_pairs(own))
    assert found["agreement"] <= found["label_overlap"] <= 1
    assert found["label_overlap_between"] > found["agreement_between"]
    assert "Jaccard" in labels_of(it)["Same labels as the image"].meaning
    loaded = Interpreter.load(it.save(tmp_path / "bundle"), model=it.model)
    assert (loaded.prediction_kind, loaded.extractor.threshold) == ("multilabel", it.extractor.threshold)
    assert torch.equal(loaded.extractor.said(own.float()), it.extractor.said(own.float()))


def test_labels_are_named_in_samples():
    it = fitted(Ending(3), prediction_kind="multilabel")
    found = analysis.samples(it.pipeline, IMAGES[:12], 2, 0, ["hat", "beard", "smile"])
    own = it.extractor.said(it.extractor.predict(IMAGES[:12]))
    assert found.predictions == tuple(
        ", ".join(n for n, k in zip(("hat", "beard", "smile"), row, strict=True) if k) or "no label" for row in own
    )
    differ = [text != "" for row in found.sample_predictions for text in row]
    assert found.agreement == pytest.approx(1 - sum(differ) / 24)


@pytest.mark.parametrize(("model", "word"), [(Ending(), "none"), (Ending(end=OneEach()), "auto")])
def test_nothing_is_compared_where_the_user_says_so_or_the_model_returns_one_structure_an_image(model, word, tmp_path):
    it = fitted(model, prediction_kind=word)
    assert it.metrics_["prediction_kind"] == "none"
    assert it.metrics_["faithfulness"]["agreement"] is None
    assert it.metrics_["faithfulness"]["similarity"] is not None
    assert labels_of(it)["Predictions"].value == "not compared"
    if word == "none":
        assert "predictions are not compared" in it.report(tmp_path / "report.html").read_text()
    assert "predictions are not compared" in (it.save(tmp_path / "bundle") / "README.md").read_text()
    loaded = Interpreter.load(tmp_path / "bundle", model=it.model)
    assert analysis.samples(loaded.pipeline, IMAGES[:2], 2).agreement is None


def test_the_plan_tells_what_is_compared_and_changes_nothing():
    it = Interpreter(Ending(end=Unit()), "body.1", preset=SHORT, precision="32")
    assert "prediction   embedding: rows have length 1" in it.plan(IMAGES).lines
    assert it.extractor.kind == "auto"


@pytest.mark.parametrize(
    ("model", "word", "message"),
    [
        (Ending(1), "classes", r"prediction_kind='classes' needs \(B, classes\)"),
        (Ending(end=nn.Unflatten(1, (3, 2))), "multilabel", r"prediction_kind='multilabel' needs \(B, labels\)"),
        (Ending(end=OneEach()), "classes", "or prediction_kind='none' to compare no predictions"),
    ],
    ids=["one number", "a map", "one structure each"],
)
def test_a_wrong_word_is_refused_before_anything_is_trained(model, word, message):
    it = Interpreter(model, "body.1", preset=SHORT, prediction_kind=word)
    with pytest.raises(ConfigError, match=message) as refused:
        it.prepare(FitRequest(data=IMAGES))
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


def test_a_prediction_without_a_row_for_each_image_is_not_compared():
    class Flat(nn.Module):
        def forward(self, x):
            return x.reshape(-1, 2)

    it = fitted(Ending(end=Flat()))
    assert (it.metrics_["prediction_kind"], it.metrics_["faithfulness"]["agreement"]) == ("none", None)
    with pytest.raises(ConfigError, match=re.escape("one row an image, and the model's prediction for 40 images")):
        fitted(Ending(end=Flat()), prediction_kind="classes")


def test_a_fit_to_other_data_recognises_anew():
    it = fitted(Ending())
    assert it.metrics_["notes"]
    it.fit(torch.utils.data.TensorDataset(IMAGES, (torch.rand(40, 6) > 0.5).long()), held_out=IMAGES)
    assert (it.extractor.kind, it.metrics_["prediction_kind"]) == ("multilabel", "multilabel")
