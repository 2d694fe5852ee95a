from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from posthoc_inn import interpreter
from posthoc_inn.bundle import load_bundle
from posthoc_inn.cli.main import main
from posthoc_inn.errors import DataError
from posthoc_inn.fit.lock import locked
from posthoc_inn.training import loop


class Killed(BaseException):
    """Stands for the end of the process."""


def figures(out):
    metrics = json.loads((out / "metrics.json").read_text())
    metrics.pop("seconds")
    for history in metrics["training"].values():
        history.pop("seconds")
    return metrics


def weights(out):
    bundle = load_bundle(out / "bundle")
    return {**bundle.autoencoder.state_dict(), **{f"flow.{k}": v for k, v in bundle.flow.state_dict().items()}}


@pytest.mark.parametrize("writes", [1, 2, 4])
def test_a_run_that_died_goes_on_to_the_same_result(ask, monkeypatch, pictures, quick, finished, tmp_path, writes):
    # Dies at once after its nth checkpoint: in the classifier, the autoencoder, or t.
    out, done = tmp_path / "run", []
    write = loop.write_checkpoint

    def dying(path, tensors, state):
        write(path, tensors, state)
        done.append(path.name)
        if len(done) == writes:
            raise Killed

    monkeypatch.setattr(loop, "write_checkpoint", dying)
    with pytest.raises(Killed):
        main(["fit", *quick, "--data", str(pictures), "--out", str(out), "--quiet"])
    assert done[-1] == {1: "classifier.safetensors", 2: "autoencoder.safetensors", 4: "t.safetensors"}[writes]
    monkeypatch.setattr(loop, "write_checkpoint", write)
    answer = ask("fit", "--out", out, "--resume", "--quiet")
    assert answer.code == 0, answer.err
    assert figures(out) == figures(finished)
    ours, theirs = weights(out), weights(finished)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_resumed_run_keeps_the_precision_that_was_measured(ask, monkeypatch, pictures, quick, tmp_path):
    from posthoc_inn.cli.fit import run as fit_run

    out, asked = tmp_path / "run", []
    options = [o for o in quick if o not in ("--precision", "32")]
    monkeypatch.setattr(fit_run.Run, "_train_classifier", lambda run: asked.append(run.precision) or exit_())

    def exit_():
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_run, "choose_precision", lambda *args: "bf16")
    assert ask("fit", *options, "--data", pictures, "--out", out, "--quiet").code == 130
    monkeypatch.setattr(fit_run, "choose_precision", lambda *args: "32")
    assert ask("fit", "--out", out, "--resume", "--quiet").code == 130
    assert asked == ["bf16", "bf16"]


def test_ctrl_c_says_how_to_go_on(ask, monkeypatch, pictures, quick, tmp_path):
    out = tmp_path / "run"
    write = loop.write_checkpoint

    def interrupting(path, tensors, state):
        write(path, tensors, state)
        if path.name.startswith("autoencoder"):
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_checkpoint", interrupting)
    answer = ask("fit", *quick, "--data", pictures, "--out", out, "--quiet")
    assert answer.code == 130
    assert answer.err.strip() == f"Interrupted. To go on: posthoc-inn fit --out {out} --resume"
    assert not (out / "metrics.json").exists()


SLOWLY = """
import sys
sys.path[:0] = sys.argv[1:3]
del sys.argv[1:3]
import pytest
from cli_helpers import make_quick
make_quick(pytest.MonkeyPatch())
from posthoc_inn.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("after", ["classifier", "autoencoder", "t"])
def test_kill_9_at_any_stage_can_be_resumed(ask, pictures, quick, tmp_path, after):
    out = tmp_path / "run"
    args = ["fit", *quick, "--classifier-steps", "300", "--autoencoder-steps", "100", "--steps", "100"]
    args += ["--data", str(pictures), "--out", str(out), "--quiet"]
    here = Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(here), str(here.parent), *args], stdout=subprocess.DEVNULL
    )
    waited = time.monotonic() + 120
    while not (out / "checkpoints" / f"{after}.safetensors").exists():
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < waited
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    answer = ask("fit", "--out", out, "--resume", "--quiet", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["figures"]["training"]["t"]["rows"][-1]["step"] <= 100


def test_what_cannot_be_measured_is_kept_and_measured_again(ask, monkeypatch, pictures, quick, tmp_path):
    out = tmp_path / "run"

    def failing(*args, **kwargs):
        raise DataError("The held-out images have gone.")

    with monkeypatch.context() as patch:
        patch.setattr(interpreter, "measure_fit", failing)
        answer = ask("fit", *quick, "--data", pictures, "--out", out, "--quiet")
    assert answer.code == 1
    told = "The held-out images have gone. This happened while the fit was measured: what was trained is in"
    assert f"{told} {out / 'bundle'}; with --resume" in answer.err
    assert load_bundle(out / "bundle").flow is not None
    monkeypatch.setattr(loop.Loop, "_one_step", lambda self: pytest.fail("nothing is to be trained"))
    assert ask("fit", "--out", out, "--resume", "--quiet").code == 0
    assert (out / "report.html").exists()


def test_nothing_is_begun_where_a_run_was_to_be_gone_on_with(ask, tmp_path):
    (tmp_path / "run").mkdir()
    answer = ask("fit", "--out", tmp_path / "run", "--resume")
    assert answer.code == 1
    assert f"There is no run in {tmp_path / 'run'} to go on with. Is --out the right directory?" in answer.err
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_that_says_what_to_fit_may_be_begun_by_resume(ask, pictures, quick, tmp_path):
    # As jobs of a cluster do, which are started again and again with one command.
    answer = ask("fit", *quick, "--data", pictures, "--out", tmp_path / "run", "--resume", "--quiet", "--steps", 2)
    assert answer.code == 0, answer.err


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_a_second_fit_does_not_touch_what_the_first_is_writing(ask, pictures, quick, finished, tmp_path, option):
    out = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((out / "fit.json").read_text())
    (out / "fit.json").write_text(json.dumps({**record, "finished": False}))
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with locked(out):
        answer = ask("fit", *quick, "--data", pictures, "--out", out, option, "--quiet")
        assert answer.code == 1
        assert f"Another fit is writing to {out} at this moment." in answer.err
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
