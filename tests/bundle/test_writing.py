from __future__ import annotations

import errno
import os
import resource
import shutil
import signal

import pytest
from bundle_helpers import make_bundle, make_flow, make_model, sample

from posthoc_inn.bundle import load_bundle, save_bundle
from posthoc_inn.bundle import save as saving
from posthoc_inn.errors import BundleError


@pytest.fixture(scope="module")
def other():
    return make_bundle(flow=make_flow(seed=7))


def tree(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_a_bundle_that_is_there_is_not_replaced_unasked(saved, other):
    before = tree(saved)
    with pytest.raises(BundleError, match=r"bundle in .* already. Pass overwrite=True"):
        save_bundle(other, saved)
    assert tree(saved) == before


def test_overwriting_replaces_the_bundle_and_leaves_nothing_else(saved, other):
    save_bundle(other, saved, overwrite=True)
    assert sample(load_bundle(saved))[0].equal(sample(other)[0])
    assert set(os.listdir(saved)) == {"bundle.json", "weights.safetensors", "metrics.json", "README.md"}
    assert os.listdir(saved.parent) == ["run"]


def test_other_files_in_the_directory_are_left_alone(tmp_path, other):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "t.safetensors").write_bytes(b"1")
    (run / "report.html").write_text("report")
    save_bundle(make_bundle(), run)
    save_bundle(other, run, overwrite=True)
    assert (run / "checkpoints" / "t.safetensors").read_bytes() == b"1"
    assert (run / "report.html").read_text() == "report"
    load_bundle(run)


@pytest.mark.parametrize("name", ["README.md", "metrics.json", "bundle.json"])
def test_files_of_the_same_name_that_are_no_bundle_are_never_replaced(tmp_path, name):
    (tmp_path / name).write_text('{"a": 1}')
    with pytest.raises(BundleError, match=f"holds {name}, but no readable bundle"):
        save_bundle(make_bundle(), tmp_path, overwrite=True)
    assert tree(tmp_path) == {name: b'{"a": 1}'}


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(BundleError, match="run is a file; a bundle is a directory"):
        save_bundle(make_bundle(), tmp_path / "run", overwrite=True)


def test_missing_parents_are_made(tmp_path):
    load_bundle(save_bundle(make_bundle(), tmp_path / "a" / "b" / "run"))


def test_the_current_directory_can_hold_a_bundle(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    save_bundle(make_bundle(), ".")
    save_bundle(other, ".", overwrite=True)
    load_bundle(".")
    assert "bundle.json" in os.listdir()


def test_a_link_to_a_directory_is_followed(tmp_path, saved, other):
    (tmp_path / "latest").symlink_to(saved)
    save_bundle(other, tmp_path / "latest", overwrite=True)
    assert sample(load_bundle(saved))[0].equal(sample(other)[0])
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(BundleError, match="leads nowhere"):
        save_bundle(other, tmp_path / "nowhere")


def test_a_link_planted_as_a_member_is_replaced_and_not_followed(tmp_path, saved, other):
    outside = tmp_path / "precious"
    outside.write_text("precious")
    (saved / "README.md").unlink()
    (saved / "README.md").symlink_to(outside)
    save_bundle(other, saved, overwrite=True)
    assert outside.read_text() == "precious"
    assert not (saved / "README.md").is_symlink()


def test_new_files_get_the_users_usual_permissions(tmp_path):
    (tmp_path / "plain").mkdir()
    run = save_bundle(make_bundle(), tmp_path / "run")
    assert run.stat().st_mode == (tmp_path / "plain").stat().st_mode


class Full:
    """Lets `calls` calls of os functions pass, then says that the disk is full."""

    def __init__(self, function, calls, error):
        self.function, self.left, self.error = function, calls, error

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("function", ["fsync", "rename", "replace"])
@pytest.mark.parametrize("calls", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
def test_a_failure_at_any_step_leaves_the_old_bundle(saved, other, monkeypatch, function, calls, error):
    before = tree(saved)
    full = Full(getattr(os, function), calls, error)
    with monkeypatch.context() as patch:
        # after the failure, one that puts things back must work
        patch.setattr(saving.os, function, lambda *a, **k: full(*a, **k) if full.left >= 0 else full.function(*a, **k))
        expected = (
            pytest.raises(BundleError, match="No space left")
            if isinstance(error, OSError)
            else pytest.raises(KeyboardInterrupt)
        )
        with expected:
            save_bundle(other, saved, overwrite=True)
    assert tree(saved) == before
    assert os.listdir(saved.parent) == ["run"]
    load_bundle(saved)


def test_members_that_were_not_there_are_gone_again_after_a_failure(saved, monkeypatch):
    (saved / "README.md").unlink()
    before = tree(saved)
    model = make_model()
    full = Full(os.replace, 4, OSError(errno.ENOSPC, "No space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr(saving.os, "replace", lambda *a: full(*a) if full.left >= 0 else full.function(*a))
        with pytest.raises(BundleError, match="No space left"):
            save_bundle(make_bundle(model), saved, overwrite=True, model_state=model.state_dict())
    assert tree(saved) == before


@pytest.mark.parametrize("calls", [0, 2])
def test_a_full_disk_leaves_nothing_of_a_new_bundle(tmp_path, monkeypatch, calls):
    monkeypatch.setattr(saving.os, "fsync", Full(os.fsync, calls, OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(BundleError, match=r"cannot be written: No space left on device. It needs [0-9,]+ bytes"):
        save_bundle(make_bundle(), tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_a_file_that_may_not_grow_gives_a_clear_error(tmp_path):
    """The kernel itself refuses, in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(BundleError, match="cannot be written: File too large"):
            save_bundle(make_bundle(), tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("moved", [1, 2, 3, 4])
def test_a_save_killed_between_two_renames_is_noticed_and_can_be_repeated(saved, other, moved):
    """kill -9 leaves some new members and some old ones; the digests refuse the mixture."""
    save_bundle(other, saved.parent / "new")
    names = ["bundle.json", "weights.safetensors", "metrics.json", "README.md"]
    (saved / ".run.partial").mkdir()
    for name in names[:moved]:
        shutil.copy(saved.parent / "new" / name, saved / name)
    if moved == 1:
        with pytest.raises(BundleError, match="sha256"):
            load_bundle(saved)
    save_bundle(other, saved, overwrite=True)
    assert sample(load_bundle(saved))[0].equal(sample(other)[0])
    assert not (saved / ".run.partial").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_to_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(BundleError, match="cannot be written: Permission denied"):
        save_bundle(make_bundle(), tmp_path / "run")
