"""Concepts through the facade: fit, factors, edits, walks, directions, relevance, save and load."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from small_parts import SPEC, TINY, network
from torch.utils.data import DataLoader, Subset, default_collate

from posthoc_inn import Interpreter, untouched
from posthoc_inn.concepts import AttributeSource, FolderPairs, GivenPairs, SketchSource, StyleTransfer, attributes_of
from posthoc_inn.datasets import ColorDigits
from posthoc_inn.errors import ConfigError, DataError, NotFittedError, ShapeError, UnknownNameError
from posthoc_inn.fit import FitRequest
from posthoc_inn.fit.preparing import find_concepts
from posthoc_inn.images import positions


class Digits(ColorDigits):
    def __len__(self):
        return 200

    def attribute_table(self):
        return {"digit": self.digits[:200], "background": self.background[:200]}


ON_FACTORS = TINY.replace(flow_on_concepts=True, interaction_weight=3.0)


def interpreter(model=None, **more):
    given = {"spec": SPEC, "preset": TINY, "precision": "32"} | more
    return Interpreter(model if model is not None else network(), "2", **given)


@pytest.fixture(scope="module")
def fitted():
    it = interpreter(preset=ON_FACTORS)
    with untouched(it.model):
        it.fit(Digits(), concepts=["digit", "background"])
    return it


@pytest.fixture(scope="module")
def images():
    return torch.stack([Digits()[k][0] for k in range(6)])


def test_e_is_fitted_with_the_rest_and_t_works_on_its_factors_if_asked_to(fitted):
    assert fitted.concept_model_.names == ("digit", "background", "(random)")
    assert fitted.flow_.base is fitted.concept_model_.flow
    metrics = fitted.metrics_["concepts"]
    assert sum(metrics["sizes"]) == 8
    assert set(metrics["scores"]) == {"digit", "background", "(random)"}
    assert [c["name"] for c in metrics["relevance"]["concepts"]] == ["residual", "digit", "background", "(random)"]
    assert [c["name"] for c in metrics["pair_shares"]["concepts"]] == ["digit", "background", "(random)"]
    assert metrics["pair_shares"]["are_held_out"]
    assert [c.name for c in fitted.pair_shares_.concepts] == ["digit", "background", "(random)"]
    assert fitted.metrics_["training"]["e"]["rows"]
    assert set(fitted.metrics_["seconds"]) >= {"e", "t", "autoencoder"}


def test_held_out_pairs_are_pairs_of_held_out_images(fitted):
    # A tenth is held out: 20 images, of which each concept has pairs.
    assert fitted.metrics_["images"].items() >= {"train": 180, "held_out": 20}.items()


FORMS = {
    "labels": "labels",
    "attributes": "attributes",
    "names": "digit, background",
    "mapping": {"digit": Digits().digits[:200]},
    "pairs": GivenPairs({"x": [(0, 1), (2, 3), (5, 9), (11, 12)]}),
}


@pytest.mark.parametrize("concepts", FORMS.values(), ids=FORMS)
def test_concepts_come_in_many_forms(concepts):
    it = interpreter().fit(Digits(), concepts=concepts, evaluate=False)
    assert it.concept_model_.names[-1] == "(random)"
    assert len(it.concept_model_.names) >= 2


def test_images_keep_their_places_in_a_shuffling_loader_that_leaves_some_out():
    def readable(items):
        return default_collate([item for item in items if int(item[1]) != 3])

    loader = DataLoader(Digits(), batch_size=16, shuffle=True, collate_fn=readable)
    fit = interpreter().prepare(FitRequest(data=loader, concepts=["digit"]))
    cache = fit.run().train
    order = cache["image"].rows(torch.arange(len(cache)))
    place = positions(fit.parts.data.data)[order]
    assert not torch.equal(order, order.sort().values)
    assert 3 not in Digits().digits[place]
    shown = torch.stack([(Digits()[int(k)][0] * 255).round().to(torch.uint8) for k in place])
    assert torch.equal(cache["images"].rows(torch.arange(len(cache))), shown)


def test_labels_go_with_their_rows_whatever_the_order():
    loader = DataLoader(Digits(), batch_size=16, shuffle=True)
    it = interpreter().fit(loader, held_out=Digits(train=False), concepts="labels", evaluate=False)
    assert it.concept_model_.names == ("class", "(random)")


@pytest.mark.parametrize(
    ("concepts", "error", "match"),
    [
        (["digits"], UnknownNameError, "no attribute 'digits'"),
        ("nonsense", UnknownNameError, "no concept source and no attribute 'nonsense'"),
        ({"x": [1] * 200}, DataError, "'x' has one value only"),
        ({"x": [0, 0, 1, 1]}, DataError, "4 rows, the data 200 images"),
        (5, ConfigError, "concepts must be"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_training(concepts, error, match, tmp_path):
    it = interpreter()
    with pytest.raises(error, match=match):
        it.fit(Digits(), concepts=concepts, out=tmp_path / "run")
    assert not hasattr(it, "autoencoder_")
    assert not (tmp_path / "run").exists()


def test_factors_have_names_and_widths(fitted, images):
    factors = fitted.factors(images)
    assert list(factors) == ["residual", "digit", "background", "(random)"]
    assert [f.shape[1] for f in factors.values()] == list(fitted.concept_model_.factor_dims)


def test_edits_change_one_factor_and_are_pictures(fitted, images):
    swapped = fitted.edit(images, "background", source=images.roll(1, 0))
    assert swapped.shape == (6, 3, 28, 28)
    assert fitted.edit(images, "digit", source=images[:1]).shape == (6, 3, 28, 28)
    drawn = fitted.edit(images, ["digit", "residual"], n=3, seed=1)
    assert drawn.shape == (6, 3, 3, 28, 28)
    assert torch.equal(drawn, fitted.edit(images, ["digit", "residual"], n=3, seed=1))
    own = fitted.factors(images)["digit"]
    kept = fitted.edit(images, "digit", value=own)
    assert torch.allclose(kept, fitted.pipeline.decode(fitted.pipeline.encode(images)[0]), atol=1e-3)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({}, ConfigError, "exactly one of source="),
        ({"n": 2, "value": torch.zeros(1)}, ConfigError, "exactly one of source="),
        ({"n": 0}, ConfigError, "n must be at least 1"),
        ({"value": torch.zeros(99)}, ShapeError, "has shape"),
    ],
)
def test_wrong_edits_are_refused(fitted, images, given, error, match):
    with pytest.raises(error, match=match):
        fitted.edit(images, "digit", **given)
    with pytest.raises(UnknownNameError, match="no concept 'shape'"):
        fitted.edit(images, "shape", n=1)


def test_walks_end_where_they_should(fitted, images):
    ends = [fitted.pipeline.decode(fitted.pipeline.encode(part)[0]) for part in (images[:3], images[3:])]
    for kind in ("linear", "spherical"):
        path = fitted.walk(images[:3], images[3:], steps=5, kind=kind)
        assert path.shape == (3, 5, 3, 28, 28)
        assert torch.allclose(path[:, 0], ends[0], atol=1e-4)
        assert torch.allclose(path[:, -1], ends[1], atol=1e-4)
    direction = fitted.direction(images[:3], images[3:], concept="digit")
    part = fitted.concept_model_.part("digit")
    assert direction[part].abs().sum() > 0
    assert direction.abs().sum() == direction[part].abs().sum()
    along = fitted.walk(images, direction=direction, amounts=[0.0, 1.0])
    assert along.shape == (6, 2, 3, 28, 28)
    with pytest.raises(ConfigError, match="Give either to="):
        fitted.walk(images)


def test_shares_by_pairs_are_asked_of_data_with_concepts(fitted):
    data = Subset(Digits(train=False), range(80))
    found = fitted.analyze("pair-shares", Digits(train=False), samples=400)
    assert found.images <= 200
    assert found.are_held_out
    table = {name: column[:80] for name, column in Digits(train=False).attribute_table().items()}
    given = fitted.pair_shares(data, table, samples=400)
    assert [c.name for c in given.concepts] == ["digit", "background", "(random)"]
    assert given["digit"].quality.probe.measure == "accuracy"
    assert given["background"].quality.probe.measure == "r2"
    with pytest.raises(DataError, match="give the same, in the same order"):
        fitted.pair_shares(data, {"digit": table["digit"]}, samples=400)


def test_relevance_is_asked_of_images(fitted):
    found = fitted.concept_relevance(Subset(Digits(train=False), range(60)), samples=300)
    assert found.images * found.draws <= 300
    assert {c.name for c in found.concepts} == {"residual", "digit", "background", "(random)"}


def test_without_concepts_everything_says_what_to_do(images):
    it = interpreter().fit(Digits(), evaluate=False)
    for ask in (
        lambda: it.factors(images),
        lambda: it.edit(images, "digit", n=1),
        lambda: it.concept_relevance(images),
    ):
        with pytest.raises(NotFittedError, match=r"fit\(loader, concepts=\.\.\.\), or fit_concepts"):
            ask()


def test_e_comes_back_with_the_bundle(fitted, images, tmp_path):
    fitted.save(tmp_path / "run")
    loaded = Interpreter.load(tmp_path / "run", model=network())
    assert torch.equal(loaded.edit(images, "digit", n=2), fitted.edit(images, "digit", n=2))
    assert torch.equal(loaded.sample(images, n=2), fitted.sample(images, n=2))
    assert loaded.flow_.base is loaded.concept_model_.flow


def test_e_can_be_fitted_later_over_latents_or_over_z(images, tmp_path):
    it = interpreter().fit(Digits(), evaluate=False)
    later = it.fit_concepts(Digits(), ["digit"], steps=4)
    assert it.concept_model_ is later.model
    over_z = it.fit_concepts(Digits(), ["digit"], space="z", steps=4)
    assert over_z.model.shape == (4, 2, 2)
    assert it.concept_model_ is later.model
    z = it.pipeline.features(images)
    assert torch.allclose(over_z.model.inverse(over_z.model.factors(z)), z, atol=1e-3)
    density = it.fit_concepts(Digits(), None, steps=4)
    assert density.model.names == ()
    assert it.concept_model_ is later.model
    # t was fitted without e: the bundle keeps both.
    it.save(tmp_path / "run")
    assert Interpreter.load(tmp_path / "run", model=network()).flow_.base is None


def test_a_trained_e_is_shared_with_another_layer(fitted):
    other = Interpreter(
        network(), "0", spec=SPEC, preset=ON_FACTORS, precision="32", autoencoder=fitted.autoencoder_,
        concept_model=fitted.concept_model_,
    ).fit(Digits(), evaluate=False)  # fmt: skip
    assert other.flow_.base is fitted.concept_model_.flow
    with pytest.raises(ConfigError, match="needs the trained autoencoder"):
        interpreter(concept_model=fitted.concept_model_)
    with pytest.raises(ConfigError, match="give one of the two"):
        other.fit(Digits(), concepts=["digit"])


class WithImages:
    """A source that brings images of its own."""

    names = ("bright",)

    def __init__(self, data):
        self.count = len(data)
        self.extra = [(data[k][0] * 0.5) for k in range(30)]

    def pairs(self, n, *, seed):
        index = torch.randint(30, (n,), generator=torch.Generator().manual_seed(seed))
        return index, self.count + index, torch.tensor([[True, False]]).repeat(n, 1)


def test_images_of_a_sources_own_are_encoded_too():
    it = interpreter().fit(Digits(), held_out=Digits(train=False), concepts=WithImages(Digits()), evaluate=False)
    assert it.concept_model_.names == ("bright", "(random)")


def test_a_resumed_fit_with_concepts_ends_the_same(tmp_path):
    whole = interpreter().fit(Digits(), concepts=["digit"], evaluate=False)
    it = interpreter()
    reporter = Stop()
    with pytest.raises(KeyboardInterrupt):
        it.fit(Digits(), concepts=["digit"], out=tmp_path, evaluate=False, progress=reporter)
    again = interpreter().fit(Digits(), concepts=["digit"], out=tmp_path, resume=True, evaluate=False)
    for one, other in zip(whole.flow_.state_dict().values(), again.flow_.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


from posthoc_inn.progress import Reporter  # noqa: E402


class Stop(Reporter):
    """Ctrl-C in the middle of e."""

    def stage(self, name, total):
        self.now = name

    def advance(self, done, figures=None):
        if self.now == "e" and done == 5:
            raise KeyboardInterrupt


def test_attributes_of_held_out_data_are_its_own():
    it = interpreter().fit(Digits(), held_out=Digits(train=False), concepts=["digit"], evaluate=False)
    assert isinstance(it.concept_fit_.scores["digit"], float)
    source = AttributeSource({"digit": Digits().digits[:200]})
    notes = []

    class Notes(Reporter):
        def note(self, text):
            notes.append(text)

    interpreter().fit(Digits(), held_out=Digits(train=False), concepts=source, evaluate=False, progress=Notes())
    assert not any("measured on training pairs" in n for n in notes)


def test_two_sketches_become_a_concept():
    data = Digits()
    dark, light = torch.zeros(3, 28, 28), torch.ones(3, 28, 28)
    dark[:, 10:18], light[:, :, 10:18] = 0.4, 0.6
    painter = StyleTransfer(network(), spec=SPEC, layers=["0", "2"], steps=2, width=4)
    source = SketchSource(data, dark, light, name="tone", stylize=painter, images=12)
    it = interpreter().fit(data, held_out=Digits(train=False), concepts=source, evaluate=False)
    assert it.concept_model_.names == ("tone", "(random)")
    assert it.edit(data[0][0][None], "tone", n=2).shape == (1, 2, 3, 28, 28)


def test_folders_of_pairs_become_concepts(tmp_path):
    data = Digits()
    for side, shift in (("a", 0), ("b", 40)):
        (tmp_path / "stroke" / side).mkdir(parents=True)
        for k in range(8):
            pixels = (data[k + shift][0].permute(1, 2, 0) * 255).byte().numpy()
            Image.fromarray(pixels).save(tmp_path / "stroke" / side / f"{k}.png")
    source = FolderPairs(tmp_path, size=28, data=data)
    it = interpreter().fit(data, held_out=Digits(train=False), concepts=source, evaluate=False)
    assert it.concept_model_.names == ("stroke", "(random)")


def test_t_is_fitted_as_if_there_were_no_concepts():
    it = interpreter()
    it.fit(Digits(), concepts=["digit"], evaluate=False)
    assert it.flow_.base is None
    plain = interpreter().fit(Digits(), evaluate=False)
    for one, other in zip(it.flow_.state_dict().values(), plain.flow_.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_held_out_pairs_are_drawn_as_those_of_training_are():
    class Faces(torch.utils.data.Dataset):
        attribute_names = ("a", "b")

        def __init__(self, n):
            self.targets = torch.stack([torch.arange(n) % 2, torch.arange(n) % 2], dim=1)

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, index):
            return torch.zeros(3, 8, 8), self.targets[index]

    data, held_out = Faces(12), Faces(6)
    source = AttributeSource(attributes_of(data), agree="all")
    _, _, wanted = find_concepts(FitRequest(data=data, held_out=held_out, concepts=source), seed=0)
    assert len(wanted.held_out_source) == 6
    assert bool(wanted.held_out_source.pairs(40, seed=0)[2][:, 1:].all())


@pytest.mark.parametrize("concepts", [["digit"], "labels"])
def test_sizes_that_do_not_fit_are_refused_before_any_training(concepts):
    begun = []

    class Stages(Reporter):
        def stage(self, name, total):
            begun.append(name)

    config = TINY.replace(concepts=TINY.concepts.replace(sizes=(1, 1)))
    it = Interpreter(network(), "0", spec=SPEC, preset=config, seed=0)
    with pytest.raises(ConfigError, match=r"sizes must be 3 widths \(residual, .*, \(random\)\) that add up to"):
        it.fit(Digits(), held_out=Digits(train=False), concepts=concepts, progress=Stages())
    assert "autoencoder" not in begun
