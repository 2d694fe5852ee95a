"""What can only fail late is found before anything is trained; what never ends is bounded."""

from __future__ import annotations

import itertools

import pytest
import torch
from small_parts import SPEC, TINY, network
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from posthoc_inn import Interpreter
from posthoc_inn.concepts import AttributeSource, GivenPairs
from posthoc_inn.errors import ConfigError, DataError
from posthoc_inn.fit import FitRequest
from posthoc_inn.fit.binding import ConceptRequest, bind
from posthoc_inn.fit.preparing import find_concepts
from posthoc_inn.progress import Reporter
from posthoc_inn.rows.cache import Cache

N = 40
X = torch.rand(N, 3, 28, 28, generator=torch.Generator().manual_seed(0))
HALVES = {"half": [k % 2 for k in range(N)]}


class Endless(IterableDataset):
    """Never ends, and counts how many of its images were asked for."""

    asked = 0

    def __iter__(self):
        for k in itertools.count():
            self.asked += 1
            yield X[k % N], k % 2


class Files(Dataset):
    """Images that bear file names."""

    def __init__(self, names):
        self.files = list(names)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, k):
        return X[k]


def interpreter(**more):
    return Interpreter(network(), "2", **{"spec": SPEC, "preset": TINY, "precision": "32"} | more)


def unmatched(items):
    return torch.rand(len(items) - 1, 3, 28, 28), torch.zeros(len(items) - 1)


def never_with(*names):
    return GivenPairs({name: [(0, 1), (2, 3)] for name in names})


STREAM = DataLoader(Endless(), batch_size=8)
REFUSED = {
    "a stream": (STREAM, {"concepts": never_with("x"), "held_out": X[:8]}, DataError, "which image comes when"),
    "a part of a stream": (STREAM, {"concepts": never_with("x")}, DataError, "which image comes when"),
    "a collate function that makes images": (
        DataLoader(TensorDataset(X, torch.arange(N)), batch_size=8, collate_fn=unmatched),
        {"concepts": HALVES},
        DataError,
        "which image comes when",
    ),
    "more concepts than dimensions": (
        X,
        {"concepts": never_with(*"abcdefgh"), "held_out": X[:8]},
        ConfigError,
        "9 concepts and the residual need as many dimensions",
    ),
    "too few held-out images to measure concepts": (
        X[:20],
        {"concepts": {"half": HALVES["half"][:20]}},
        DataError,
        "holds 2 images, and concepts are measured on at least 3; hold out more, or pass evaluate=False",
    ),
    "one value left by the split": (
        X,
        {"concepts": {"rare": [1] + [0] * (N - 1)}, "held_out": 0.9},
        DataError,
        "'rare' has one value only among the 4 images",
    ),
    "a held-out loader that leaves everything out": (
        X,
        {"held_out": DataLoader(X[:8], batch_size=16, drop_last=True)},
        DataError,
        "Held-out data: The loader leaves out all 8 images: drop_last=True",
    ),
    "held-out concepts of another name": (
        X,
        {"concepts": HALVES, "held_out": X[:8], "held_out_concepts": {"other": [0, 1] * 4}},
        ConfigError,
        "concepts has half, held_out_concepts other; they must be the same",
    ),
    "options of what has none": (
        X,
        {"concepts": HALVES, "concept_options": {"columns": "half"}},
        ConfigError,
        "Options are for tables",
    ),
}


@pytest.mark.parametrize(("data", "arguments", "error", "match"), REFUSED.values(), ids=REFUSED)
def test_what_would_fail_after_training_is_refused_before(data, arguments, error, match):
    with pytest.raises(error, match=match):
        interpreter().prepare(FitRequest(data=data, **arguments))


def test_labels_need_no_places():
    fit = interpreter().prepare(FitRequest(data=STREAM, concepts="labels", held_out=0.25))
    assert fit.parts.concepts.source.names is None


def test_e_over_z_is_refused_before_images_are_read():
    it = interpreter().fit(X, evaluate=False)
    with pytest.raises(
        ConfigError, match="16 concepts and the residual need as many dimensions at least; there are 16"
    ):
        it.fit_concepts(X, never_with(*"abcdefghijklmno"), space="z")


def columns(n):
    cache = Cache()
    cache.append(image=torch.arange(n), z=torch.zeros(n, 1))
    return cache


class Draws:
    """A source without `subset`, one of whose concepts never comes alone."""

    names = ("a", "b")

    def __init__(self, count):
        self.count = count

    def pairs(self, n, *, seed):
        pick = torch.randint(self.count - 1, (n,), generator=torch.Generator().manual_seed(seed))
        return pick, pick + 1, torch.tensor([[False, True, False]]).repeat(n, 1)


def test_pairs_that_are_missing_are_missed_once_the_rows_are_read():
    with pytest.raises(DataError, match="'b' has no pairs among 8,192 drawn"):
        bind(ConceptRequest(Draws(10)), columns(10), columns(4))
    few = GivenPairs({"a": [(0, 1)]})
    bound = bind(ConceptRequest(few, Draws(10)), columns(10), columns(4))
    assert bound.held_out is None
    assert "held-out images give none" in bound.note


# ---- what never ends


class Notes(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_streams_are_read_as_far_as_the_steps_can_use(monkeypatch):
    monkeypatch.setattr("posthoc_inn.fit.preparing.FEWEST", 48)
    monkeypatch.setattr("posthoc_inn.fit.preparing.HELD_OUT", 16)
    reporter, stream = Notes(), Endless()
    it = interpreter()
    fit = it.prepare(
        FitRequest(
            data=DataLoader(stream, batch_size=8), held_out=DataLoader(Endless(), batch_size=8), steps=1,
            autoencoder_steps=1,
        ),
        reporter=reporter,
    )  # fmt: skip
    result = fit.run()
    assert (len(result.train), len(result.held_out)) == (48, 16)
    assert stream.asked < 300
    assert "training data does not tell how many images it holds: the first 48 are read" in " ".join(reporter.notes)


def test_a_part_of_a_stream_that_never_ends_is_held_out(monkeypatch):
    monkeypatch.setattr("posthoc_inn.fit.preparing.FEWEST", 48)
    it = interpreter()
    steps = {"steps": 1, "autoencoder_steps": 1, "evaluate": False}
    fit = it.prepare(FitRequest(data=DataLoader(Endless(), batch_size=8), held_out=0.25, **steps))
    it.learn(fit)
    assert (len(fit.result.train), len(fit.result.held_out)) == (36, 12)
    later = it.fit_concepts(DataLoader(Endless(), batch_size=8), "labels", held_out=0.25, steps=1)
    assert later.model.names == ("class", "(random)")


# ---- tables of concepts, and held-out images


def table(path, names):
    rows = "".join(f"{name},{k % 2},{k % 3}\n" for k, name in enumerate(names))
    path.write_text(f"file,half,third\n{rows}")
    return path


def test_a_table_that_names_held_out_files_serves_them_too(tmp_path):
    names = [f"{k}.png" for k in range(N)]
    data, held_out = Files(names[:30]), Files(names[30:][::-1])
    request = FitRequest(data=data, held_out=held_out, concepts=table(tmp_path / "t.csv", names))
    _, _, wanted = find_concepts(request, seed=0)
    assert wanted.held_out_source.names == ("half", "third")
    assert wanted.held_out_source.values["half"].tolist() == [k % 2 for k in range(30, N)][::-1]
    chosen = FitRequest(
        data=data, held_out=held_out, concepts=tmp_path / "t.csv", concept_options={"columns": "third"}
    )  # fmt: skip
    assert find_concepts(chosen, seed=0)[2].held_out_source.names == ("third",)


@pytest.mark.parametrize("is_named", [True, False])
def test_a_table_says_nothing_of_images_that_it_does_not_name(is_named, tmp_path):
    names = [f"{k}.png" for k in range(20)]
    path = table(tmp_path / "t.csv", names)
    if not is_named:
        path.write_text(path.read_text().replace(".png", "").replace("file", "code"))
    held_out = Files([f"other{k}.png" for k in range(20)]) if is_named else X[20:]
    data = Files(names) if is_named else X[:20]
    wanted = find_concepts(FitRequest(data=data, held_out=held_out, concepts=path), seed=0)[2]
    assert wanted.held_out_source is None
    assert ("no row for" if is_named else "names no files of theirs") in wanted.reason
    bound = bind(wanted, columns(20), columns(20))
    assert wanted.reason in bound.note


def test_attributes_go_with_their_images_whatever_is_left_out():
    def readable(items):
        kept = [item for item in items if int(item[1]) % 5]
        return default_collate(kept)

    loader = DataLoader(TensorDataset(X, torch.arange(N)), batch_size=8, collate_fn=readable)
    source = AttributeSource({"row": torch.arange(N) // 2})
    fit = interpreter().prepare(FitRequest(data=loader, held_out=X[:8], concepts=source))
    rows = fit._read()[0]
    kept = [k for k in range(N) if k % 5]
    assert rows["image"].tensor().tolist() == kept
    bound = bind(fit.parts.concepts, rows, columns(2))
    a, b, _ = bound.source.pairs(50, seed=0)
    assert torch.equal(torch.tensor(kept)[a] // 2, torch.tensor(kept)[b] // 2)
