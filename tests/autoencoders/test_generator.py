"""Generators as decoders: draws made once, fits over them, what needs an encoder, and bundles."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_parts import TINY
from torch import nn
from torch.utils.data import DataLoader

from posthoc_inn import (
    BundleError,
    ConfigError,
    DataError,
    GivenGenerator,
    Interpreter,
    PosthocInnWarning,
    ShapeError,
    judged,
)
from posthoc_inn.bundle.modules import world_specs
from posthoc_inn.rows.cache import Cache
from posthoc_inn.rows.world import World

D, KEPT = 6, 3
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(64, D)))[0].T
LONGER = TINY.replace(flow_training=TINY.flow_training.replace(steps=150, batch_size=128, eval_every=50, lr=3e-3))


class Linear:
    """8 x 8 pictures that are linear in w, in NumPy; it counts them, and can fail after so many."""

    def __init__(self, basis=BASIS, fails_after=10**9):
        self.basis, self.made, self.fails_after = basis, 0, fails_after

    def __call__(self, w):
        if self.made + len(w) > self.fails_after:
            raise KeyboardInterrupt
        self.made += len(w)
        return (w.numpy() @ self.basis * 0.25 + 0.5).reshape(-1, 1, 8, 8)


def generator_of(decode=None, **options):
    return GivenGenerator(decode or Linear(), D, channels=1, **options)


def reader_of_w():
    """A network whose z is the first three values of w."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, KEPT), nn.Tanh())
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(BASIS[:KEPT] / 0.25))
        model[1].bias.copy_(-0.5 * model[1].weight.sum(1))
    return model.eval()


def interpreter_of(generator, preset=TINY, model=None):
    return Interpreter(model or reader_of_w(), "1", autoencoder=generator, preset=preset, prediction_kind="none")


@pytest.fixture(scope="module")
def fitted():
    generator = generator_of()
    labels = {"left": (generator.draws(600).latents[:, 0] > 0).long()}
    interpreter = interpreter_of(generator, LONGER)
    return interpreter.fit(generator.draws(600), concepts=labels)


# ---- draws


def test_a_draw_is_a_function_of_seed_and_index():
    few, many = generator_of().draws(5, seed=3), generator_of().draws(40, seed=3)
    assert torch.equal(few.latents, many.latents[:5])
    assert torch.equal(few.images([4, 1]), many.images(range(40))[[4, 1]])
    assert not torch.equal(few.latents, generator_of().draws(5, seed=4).latents)


def test_pictures_are_made_once_and_kept_in_a_directory(tmp_path):
    first = generator_of().draws(20, keep=tmp_path / "kept")
    wanted = first.images(range(12))
    decode = Linear()
    again = generator_of(decode).draws(20, keep=tmp_path / "kept")
    before = decode.made
    assert torch.equal(again.images(range(12)), wanted)
    assert decode.made == before
    again.images(range(20))
    assert decode.made == before + 8
    with pytest.raises(ConfigError, match="pictures of other draws"):
        generator_of().draws(20, seed=1, keep=tmp_path / "kept").images([0])


def test_priors_can_be_a_callable_a_tensor_or_a_file(tmp_path):
    table = torch.arange(30 * D).float().reshape(30, D) / 200
    save_file({"w": table}, tmp_path / "w.safetensors")
    called = generator_of(prior=lambda n, g: 0.1 * torch.randn(n, D, generator=g)).draws(50).latents
    assert 0.05 < float(called.std()) < 0.15
    for prior in (table, tmp_path / "w.safetensors", str(tmp_path / "w.safetensors")):
        drawn = generator_of(prior=prior).draws(30).latents
        assert torch.equal(drawn[drawn[:, 0].argsort()], table)
    with pytest.raises(DataError, match="30 latents, and 31 draws"):
        generator_of(prior=table).draws(31)
    with pytest.raises(DataError, match=r"\(n, 6\)"):
        generator_of(prior=lambda n, g: torch.zeros(n, 2))
    with pytest.raises(ConfigError, match="prior must be"):
        generator_of(prior="uniform")


def test_what_a_generator_gives_is_checked_at_once():
    with pytest.raises(ShapeError, match="channels= says how many"):
        GivenGenerator(Linear(), D)
    with pytest.raises(DataError, match="image_range='symmetric'"):
        generator_of(lambda w: np.full((len(w), 1, 8, 8), -0.9))
    with pytest.raises(DataError, match="not finite"):
        generator_of(lambda w: np.full((len(w), 1, 8, 8), np.nan))
    with pytest.raises(DataError, match=r"fails on latents \(1, 6\), float32: ZeroDivisionError.*together=1"):
        generator_of(lambda w: 1 // 0)
    with pytest.raises(ConfigError, match=r"latent_dim must be at least 2.*together"):
        GivenGenerator(Linear(), 1, together=0)


def test_symmetric_values_bytes_and_modules_serve():
    unit = generator_of().decode(torch.ones(1, D))
    symmetric = generator_of(lambda w: Linear()(w) * 2 - 1, image_range="symmetric").decode(torch.ones(1, D))
    in_bytes = generator_of(lambda w: (Linear()(w) * 255).round().astype(np.uint8)).decode(torch.ones(1, D))
    torch.testing.assert_close(unit, symmetric)
    torch.testing.assert_close(unit, in_bytes, atol=0.01, rtol=0)
    module = nn.Sequential(nn.Linear(D, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
    assert len(list(generator_of(module).parameters())) == 2


def test_a_smaller_size_is_what_is_shown_and_the_model_gets_the_generators_own():
    generator = generator_of(lambda w: np.kron(Linear()(w), np.ones((4, 4))), size=8)
    assert generator.native_shape == (1, 32, 32)
    assert generator.draws(4)[0].shape == (1, 32, 32)
    assert generator.decode(torch.zeros(2, D)).shape == (2, 1, 8, 8)
    seen = []
    model = nn.Sequential(nn.Conv2d(1, 2, 32), nn.Flatten(), nn.Linear(2, 2))
    model[0].register_forward_hook(lambda module, inputs, out: seen.append(inputs[0].shape[-1]))
    fitted = Interpreter(model, "1", autoencoder=generator, preset=TINY).fit(40)
    assert set(seen) == {32}
    assert fitted.sample(generator.draws(4).images([0, 1]), n=2).shape == (2, 2, 1, 8, 8)


# ---- fits


def test_samples_keep_what_z_tells_of_w_and_v_has_the_rest(fitted):
    generator = fitted.autoencoder_
    pictures = generator.draws(40, seed=9).images(range(40))
    z = fitted.model[:2](pictures.flatten(1)).detach()
    found = fitted.sample(pictures, n=20)
    again = fitted.model[:2](found.flatten(0, 1).flatten(1)).detach().reshape(40, 20, KEPT)
    assert float((again - z[:, None]).square().mean()) < 0.35 * float(z.var())
    rest = torch.tensor(BASIS[KEPT:] / 0.25).float()
    ignored = (found.flatten(2) - 0.5) @ rest.T
    assert float(ignored.var(1).mean()) > 0.6
    assert 0.35 < fitted.explained_by_invariances(pictures).value < 0.75
    assert fitted.metrics_["likelihood"]["held_out"] < fitted.metrics_["likelihood"]["standard_normal"] - 1
    assert fitted.metrics_["autoencoder"] is None
    assert fitted.sample(z=z[:2], n=3).shape == (2, 3, 1, 8, 8)


def test_draws_can_be_edited_walked_recombined_and_reported(fitted, tmp_path):
    draws = fitted.autoencoder_.draws(8, seed=2)
    pictures = draws.images(range(4))
    torch.testing.assert_close(fitted.reconstruct(pictures), pictures, atol=0.02, rtol=0)
    assert fitted.edit(pictures, "left", n=2).shape == (4, 2, 1, 8, 8)
    assert fitted.walk(pictures[:2], pictures[2:], steps=3).shape == (2, 3, 1, 8, 8)
    assert fitted.direction(pictures[:2], pictures[2:]).shape == (D,)
    assert fitted.log_likelihood(pictures).shape == (4,)
    assert fitted.analyze("recombination", pictures) is not None
    assert [c["name"] for c in fitted.metrics_["concepts"]["relevance"]["concepts"]][1] == "left"
    assert "generator" in fitted.report(tmp_path / "report.html").read_text()


def test_photographs_have_samples_and_what_needs_an_encoder_says_so(fitted):
    photographs = generator_of().draws(2, seed=77).images([0, 1])
    assert fitted.sample(photographs, n=2).shape == (2, 2, 1, 8, 8)
    assert fitted.analyze("samples", photographs) is not None
    for ask in (fitted.invariances, fitted.reconstruct, fitted.log_likelihood, lambda x: fitted.edit(x, "left", n=1)):
        with pytest.raises(ConfigError, match=r"2 of these 2 images are none of its draws.*Inverter"):
            ask(photographs)
    with pytest.raises(ConfigError, match="Inverter"):
        interpreter_of(generator_of()).fit(torch.rand(40, 1, 8, 8))


def test_a_judge_gives_a_column_of_labels(fitted):
    draws = fitted.autoencoder_.draws(40)
    scores = judged(draws, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    assert scores.dtype == torch.int64
    assert len(scores) == 40
    assert judged(draws, lambda x: x.mean((1, 2, 3)).numpy()).is_floating_point()
    with pytest.raises(ShapeError, match="must give values"):
        judged(draws, lambda x: x)
    found = interpreter_of(fitted.autoencoder_).fit(
        draws.with_labels({"upper": draws.latents[:, 1] > 0}), concepts="labels", evaluate=False
    )
    assert found.concept_model_.names[0] == "upper"


def test_a_number_loaders_and_parts_of_draws_are_understood():
    generator = generator_of()
    fitted = interpreter_of(generator).fit(30, held_out=generator.draws(10, seed=1), evaluate=False)
    assert fitted.history_ is not None
    interpreter_of(generator).fit(DataLoader(generator.draws(30), batch_size=7, shuffle=True), evaluate=False)
    with pytest.raises(ConfigError, match="the autoencoder is none"):
        Interpreter(reader_of_w(), "1").fit(30)
    with pytest.raises(ConfigError, match="draws of a generator, which must be the autoencoder"):
        interpreter_of(generator).fit(generator_of().draws(30))
    with pytest.raises(ConfigError, match="several passes"):
        interpreter_of(generator).fit(30, draws=2)
    with pytest.raises(ConfigError, match="image_metrics compare"):
        interpreter_of(generator).fit(30, image_metrics=["ssim"])


def test_the_plan_tells_the_seconds_of_a_draw():
    decode = Linear()
    plan = interpreter_of(generator_of(decode)).plan(5000)
    assert any("4,500 draws of the generator" in line for line in plan.lines)
    assert decode.made < 60


def test_a_run_that_is_killed_while_it_makes_pictures_goes_on_after_them(tmp_path):
    labels = {"left": generator_of().draws(500).latents[:, 0] > 0}
    decode = Linear(fails_after=300)
    with pytest.raises(KeyboardInterrupt):
        interpreter_of(generator_of(decode)).fit(500, concepts=labels, out=tmp_path / "run", evaluate=False)
    later = Linear()
    resumed = interpreter_of(generator_of(later))
    resumed.fit(500, concepts=labels, out=tmp_path / "run", resume=True, evaluate=False)
    # 256 of 450 rows were complete; some pictures are looked at before.
    assert later.made < 500 - 256 + 60
    generator = generator_of()
    whole = interpreter_of(generator).fit(500, concepts=labels, evaluate=False)
    pictures = generator_of().draws(4).images([0, 1])
    assert torch.equal(resumed.sample(pictures), whole.sample(pictures))
    known = resumed.autoencoder_.draws(4).images([0, 1]), generator.draws(4).images([0, 1])
    assert torch.equal(resumed.edit(known[0], "left", n=2), whole.edit(known[1], "left", n=2))


def test_a_run_of_other_draws_is_not_gone_on_with(tmp_path):
    decode = Linear(fails_after=200)
    with pytest.raises(KeyboardInterrupt):
        interpreter_of(generator_of(decode)).fit(300, out=tmp_path, evaluate=False)
    other = Linear(np.roll(BASIS, 1, 1))
    with pytest.raises(Exception, match="set of images"):
        interpreter_of(generator_of(other)).fit(300, out=tmp_path, resume=True, evaluate=False)


# ---- what no draw resembles


def test_photographs_outside_of_the_generators_world_are_warned_of(fitted, tmp_path):
    draw = fitted.autoencoder_.draws(6, seed=3).images(range(6))
    far = draw.clone()
    far[4] = (torch.tensor(BASIS[0]).float().reshape(1, 8, 8) * 4 + 0.5).clamp(0, 1)
    fitted.sample(draw, n=1)
    with pytest.warns(PosthocInnWarning, match=r"z of 1 of 6 images .* image 4 \(.* clipped\).* all 60 held-out draws"):
        fitted.sample(far, n=1)
    fitted.save(tmp_path / "bundle")
    loaded = Interpreter.load(tmp_path / "bundle", model=fitted.model, autoencoder=fitted.autoencoder_)
    with pytest.warns(PosthocInnWarning, match="image 4"):
        loaded.sample(far, n=1)
    z = fitted.pipeline.features(draw)
    torch.testing.assert_close(loaded.pipeline.world.distance(z), fitted.pipeline.world.distance(z))


def test_sizes_of_a_world_in_a_bundle_are_bounded(tmp_path):
    for sizes in ({"coordinates": 10**9, "components": 1, "draws": 1}, {"coordinates": 5}, [1], "x"):
        with pytest.raises(BundleError, match="no sizes of a world"):
            world_specs(sizes, tmp_path)


def test_distances_to_the_world_are_those_of_a_gaussian():
    basis = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(3000, 9, generator=torch.Generator().manual_seed(1)) @ basis + 2
    train, held_out = Cache(), Cache()
    train.append(z=rows[:2500].reshape(-1, 3, 3))
    held_out.append(z=rows[2500:].reshape(-1, 3, 3))
    world = World.of(train, held_out)
    off = (rows[2500:] - rows[:2500].mean(0)).double()
    wanted = (off @ torch.linalg.inv(torch.cov(rows[:2500].T.double())) * off).sum(1).sqrt()
    torch.testing.assert_close(world.distance(rows[2500:].reshape(-1, 3, 3)), wanted, rtol=2e-3, atol=0)
    torch.testing.assert_close(world.distances.double(), wanted.sort().values, rtol=2e-3, atol=0)


# ---- bundles


def test_a_bundle_comes_back_with_the_same_generator_alone(fitted, tmp_path):
    fitted.save(tmp_path / "bundle")
    loaded = Interpreter.load(tmp_path / "bundle", model=fitted.model, autoencoder=generator_of())
    pictures = fitted.autoencoder_.draws(4).images([0, 1])
    assert torch.equal(loaded.sample(pictures), fitted.sample(pictures))
    for other, message in (
        (None, "autoencoder="),
        (generator_of(Linear(np.roll(BASIS, 1, 1))), "makes other pictures"),
        (GivenGenerator(lambda w: Linear()(w[:, :D]), D + 1, channels=1), "latent_dim=7"),
    ):
        with pytest.raises(BundleError, match=message):
            Interpreter.load(tmp_path / "bundle", model=fitted.model, autoencoder=other)
