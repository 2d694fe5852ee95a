"""What becomes of a name, whoever gave it: in text, in messages, in JSON, in files' names."""

from __future__ import annotations

import json

import pytest
from hostile_names import HOSTILE_NAMES

from posthoc_inn.concepts.model import check_names
from posthoc_inn.errors import ConfigError, PosthocInnError, listed, quoted, shown, suggest
from posthoc_inn.files import plain, replace_file
from posthoc_inn.names import file_name, visible

hostile = pytest.mark.parametrize("name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES.keys())


@hostile
def test_a_visible_name_steers_nothing_and_fits_utf_8(name):
    text = visible(name)
    assert not set(text) & {chr(k) for k in (*range(32), 127)}
    assert "\u202e" not in text
    text.encode()
    assert visible(text) == text


@pytest.mark.parametrize("name", ["日本", "👩‍🔬🦜", "a b", "\u3000", "$x^$", "[red]"])
def test_what_harms_nothing_stays_as_it_is(name):
    assert visible(name) == name


@hostile
def test_a_quoted_name_is_one_short_line(name):
    for text in (shown(name, 80), quoted(name)):
        assert len(text) <= 80
        assert text == visible(text)


@hostile
def test_json_keeps_the_true_name_and_any_file_can_hold_it(name, tmp_path):
    replace_file(tmp_path / "a.json", json.dumps(plain({name: [name]}), ensure_ascii=False))
    (key,) = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert key == name or (name == HOSTILE_NAMES["undecodable"] and key == "caf\\udce9")
    replace_file(tmp_path / "a.txt", name)
    assert (tmp_path / "a.txt").read_bytes()[:4] == name.encode("utf-8", "backslashreplace")[:4]


@hostile
def test_a_file_name_stays_in_its_directory(name, tmp_path):
    found = file_name(name)
    assert (tmp_path / found).parent == tmp_path
    assert (tmp_path / found).resolve().parent == tmp_path.resolve()
    (tmp_path / found).write_text("")
    assert found.upper().partition(".")[0] != "CON"


def test_other_names_have_other_files():
    names = [*HOSTILE_NAMES.values(), "layer3.0", "n" * 5001, ".", "..", "con.txt", "a/b", "a_b"]
    assert len({file_name(name) for name in names}) == len(names)
    assert file_name("layer3.0") == "layer3.0"


def test_a_list_of_thousands_is_told_in_a_line():
    assert len(listed(["n" * 500] * 5000)) < 800
    assert len(suggest("n" * 10**6, ["n" * 5000] * 3000)) < 1200


def test_a_message_of_a_megabyte_keeps_its_beginning_and_its_advice():
    text = str(PosthocInnError(f"The name is {'x' * 10**6}. Choose another."))
    assert len(text) <= 1500
    assert text.startswith("The name is x")
    assert text.endswith(". Choose another.")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["digit", ""], "must not be blank, got ''"),
        (["digit", " \n"], r"must not be blank, got ' \\n'"),
        (["digit", "digit"], "there twice: digit"),
        (["digit", "n" * 5000], "up to 200 letters, got 5,000: 'nnn"),
        (["residual"], "'residual' means something else"),
        (["(random)"], "means something else"),
        (["digit", 3], "must be text, got 3, of the type int"),
    ],
)
def test_a_name_that_no_concept_can_have_is_refused(names, told):
    with pytest.raises(ConfigError, match=told) as error:
        check_names(names)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("name", ["$x^$", "日本", "a\nb", "[red]", "../x", "n" * 200])
def test_any_other_name_is_a_concepts(name):
    check_names([name, "other"])
