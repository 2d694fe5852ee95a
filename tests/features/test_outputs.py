"""What a prediction is recognised as, from its values, its last operation and the data's labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from posthoc_inn.errors import ConfigError, ShapeError
from posthoc_inn.features import LayerExtractor
from posthoc_inn.features.outputs import check_kind, given, overlap, recognise, said, same

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
CLASS = torch.arange(40) % 6
YES = (torch.rand(40, 6, generator=torch.Generator().manual_seed(1)) > 0.5).long()


@pytest.mark.parametrize(
    ("output", "known", "kind", "is_sure"),
    [
        pytest.param(X.softmax(1), {}, "classes", True, id="softmax"),
        pytest.param(X.softmax(1).half(), {}, "classes", True, id="softmax in half precision"),
        pytest.param(X.log_softmax(1), {}, "classes", True, id="log-softmax"),
        pytest.param(F.one_hot(CLASS).float(), {}, "classes", True, id="one-hot, whose length is 1 too"),
        pytest.param(X, {}, "classes", False, id="logits of which nothing is known"),
        pytest.param(X, {"head": "addmm", "classes": 6}, "classes", True, id="as many as classes"),
        pytest.param(X, {"head": "addmm", "labels": X.argmax(1)}, "classes", True, id="right about labels"),
        pytest.param(X, {"head": "addmm", "labels": CLASS * 0}, "classes", False, id="labels that tell nothing"),
        pytest.param(X.sigmoid(), {"head": "sigmoid", "classes": 6}, "classes", True, id="one against the rest"),
        pytest.param(X, {"labels": F.one_hot(CLASS)}, "classes", True, id="one-hot labels"),
        pytest.param(torch.randn(40, 1000), {"head": "relu"}, "classes", True, id="as many as ImageNet's"),
        pytest.param(F.normalize(X, dim=1), {}, "embedding", True, id="length 1"),
        pytest.param(X.relu(), {"head": "relu"}, "embedding", False, id="features after relu"),
        pytest.param(
            F.layer_norm(X, (6,)), {"head": "native_layer_norm"}, "embedding", False, id="normalised features"
        ),
        pytest.param(X.sigmoid(), {}, "multilabel", True, id="probabilities that do not sum to 1"),
        pytest.param(X.sigmoid() * 0.1, {"head": "sigmoid"}, "multilabel", True, id="rare labels after a sigmoid"),
        pytest.param(X, {"head": "addmm", "labels": YES}, "multilabel", True, id="yes-or-no labels"),
        pytest.param(X, {"labels": {str(k): YES[:, k] for k in range(6)}}, "multilabel", True, id="named ones"),
        pytest.param(X[:, :2], {"labels": YES[:, :2]}, "classes", False, id="two of them, which say little"),
        pytest.param(X, {"labels": X + 1}, "none", True, id="labels that are numbers"),
        pytest.param(X[:, :1], {}, "none", True, id="one number"),
        pytest.param(X.view(40, 6, 1, 1), {}, "none", True, id="a map"),
    ],
)
def test_a_prediction_is_recognised(output, known, kind, is_sure):
    found = recognise(output, **known)
    assert (found.kind, found.is_sure) == (kind, is_sure), found.why


def test_labels_are_set_above_a_half_for_probabilities_and_above_zero_for_logits():
    assert given("multilabel", X).threshold == 0
    assert given("multilabel", X.sigmoid()).threshold == 0.5
    assert given("multilabel", X.sigmoid(), head="addmm").threshold == 0
    assert recognise(X.sigmoid(), head="sigmoid").threshold == 0.5
    low = torch.tensor([[0.2, 0.6]])
    assert said(low, "multilabel", 0.0).tolist() == [[True, True]]
    assert said(low, "multilabel", 0.5).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("classes", (4, 1), r"needs \(B, classes\) .* prediction is \(B, 1\); pass 'multilabel', 'none', or name"),
        ("multilabel", (4, 3, 2), r"needs \(B, labels\) .* \(B, 3, 2\); pass 'embedding', 'none'"),
        ("embedding", (4, 1), "needs 2 or more values"),
    ],
)
def test_a_word_that_does_not_fit_the_shape_is_refused_in_one_line(kind, shape, message):
    with pytest.raises(ConfigError, match=message) as refused:
        check_kind(kind, torch.zeros(shape))
    assert "\n" not in str(refused.value)


def test_sets_of_labels_are_the_same_or_overlap():
    a = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    b = torch.tensor([[True, False, False], [False, False, False], [True, False, False]])
    assert same(a, b).tolist() == [False, True, True]
    assert overlap(a, b).tolist() == [0.5, 1.0, 1.0]
    assert same(torch.tensor([1, 2]), torch.tensor([1, 0])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("tail", "head"),
    [
        ([nn.Linear(4, 3)], "addmm"),
        ([nn.Linear(4, 3), nn.Sigmoid(), nn.Flatten()], "sigmoid"),
        ([nn.ReLU(inplace=True)], "relu"),
        ([nn.LayerNorm(4)], "native_layer_norm"),
    ],
)
def test_a_probe_finds_the_operation_that_a_prediction_ends_in(tail, head):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *tail)
    assert LayerExtractor(model, "0").probe(torch.rand(2, 3, 8, 8)).head == head


def test_pooled_scores_stay_scores():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert LayerExtractor(model, "0").probe(torch.rand(2, 3, 8, 8)).head == "convolution"


class Many(nn.Module):
    """A network with very many outputs."""

    def __init__(self, how=lambda x: {f"box{k}": x.mean((2, 3)) for k in range(90)}):
        super().__init__()
        self.body, self.how = nn.Conv2d(3, 4, 3), how

    def forward(self, x):
        return self.how(self.body(x))


def test_a_message_about_many_outputs_says_how_many_and_shows_a_few():
    x = torch.rand(2, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"with 90 tensors; pass one of .*, \.\.\. \(84 more\), or pre") as refused:
        LayerExtractor(Many(), "body").predict(x)
    assert len(str(refused.value)) < 400
    with pytest.raises(ConfigError, match=r"has no prediction='class'; pass") as refused:
        LayerExtractor(Many(), "body", prediction="class").predict(x)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "how",
    [
        lambda x: {f"box{k}": x.mean((2, 3)) for k in range(9)},
        lambda x: [{"boxes": row.flatten()[:k].view(-1, 1)} for k, row in enumerate(x)],
        lambda x: x.mean((2, 3)).argmax(1),
        lambda x: x.mean(),
        lambda x: "a text",
    ],
    ids=["many", "one each", "integers", "a number", "no tensor"],
)
def test_an_extractor_that_compares_nothing_takes_whatever_a_model_returns(how):
    extractor = LayerExtractor(Many(how), "body", prediction_kind="none")
    z, output = extractor.features_and_prediction(torch.rand(3, 3, 8, 8))
    assert (z.shape[0], output.shape, extractor.said(output)) == (3, (3, 0), None)


def test_a_prediction_without_a_tensor_points_to_the_way_without_predictions():
    with pytest.raises(ShapeError, match=r"returns str, without a tensor in it\. Pass prediction_kind='none'"):
        LayerExtractor(Many(lambda x: "a text"), "body").predict(torch.rand(2, 3, 8, 8))


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match=r"prediction_kind must be one of 'auto', 'classes', .* got 'class'"):
        LayerExtractor(nn.Linear(2, 2), "output", prediction_kind="class")
