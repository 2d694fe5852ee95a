"""A run is gone on with only by the same images, model and settings, and by one fit at a time."""

from __future__ import annotations

import dataclasses
import shutil
import threading

import pytest
import torch
from small_parts import TINY, network
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from posthoc_inn import Interpreter
from posthoc_inn.concepts import AttributeSource
from posthoc_inn.errors import DataError, TrainingError
from posthoc_inn.fit.lock import locked
from posthoc_inn.progress import Reporter


def images(n=40, seed=0):
    return torch.rand(n, 3, 28, 28, generator=torch.Generator().manual_seed(seed))


class Stopping(Reporter):
    """Stops a fit once t has trained a few steps."""

    name = ""

    def stage(self, name, total):
        self.name = name

    def advance(self, done, figures=None):
        if self.name == "t" and done >= 5:
            raise KeyboardInterrupt


def interpreter(model=None, layer="3", **options):
    return Interpreter(model or network(), layer, preset=TINY, mean=(0.0,) * 3, std=(1.0,) * 3, **options)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    with pytest.raises(KeyboardInterrupt):
        interpreter().fit(images(), out=out, progress=Stopping())
    return out


@pytest.fixture
def begun(stopped, tmp_path):
    """A directory with a run that was stopped while t was trained."""
    return shutil.copytree(stopped, tmp_path / "run")


def test_the_same_fit_goes_on_to_what_it_would_have_come_to(begun):
    resumed = interpreter().fit(images().clone(), out=begun, resume=True)
    whole = interpreter().fit(images())
    assert all(torch.equal(a, b) for a, b in zip(resumed.flow_.parameters(), whole.flow_.parameters(), strict=True))


CHANGES = {
    "the set of images": lambda out: interpreter().fit(images(seed=1), out=out, resume=True),
    "one image of them": lambda out: interpreter().fit(
        torch.cat([images()[:-1], images(1, seed=2)]), out=out, resume=True
    ),
    "their order": lambda out: interpreter().fit(images().flip(0), out=out, resume=True),
    "held-out images": lambda out: interpreter().fit(images(), held_out=images(8, seed=3), out=out, resume=True),
    "the share held out": lambda out: interpreter().fit(images(), held_out=0.3, out=out, resume=True),
    "the seed": lambda out: interpreter(seed=1).fit(images(), out=out, resume=True),
    "the model": lambda out: interpreter(network(1)).fit(images(), out=out, resume=True),
    "the layer": lambda out: interpreter(layer="2").fit(images(), out=out, resume=True),
    "draws": lambda out: interpreter().fit(images(), draws=2, out=out, resume=True),
    "the normalisation": lambda out: Interpreter(network(), "3", preset=TINY, mean=(0.0,) * 3, std=(1.01,) * 3).fit(
        images(), out=out, resume=True
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_fit_is_refused_before_anything_is_trained(stopped, begun, change):
    with pytest.raises(TrainingError, match=r"cannot be resumed: the .* not what it was begun with\. Give the same"):
        CHANGES[change](begun)
    left = {file.relative_to(begun): file.read_bytes() for file in begun.rglob("*") if file.is_file()}
    assert left == {file.relative_to(stopped): file.read_bytes() for file in stopped.rglob("*") if file.is_file()}


def test_a_checkpoint_of_other_data_is_refused_where_the_record_is_gone(begun):
    (begun / "checkpoints" / "stages.json").unlink()
    with pytest.raises(TrainingError, match="autoencoder was trained on other data"):
        interpreter().fit(images(seed=1), out=begun, resume=True)


def test_another_autoencoder_is_refused(tmp_path):
    fitted = interpreter().fit(images())
    with pytest.raises(KeyboardInterrupt):
        interpreter(autoencoder=fitted.autoencoder_).fit(images(), out=tmp_path, progress=Stopping())
    other = interpreter(seed=5).fit(images()).autoencoder_
    with pytest.raises(TrainingError, match="the autoencoder is not what it was begun with"):
        interpreter(autoencoder=other).fit(images(), out=tmp_path, resume=True)


def test_other_values_of_a_concept_are_refused(tmp_path):
    values = torch.arange(40) % 2
    with pytest.raises(KeyboardInterrupt):
        interpreter().fit(images(), concepts={"a": values}, out=tmp_path, progress=Stopping())
    with pytest.raises(TrainingError, match="was trained on other data"):
        interpreter().fit(images(), concepts=AttributeSource({"a": values.flip(0)}), out=tmp_path, resume=True)


class Augmented(Dataset):
    """Draws from a generator of its own: no two passes are alike."""

    def __init__(self):
        self.rows, self.noise = images(), torch.Generator()
        self.noise.seed()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return (self.rows[index] + 0.1 * torch.rand(3, 28, 28, generator=self.noise)).clamp(0, 1)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(images())


@pytest.mark.parametrize(
    "data",
    [
        lambda: Augmented(),
        lambda: Stream(),
        lambda: DataLoader(images(), batch_size=7, shuffle=True),
        lambda: [(image, 0) for image in images()],
        lambda: (images(), torch.zeros(40)),
        lambda: {"image": images(), "label": torch.zeros(40)},
    ],
    ids=["augmented", "stream", "loader", "list", "pair", "dict"],
)
def test_data_of_every_kind_is_recognised(tmp_path, data):
    with pytest.raises(KeyboardInterrupt):
        interpreter().fit(data(), out=tmp_path, progress=Stopping())
    assert interpreter().fit(data(), out=tmp_path, resume=True).history_.stopped == "finished"


def test_a_second_fit_into_a_directory_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(DataError, match="Another fit is writing to"):
        interpreter().fit(images(), out=tmp_path)
    assert interpreter().fit(images(), out=tmp_path).history_.stopped == "finished"
    assert not (tmp_path / ".lock").exists()


class Removing(Reporter):
    """Removes the cache while the autoencoder is trained."""

    def __init__(self, out):
        super().__init__()
        self.out, self.name, self.removed = out, "", 0

    def stage(self, name, total):
        self.name = name

    def advance(self, done, figures=None):
        if self.name == "autoencoder" and done == 2:
            for file in (self.out / "cache").rglob("*.raw"):
                file.unlink()
                self.removed += 1


def test_a_cache_that_is_removed_in_mid_fit_is_no_loss(tmp_path):
    removing = Removing(tmp_path)
    fitted = interpreter().fit(images(), out=tmp_path, progress=removing)
    assert removing.removed >= 4
    whole = interpreter().fit(images())
    assert all(torch.equal(a, b) for a, b in zip(fitted.flow_.parameters(), whole.flow_.parameters(), strict=True))


class WithDropout(nn.Module):
    """A network that draws from the global generator whenever it runs."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x + 0 * torch.rand(1))


def test_two_fits_in_two_threads_come_to_what_each_comes_to_alone():
    wanted = [interpreter(seed=seed).fit(images()).flow_ for seed in (0, 1)]
    models, found = [nn.Sequential(WithDropout()) for _ in wanted], {}

    def run(seed):
        found[seed] = interpreter(models[seed], "0.net.3", seed=seed).fit(images()).flow_

    before = torch.get_rng_state()
    threads = [threading.Thread(target=run, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, flow in enumerate(wanted):
        pairs = zip(found[seed].parameters(), flow.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_configuration_is_still_compared(begun):
    more = dataclasses.replace(TINY, flow_training=TINY.flow_training.replace(steps=12))
    with pytest.raises(TrainingError, match="settings that differ: steps"):
        Interpreter(network(), "3", preset=more, mean=(0.0,) * 3, std=(1.0,) * 3).fit(images(), out=begun, resume=True)
