from __future__ import annotations

import pytest

from posthoc_inn.cli import doctor


def test_plugins_are_listed_with_what_they_register(ask):
    told = {p["distribution"]: p for p in ask("plugins", "--json").json["plugins"]}
    assert "small_cnn" in told["posthoc-inn"]["registered"]["backbone"]
    table = ask("plugins").out
    assert "small_cnn" in table
    assert "color-digits" in table


def test_every_name_of_a_kind_on_request(ask):
    assert "color-digits" in ask("plugins", "--names", "datasets").out.splitlines()
    assert "Did you mean 'dataset'?" in ask("plugins", "--names", "datset").err


def test_the_doctor_finds_nothing_broken_here(ask):
    answer = ask("doctor", "--json")
    assert answer.code == 0, answer.out
    told = {check["name"]: check for check in answer.json["checks"]}
    assert answer.json["ok"] is True
    assert told["embedded data"]["told"] == "1,797 digits"
    assert {"python", "torch", "precision", "disk here"} <= set(told)


def test_the_doctor_says_what_is_broken_and_goes_on(ask, monkeypatch):
    def fails():
        raise ImportError("no module named torch")

    monkeypatch.setattr(doctor, "_torch", fails)
    answer = ask("doctor")
    assert answer.code == 1
    assert "no module named torch" in answer.out
    assert "disk here" in answer.out


def test_an_old_dependency_is_broken(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: ["torch>=99.1", "no-such-thing>=1"])
    told = {check.name: check for check in doctor._dependencies()}
    assert (told["torch"].status, told["no-such-thing"].status) == ("broken", "broken")
    assert "pip install -U torch" in told["torch"].told


@pytest.mark.parametrize(("version", "numbers"), [("2.14.1+cpu", (2, 14, 1)), ("3.0rc1", (3, 0)), ("x", (0,))])
def test_versions_are_compared_by_their_numbers(version, numbers):
    assert doctor._numbers(version) == numbers
