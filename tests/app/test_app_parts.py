"""The functions behind each part of the page, on small fits: no browser, no gradio."""

from __future__ import annotations

import io
import math

import pytest
import torch
from PIL import Image

from posthoc_inn.analysis.optional import require
from posthoc_inn.app import html
from posthoc_inn.app.answers import Answer, Bar, Card, Row, said_of
from posthoc_inn.app.fitted import LONGEST, FittedLayer, Opened, Shown
from posthoc_inn.app.guide import guide, section
from posthoc_inn.app.parts.attack import attack
from posthoc_inn.app.parts.compare import compare
from posthoc_inn.app.parts.concepts import between, changed, concept_names, knobs, own_value, taken, turned
from posthoc_inn.app.parts.look import MOST, look, mix
from posthoc_inn.app.parts.numbers import numbers
from posthoc_inn.app.parts.video import FRAMES, clip_of_file, frame_of, turning, watch, written
from posthoc_inn.app.words import PARTS
from posthoc_inn.errors import ConfigError, DataError, NotFittedError, PosthocInnError


def png(picture):
    return (picture.permute(1, 2, 0) * 255).round().byte().numpy()


def file_of(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def picture_bytes(size=(40, 30), kind="PNG"):
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, kind)
    return stream.getvalue()


# ---- pictures that are sent


def test_a_picture_that_is_sent_is_read_and_made_small_enough_to_be_kept(tmp_path):
    shown = Shown.of_file(file_of(tmp_path, "wide.png", picture_bytes((2000, 500))))
    assert shown.name == "wide.png"
    assert shown.picture.shape == (3, LONGEST // 4, LONGEST)
    torch.testing.assert_close(shown.picture[:, 5, 5], torch.tensor([1.0, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("broken.png", picture_bytes()[:60], r"^broken.png is damaged or truncated"),
        ("text.png", b"no picture at all", r"^text.png is not an image of a format that is read \(PNG, JPEG, WEBP\)"),
        ("page.svg", b"<svg onload='alert(1)'/>", r"^page.svg is not an image"),
        ("empty.jpg", b"", r"^empty.jpg is not an image"),
        ("large.png", b"\0" * 10_000_001, r"^large.png has 10,000,001 bytes, more than 10,000,000; make it smaller"),
    ],
)
def test_a_broken_picture_is_refused_by_its_name_without_its_folder(tmp_path, name, data, message):
    with pytest.raises(DataError, match=message) as caught:
        Shown.of_file(file_of(tmp_path, name, data))
    assert str(tmp_path) not in str(caught.value)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    with pytest.raises(DataError, match=r"^many.png has 6000x6000 pixels, more than the limit of 25,000,000"):
        Shown.of_file(file_of(tmp_path, "many.png", picture_bytes((6000, 6000))))


def test_a_file_that_has_gone_is_told(tmp_path):
    with pytest.raises(DataError, match=r"^gone.png is not there any more; choose it again"):
        Shown.of_file(tmp_path / "gone.png")


def test_a_grey_picture_of_another_size_goes_through_every_layer(opened, tmp_path):
    Image.new("L", (50, 50), 90).save(tmp_path / "grey.png")
    shown = Shown.of_file(tmp_path / "grey.png")
    for layer in opened.layers:
        assert look(layer, shown, count=1).rows[1].cards[0].picture.shape == (3, 28, 28)


# ---- what is opened


def test_layers_of_one_model_and_autoencoder_belong_together(opened):
    assert [list(opened.beside(layer)) for layer in opened.layers] == [
        ["early", "late"],
        ["early", "late"],
        ["another model"],
    ]
    assert [opened.layer(k).name for k in (-3, 1, 2.0, 3, 99)] == ["early", "early", "late", *["another model"] * 2]
    with pytest.raises(ConfigError, match="There is no 'nowhere' here; there are early, late, another model"):
        opened.named("nowhere")


def test_two_layers_of_one_name_or_none_are_refused(opened):
    with pytest.raises(ConfigError, match="at least one layer, each with a name of its own"):
        Opened.of([opened.layers[0], opened.layers[0]])
    with pytest.raises(ConfigError, match="at least one layer"):
        Opened.of([])


# ---- Look


def test_look_shows_what_sample_draws_and_marks_what_the_model_says_of_it(opened):
    layer, shown = opened.layers[1], opened.examples[0]
    answer = look(layer, shown, count=5, seed=3)
    first, drawn = answer.rows
    given = shown.picture[None]
    expected = layer.interpreter.sample(given, n=5, seed=3)[0]
    for card, picture in zip(drawn.cards, expected, strict=True):
        torch.testing.assert_close(card.picture, picture)
    pipeline = layer.pipeline
    own = int(pipeline.predict(given).argmax())
    asked = pipeline.ask_model(expected)[1].softmax(1).max(1)
    assert [card.mark for card in drawn.cards] == ["same" if k == own else "other" for k in asked.indices.tolist()]
    assert [card.says for card in drawn.cards] == [
        f"digit {k}, {100 * p:.0f} %" for k, p in zip(asked.indices.tolist(), asked.values.tolist(), strict=True)
    ]
    assert [card.title for card in first.cards] == ["the picture", "reconstructed"]
    same = sum(card.mark == "same" for card in drawn.cards)
    assert f"The model predicts the same for {same} of 5 samples as for the picture." in answer.told


def test_numbers_out_of_range_are_brought_into_it(opened):
    layer, shown = opened.layers[0], opened.examples[0]
    assert len(look(layer, shown, count=10_000, seed=-5).rows[1].cards) == MOST
    assert len(look(layer, shown, count=0).rows[1].cards) == 1


def test_a_picture_unlike_the_data_is_doubted(opened):
    noise = Shown("noise", torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0)).round())
    doubts = look(opened.layers[0], noise, count=1).doubts[:1]
    found = opened.layers[0].interpreter.outside(noise.picture[None])
    assert doubts == ((found.told_by(["noise"]),) if found.images else ())
    assert found.images, "the small fit takes noise for a digit: choose other noise"


def test_mixing_sets_v_of_one_picture_beside_z_of_the_other(opened):
    layer, (a, b) = opened.layers[1], opened.examples[:2]
    answer = mix(layer, a, b)
    images = [shown.picture[None] for shown in (a, b)]
    for row, (z, v) in zip(answer.rows, ((0, 1), (1, 0)), strict=True):
        mixed = row.cards[2]
        expected = layer.interpreter.reconstruct(images[v], z_of=images[z])[0]
        torch.testing.assert_close(mixed.picture, expected, atol=1e-5, rtol=0)
        assert [card.title for card in row.cards] == [
            ("the picture", "the other")[z],
            "with its own v",
            f"with v of {('the picture', 'the other')[v]}",
        ]


def test_a_fit_whose_figures_are_poor_is_doubted_and_they_are_named(opened, monkeypatch):
    layer = opened.layers[0]
    poor = [finding.label for finding in numbers(layer) if finding.status == "poor"]
    assert poor, "a t of eight steps is good?"
    assert f"Some figures of this fit are poor: {poor[0]}" in look(layer, opened.examples[0], count=1).doubts[-1]
    monkeypatch.setattr(layer.interpreter, "metrics_", {})
    assert layer.warnings == ()


# ---- Concepts


def test_concepts_are_listed_with_what_none_describes_last(opened, without_concepts):
    assert concept_names(opened.layers[0]) == ["digit", "background", "residual"]
    assert concept_names(without_concepts) == []
    with pytest.raises(NotFittedError, match=r"alone has no concepts\. Fit with them: posthoc-inn fit --concepts"):
        changed(without_concepts, opened.examples[0], "digit", torch.zeros(2))


def test_a_slider_sets_its_dimension_and_leaves_all_else(opened):
    layer, shown = opened.layers[0], opened.examples[0]
    value = own_value(layer, shown, "digit")
    torch.testing.assert_close(value, layer.interpreter.factors(shown.picture[None])["digit"][0])
    found = knobs(layer, "digit", value)
    model = layer.concepts
    deviation = model.deviation[model.part("digit")]
    assert all(knob.low <= knob.value <= knob.high for knob in found)
    new = turned(layer, "digit", value, [knob.value for knob in found[:-1]] + [2.5])
    expected = value.clone()
    expected[found[-1].dimension] = 2.5 * deviation[found[-1].dimension]
    torch.testing.assert_close(new, expected, atol=2e-3, rtol=0)
    answer = changed(layer, shown, "digit", new)
    edited = layer.interpreter.edit(shown.picture[None], "digit", value=new)[0]
    torch.testing.assert_close(answer.rows[0].cards[2].picture, edited)
    assert answer.rows[0].cards[2].bars, "no probabilities"
    share = float(layer.pipeline.ask_model(edited[None])[1].softmax(1).max())
    assert math.isclose(answer.rows[0].cards[2].bars[0].share, share, rel_tol=1e-5)


def test_the_way_to_the_other_picture_ends_at_its_value(opened):
    layer, (a, b) = opened.layers[0], opened.examples[:2]
    for amount, end in ((0, a), (-2, a), (1, b), (7, b)):
        torch.testing.assert_close(between(layer, a, b, "digit", amount), own_value(layer, end, "digit"))
    half = (own_value(layer, a, "digit") + own_value(layer, b, "digit")) / 2
    torch.testing.assert_close(between(layer, a, b, "digit", 0.5), half)


def test_each_concept_is_taken_from_the_other_picture(opened):
    layer, (a, b) = opened.layers[0], opened.examples[:2]
    cards = taken(layer, a, b).rows[0].cards
    assert [card.title for card in cards] == ["digit of the other", "background of the other", "residual of the other"]
    for card, name in zip(cards, concept_names(layer), strict=True):
        expected = layer.interpreter.edit(a.picture[None], name, source=b.picture[None])[0]
        torch.testing.assert_close(card.picture, expected)


# ---- Attack


def test_an_attack_is_shown_through_every_layer_of_the_model(opened):
    require("captum", "attack", "This test")
    answer = attack(opened, opened.layers[0], opened.examples[0], method="fgsm", levels=16)
    model, seen = answer.rows
    assert [card.title for card in seen.cards] == ["reconstructed", "early", "late"]
    change = (model.cards[1].picture - model.cards[0].picture).abs()
    assert 0 < float(change.max()) <= 16 / 255 + 1e-6
    pipeline = opened.layers[0].pipeline
    for card in model.cards[:2]:
        label = int(pipeline.predict(card.picture[None]).argmax())
        assert card.says.startswith(f"digit {label}, ")
    assert any("the model's prediction. Random changes of the same size" in sentence for sentence in answer.told)


@pytest.mark.parametrize("method", ["fgsm", "pgd"])
def test_both_attacks_change_no_value_by_more_than_their_strength(opened, method):
    require("captum", "attack", "This test")
    model = attack(opened, opened.layers[2], opened.examples[1], method=method, levels=4).rows[0]
    assert float((model.cards[1].picture - model.cards[0].picture).abs().max()) <= 4 / 255 + 1e-6


# ---- Compare


def test_two_layers_are_compared_with_the_same_v(opened):
    left, right, _ = opened.layers
    answer = compare(left, right, opened.examples[2], count=4, seed=1)
    v = torch.randn(1, 4, left.pipeline.latent_dim, generator=torch.Generator().manual_seed(1))
    for row, layer in zip(answer.rows, (left, right), strict=True):
        assert row.heading == layer.name
        expected = layer.interpreter.sample(opened.examples[2].picture[None], n=4, v=v)[0]
        for card, picture in zip(row.cards[2:], expected, strict=True):
            torch.testing.assert_close(card.picture, picture)


# ---- Video


def test_a_turning_picture_begins_upright_and_is_upside_down_in_the_middle(opened):
    picture = opened.examples[0].picture
    frames = list(turning(picture, 24))
    assert len(frames) == 24
    torch.testing.assert_close(frames[0], picture)
    torch.testing.assert_close(frames[12], picture.flip(1, 2), atol=1e-4, rtol=0)


def test_a_clip_is_seen_frame_by_frame_with_v_of_the_picture(opened, tmp_path):
    layer, shown = opened.layers[1], opened.examples[0]
    frames = list(turning(shown.picture, 5))
    counted = []
    clip = watch(layer, shown, iter(frames), done=counted.append)
    assert counted == [1, 2, 3, 4, 5]
    assert not clip.is_cut
    v = layer.interpreter.invariances(shown.picture[None])
    for frame, picture in zip(frames, clip.pictures, strict=True):
        expected = layer.interpreter.sample(frame[None], n=1, v=v)[0, 0]
        torch.testing.assert_close(picture, expected, atol=1e-5, rtol=0)
    answer = frame_of(clip, 3)
    torch.testing.assert_close(answer.rows[0].cards[1].picture, clip.pictures[2])
    assert frame_of(clip, 99).rows[0].heading == "late, frame 5 of 5"
    path = written(clip, tmp_path / "clip.webp")
    with Image.open(path) as animation:
        assert animation.n_frames == 5
        assert animation.size == (8 * (28 + 2 + 28), 8 * 28)


def test_a_clip_of_a_file_is_cut_where_it_is_too_long(opened, tmp_path):
    frames = [Image.new("RGB", (8, 8), (k, 255 - k, 3 * k % 255)) for k in range(FRAMES + 3)]
    frames[0].save(tmp_path / "long.gif", save_all=True, append_images=frames[1:], duration=40)
    clip = watch(opened.layers[0], opened.examples[0], clip_of_file(tmp_path / "long.gif"), fixed="z")
    assert len(clip.frames) == FRAMES
    assert clip.is_cut
    assert frame_of(clip, 1).told == (f"Only the first {FRAMES} frames are shown.",)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("film.mp4", b"film", r"^film.mp4 is no animation that is read: .apng, .gif, .png, .webp"),
        ("broken.gif", b"GIF89a broken", r"^broken.gif is damaged or no image"),
    ],
)
def test_a_broken_clip_is_refused_by_its_name(opened, tmp_path, name, data, message):
    with pytest.raises(DataError, match=message) as caught:
        watch(opened.layers[0], opened.examples[0], clip_of_file(file_of(tmp_path, name, data)))
    assert str(tmp_path) not in str(caught.value)


# ---- Numbers, words, HTML


def test_numbers_are_the_reports_findings(opened):
    found = numbers(opened.layers[0])
    labels = [finding.label for finding in found]
    assert len(labels) > 5
    page = html.of_findings(found)
    assert all(html.escape(finding.value) in page for finding in found)
    assert "holds no figures" in html.of_findings([])


@pytest.mark.parametrize("words", PARTS, ids=lambda words: words.name)
def test_each_part_says_what_to_conclude_and_what_not_and_the_guide_explains_it(words):
    assert words.conclude.startswith("What to conclude:")
    assert words.limits.startswith("What not to conclude:")
    assert len(section(words.section)) > 200, f"the guide has no section {words.section!r}"
    assert "](#" not in section(words.section)


def test_the_guide_is_found():
    assert guide().startswith("# Guide")


def test_names_that_strangers_gave_are_only_text(opened):
    evil = "<img src=x onerror=alert(1)>\"'${value}{{x}}\x1b[2J"
    card = Card(opened.examples[0].picture, evil, evil, "other", (Bar(evil, 0.5),))
    page = html.of_answer(Answer((Row(evil, (card,)),), (evil,), (evil,)))
    page += html.of_problem(evil) + html.of_choice(evil, Shown(evil, opened.examples[0].picture)) + html.of_advice(evil)
    assert "<img src=x" not in page
    assert "\x1b" not in page
    assert page.count("&lt;img src=x") >= 8
    assert "…" in html.text("a" * 1000)


def test_a_picture_has_a_description_and_its_mark_is_no_mere_colour(opened):
    page = html.of_answer(Answer((Row("", (Card(opened.examples[0].picture, "sample 1", "3, 90 %", "other"),)),)))
    assert 'alt="sample 1: 3, 90 % (another prediction)"' in page
    assert "✗ 3, 90 %" in page


@pytest.mark.parametrize(
    ("kind", "texts"),
    [("multilabel", ["digit 1, digit 2", "no label"]), ("embedding", ["output's cosine 1.00", "output's cosine 0.00"])],
)
def test_models_that_give_no_classes_are_told_of_too(opened, monkeypatch, kind, texts):
    layer = opened.layers[0]
    extractor = layer.pipeline.extractor
    monkeypatch.setattr(extractor, "kind", kind)
    monkeypatch.setattr(extractor, "threshold", 0.5)
    output = torch.zeros(2, 10)
    output[0, 1:3] = 1.0
    if kind == "embedding":
        output[1, 5] = 1.0
    found = said_of(layer, output, output[:1])
    assert [said.text for said in found] == texts


def test_every_problem_of_a_part_is_one_that_a_visitor_is_told(opened):
    wrong = Shown("wrong", torch.rand(2, 28, 28))
    with pytest.raises(PosthocInnError, match="must have 1 or 3 channels"):
        look(opened.layers[0], wrong)


def test_a_layer_fitted_to_normalised_tensors_gets_them(without_concepts):
    layer: FittedLayer = without_concepts
    assert layer.given(Shown("x", torch.rand(3, 28, 28))).shape == (1, 3, 28, 28)
