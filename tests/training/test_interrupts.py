"""Ctrl-C during training: heard where the process hears it, and its handler is put back."""

from __future__ import annotations

import os
import signal

import pytest

from posthoc_inn.training.loop import interrupt_flag


@pytest.fixture(autouse=True)
def _handler_of_the_tests():
    # A job that a shell starts in the background ignores it from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_is_a_flag_and_the_second_ends_the_run():
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupt_flag() as flag:  # noqa: PT012
        press()
        assert flag.is_set()
        press()
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_stays_ignored_where_it_is_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupt_flag() as flag:
        press()
        assert not flag.is_set()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_the_systems_own_handler_is_no_function():
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with pytest.raises(KeyboardInterrupt), interrupt_flag():  # noqa: PT012
        press()
        press()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_a_handler_of_foreign_code_is_left_alone(monkeypatch):
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *args: pytest.fail("it could not be put back"))
    with interrupt_flag() as flag:
        assert not flag.is_set()
