"""Each timing script of the flow runs from end to end on tiny sizes and prints its table; no time is asserted."""

from __future__ import annotations

import pytest
import torch

MISSING = "the benchmark extra is not installed (pip install -e '.[bench]')"


def needs_libraries():
    for name in ("FrEIA", "nflows", "zuko"):
        pytest.importorskip(name, reason=MISSING)


def run(load, capsys, script, *arguments):
    load(script).main(["--smoke", "--threads", "1", *arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize("separate", [[], ["--only-separate"]])
def test_training_step_compares_and_takes_our_step_apart(load, capsys, separate):
    needs_libraries()
    out = run(load, capsys, "training_step", *separate)
    assert "times as fast as the fastest of the libraries" in out
    assert "share of the ceiling" in out
    assert "where the time of our step goes" in out
    assert ("zuko" in out) == (not separate)


@pytest.mark.slow
def test_sampling_compares_time_and_memory(load, capsys):
    needs_libraries()
    out = run(load, capsys, "sampling")
    assert "7 samples for each of 3 images" in out
    assert "zuko, in chunks" in out


def test_time_to_likelihood_prints_curve_and_factor(load, capsys):
    needs_libraries()
    out = run(load, capsys, "time_to_likelihood", "--library-lr", "1e-3", "1e-2")
    assert "held-out nats after seconds of training" in out
    assert "zuko, Adam 0.01" in out
    assert "the libraries' best value" in out


def test_time_to_likelihood_keeps_encoded_rows_and_says_what_it_needs(load, capsys, tmp_path):
    script = load("time_to_likelihood")
    with pytest.raises(SystemExit):
        script.main(["--threads", "1"])
    assert "--bundle and --model-weights" in capsys.readouterr().err
    rows = script.synthetic(20, 4, 3, seed=1)
    path = tmp_path / "latents.safetensors"
    script.keep(path, rows, rows)
    for cache in script.kept(path):
        assert all(torch.equal(cache[name].tensor(), rows[name].tensor()) for name in script.COLUMNS)


def test_small_presets_compares_plain_versions(load, capsys):
    out = run(load, capsys, "small_presets")
    assert "plain, merged heads, bf16 autocast" in out
    assert out.count("times as fast as plain") == 2


def test_counted_operations_are_those_of_the_paper_size(load):
    """Issue 3 counts 149 GFLOP for a step of 97 M parameters: 6 per parameter and row, less the context's gradient."""
    from posthoc_inn.config import preset
    from posthoc_inn.flows import CouplingFlow

    config = preset("paper-comparison").flow.replace(separate_nets=False)
    with torch.device("meta"):
        flow = CouplingFlow(config)
    parts = load("training_step").count_parts(flow, 256, "bf16")
    context = 2 * 256 * 40 * 128 * 1024
    weights = sum(p.numel() for p in flow.parameters() if p.ndim == 2)
    assert sum(part.operations for part in parts) == 6 * 256 * weights - context
    assert parts[-1].moved == pytest.approx(2.7e9, rel=0.02)


def test_interleaving_gives_every_step_its_rounds(load):
    calls = []
    timings = load("harness").interleave(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3, warmup=1
    )
    assert calls.count("a") == calls.count("b") == 4
    assert all(len(timing.seconds) == 3 for timing in timings.values())


def test_product_training_takes_one_step_of_the_loop_a_call(load):
    from posthoc_inn.config import FlowConfig, preset
    from posthoc_inn.flows import CouplingFlow

    harness = load("harness")
    z_bar, context = torch.randn(32, 4), torch.randn(32, 3)
    flow = CouplingFlow(FlowConfig(dim=4, context_dim=3, blocks=1, width=8))
    flow.initialize(z_bar, context)
    config = harness.endless(preset("default").flow_training, batch_size=32).replace(steps=2)
    training = harness.ProductTraining(harness.ContextTask(flow, z_bar, context), config)
    state = torch.random.get_rng_state()
    seen = [flow.blocks[0].couplings[0].nets[0].output.weight.detach().clone()]
    for _ in range(2):
        assert not training.is_finished
        training.step()
        seen.append(flow.blocks[0].couplings[0].nets[0].output.weight.detach().clone())
    assert training.is_finished
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert torch.equal(state, torch.random.get_rng_state())


def test_precision_compares_likelihoods_at_equal_steps(load, capsys):
    out = run(load, capsys, "precision")
    assert "bf16 - 32" in out
    assert "mean difference" in out
