"""Which mean and std the user's images were normalised with: given, declared, or recognised by range."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split

from posthoc_inn.errors import ConfigError, DataError
from posthoc_inn.images import BatchSource, Normalization, apply_spec, recognize_normalization
from posthoc_inn.images.normalization import HIT, KNOWN, _fitting
from posthoc_inn.images.spec import ImageSpec, normalize

IMAGENET = KNOWN["ImageNet mean and std"]


def pictures(n=64, channels=3, size=16, seed=0):
    """Make pictures of 8-bit values whose channels all reach 0 and 255, as a few hundred photographs do."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, channels, size, size, generator=generator)
    x[0], x[1] = 0, 1
    return (x * 255).round() / 255


class Pictures(Dataset):
    """A data set with a transform on (C, H, W) tensors, kept as torchvision's data sets keep theirs."""

    def __init__(self, transform=None, images=None, transforms=None):
        self.images = pictures() if images is None else images
        self.transform, self.transforms = transform, transforms

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        x = self.images[i]
        for t in (self.transform, self.transforms):
            x = x if t is None else t(x)
        return x, i


class Normalize:
    """Looks like torchvision's, so that core is tested without it."""

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def __call__(self, x):
        mean, std = (torch.as_tensor(v).view(-1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


class Compose:
    def __init__(self, *transforms):
        self.transforms = list(transforms)

    def __call__(self, x):
        for t in self.transforms:
            x = t(x)
        return x


class RandomApply(Compose):
    pass


class RandomHorizontalFlip:
    def __call__(self, x):
        return x.flip(-1) if torch.rand(()) < 0.5 else x


class Gamma:
    def __call__(self, x):
        return x.abs() ** 1.01 * x.sign()


ODD = ((0.3, 0.31, 0.32), (0.11, 0.12, 0.13))


def recovers(data, normalization, images=None):
    x = BatchSource(data).first(10_000)
    torch.testing.assert_close(
        normalization.undo(x).clamp(0, 1), pictures() if images is None else images, atol=1e-5, rtol=0
    )


# ---- given


def test_given_values_come_first():
    data = Pictures(Normalize(*ODD))
    found = recognize_normalization(data, mean=ODD[0], std=ODD[1])
    assert (found.mean, found.std, found.source) == (*ODD, "given")
    recovers(data, found)


@pytest.mark.parametrize("kind", [float, list, tuple, torch.tensor, np.array])
def test_given_values_may_be_of_any_kind(kind):
    mean, std = (kind(0.5), kind(0.25)) if kind is float else (kind([0.5] * 3), kind([0.25] * 3))
    found = recognize_normalization(normalize(pictures(), (0.5,), (0.25,)), mean=mean, std=std)
    assert set(found.mean) == {0.5}
    assert set(found.std) == {0.25}
    assert all(type(v) is float for v in (*found.mean, *found.std))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"mean": 0.5}, "pass std along with mean"),
        ({"std": 0.5}, "pass mean along with std"),
        ({"mean": (0.5, 0.5), "std": 0}, "mean must have 1 or 3 values, got 2; std must be positive"),
        ({"mean": float("nan"), "std": 1}, "mean must be finite"),
        ({"mean": "imagenet", "std": 1}, "mean must be numbers, got 'imagenet'"),
    ],
)
def test_given_values_that_make_no_sense_are_refused(arguments, match):
    with pytest.raises(ConfigError, match=match):
        recognize_normalization(pictures(), **arguments)


def test_given_values_that_do_not_lead_to_images_are_refused():
    x = normalize(pictures(), *IMAGENET)
    with pytest.raises(
        DataError, match=r"the images span -143 to 464 instead of 0 to 1 \(red -2\.118 to 2\.249,.*units of"
    ):
        recognize_normalization(x, mean=127.5, std=127.5)


# ---- declared


WRAPPERS = {
    "bare": lambda t: Pictures(t),
    "transforms": lambda t: Pictures(transforms=t),
    "nested compose": lambda t: Pictures(Compose(Compose(RandomHorizontalFlip()), Compose(Compose(t)))),
    "sequential": lambda t: Pictures(torch.nn.Sequential(torch.nn.Identity(), Module(t))),
    "geometry after": lambda t: Pictures(Compose(t, RandomHorizontalFlip())),
    "subset": lambda t: Subset(Pictures(t), range(40)),
    "subset of a subset": lambda t: Subset(Subset(Pictures(t), range(50)), range(40)),
    "random split": lambda t: random_split(Pictures(t), [50, 14], torch.Generator().manual_seed(0))[0],
    "concatenated": lambda t: ConcatDataset([Pictures(t), Subset(Pictures(t), range(9))]),
    "loader": lambda t: DataLoader(Pictures(t), batch_size=16, shuffle=True),
    "loader of a subset": lambda t: DataLoader(Subset(Pictures(t), range(40)), batch_size=16),
    "source": lambda t: BatchSource(DataLoader(Pictures(t), batch_size=16)),
    "wrapper with the transform": lambda t: Wrapper(Pictures(RandomHorizontalFlip()), t),
    "wrapper around the transform": lambda t: Wrapper(Pictures(t), RandomHorizontalFlip()),
}


class Wrapper(Dataset):
    def __init__(self, dataset, transform):
        self.dataset, self.transform = dataset, transform

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        x, y = self.dataset[i]
        return self.transform(x), y


class Module(torch.nn.Module):
    """Stands for v2.Normalize, which is a module."""

    def __new__(cls, t):
        made = super().__new__(type("Normalize", (torch.nn.Module,), {"forward": lambda self, x: self.t(x)}))
        torch.nn.Module.__init__(made)
        made.t, made.mean, made.std = t, t.mean, t.std
        return made


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_the_data_sets_own_transform_is_found(wrap):
    found = recognize_normalization(wrap(Normalize(*ODD)))
    assert (found.mean, found.std) == ODD
    assert found.source == "the data set's own transform"


def test_two_normalisations_in_a_row_are_joined():
    data = Pictures(Compose(Normalize((0.5,), (0.5,)), Normalize(*ODD)))
    recovers(data, recognize_normalization(data))


def test_a_declared_normalisation_counts_even_where_the_range_fits_another():
    dim = pictures() * 0.5
    data = Pictures(Normalize((0.5,) * 3, (0.5,) * 3), images=dim)
    recovers(data, recognize_normalization(data), dim)


@pytest.mark.parametrize("second", [Gamma(), RandomApply(Gamma())])
def test_a_transform_of_values_after_normalize_breaks_recognition_and_says_so(second):
    data = Pictures(Compose(Normalize(*ODD), second))
    with pytest.raises(DataError, match=f"own Normalize was not used: {type(second).__name__} follows it"):
        recognize_normalization(data)


def test_the_range_may_still_fit_when_the_transform_is_not_used():
    data = Pictures(Compose(Normalize(*IMAGENET), lambda x: x))
    found = recognize_normalization(data)
    assert found.source == (
        "recognised from the range of 64 images: ImageNet mean and std (the data set's own Normalize was "
        "not used: <lambda> follows it)"
    )
    recovers(data, found)


def test_a_normalisation_at_random_is_not_used():
    data = Pictures(RandomApply(Normalize(*ODD)))
    with pytest.raises(DataError, match="not used: RandomApply applies it at random"):
        recognize_normalization(data)


def test_a_transform_that_the_values_contradict_is_not_used():
    undone = DataLoader(
        Pictures(Normalize((0.5,) * 3, (0.5,) * 3)),
        batch_size=16,
        collate_fn=lambda b: torch.stack([x for x, _ in b]) / 2 + 0.5,
    )
    found = recognize_normalization(undone)
    assert found.is_identity
    assert "not used: the values span 0 to 1 without undoing it" in found.source
    stretched = DataLoader(Pictures(Normalize(*ODD)), collate_fn=lambda b: torch.stack([x * 9 for x, _ in b]))
    with pytest.raises(DataError, match="not used: images would span"):
        recognize_normalization(stretched)
    other = Pictures(Normalize((0.5,) * 2, (0.5,) * 2), images=[])
    other.transform.__class__ = type("Normalize", (), {"__call__": lambda self, x: x * 2 - 1})
    other.images = pictures()
    found = recognize_normalization(other)
    assert "it is meant for 2 channels" in found.source


def test_parts_that_are_normalised_differently_are_not_taken_for_one():
    mixed = ConcatDataset([Pictures(Normalize(*ODD)), Pictures(Normalize(*IMAGENET))])
    with pytest.raises(DataError, match="not all normalised alike"):
        recognize_normalization(mixed)


def test_a_data_set_that_refers_to_itself_ends():
    data = Pictures()
    data.dataset = data
    assert recognize_normalization(data).is_identity


@pytest.mark.parametrize("version", ["v1", "v2", "preset"])
@pytest.mark.parametrize("where", ["transform", "transforms"])
def test_torchvisions_own_data_sets_are_understood(version, where, tmp_path):
    pytest.importorskip("torchvision")
    from torchvision import datasets, transforms
    from torchvision.transforms import v2
    from torchvision.transforms._presets import ImageClassification

    make = {
        "v1": lambda: transforms.Compose(
            [
                transforms.Resize(16),
                transforms.ToTensor(),
                transforms.Normalize(*IMAGENET),
                transforms.RandomErasing(),
            ]
        ),
        "v2": lambda: v2.Compose(
            [
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(IMAGENET[0]), list(IMAGENET[1])),
            ]
        ),
        "preset": lambda: ImageClassification(crop_size=16, resize_size=16),
    }[version]
    transform = make()
    if where == "transform":
        data = datasets.FakeData(40, (3, 16, 16), transform=transform)
    else:
        data = datasets.FakeData(40, (3, 16, 16))
        data.transforms = lambda x, y: (transform(x), y)
        data.transforms = type(
            "Joint", (), {"__call__": lambda s, x, y: (transform(x), y), "transforms": [transform]}
        )()
        type(data.transforms).__name__ = "Compose"
        data.transform = transform
    found = recognize_normalization(DataLoader(data, batch_size=8))
    assert found.mean == pytest.approx(IMAGENET[0])
    assert found.std == pytest.approx(IMAGENET[1])
    assert found.source == "the data set's own transform"


# ---- recognised


@pytest.mark.parametrize(
    ("name", "channels"), [(n, c) for n, (mean, _) in KNOWN.items() for c in (1, 3) if len(mean) in (1, c)]
)
def test_each_well_known_range_is_recognised(name, channels):
    mean, std = KNOWN[name]
    images = pictures(channels=channels)
    found = recognize_normalization(normalize(images, mean, std))
    assert (found.mean, found.std) == (mean, std)
    assert found.source == f"recognised from the range of 64 images: {name}"


@pytest.mark.parametrize("name", KNOWN)
def test_photographs_that_nearly_reach_the_bounds_are_recognised_to_within_a_few_levels(name):
    images = pictures() * (252 / 255) + 1.5 / 255
    found = recognize_normalization(normalize(images, *KNOWN[name]))
    assert (found.undo(normalize(images, *KNOWN[name])) - images).abs().max() <= HIT


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_are_recognised(dtype):
    found = recognize_normalization(normalize(pictures().double(), *IMAGENET).to(dtype))
    assert "ImageNet" in found.source


def test_images_in_the_unit_interval_are_left_alone():
    found = recognize_normalization(pictures())
    assert found.is_identity
    assert found.source == "the values of 64 images lie in [0, 1]"
    assert found.undo(pictures()).equal(pictures())
    assert recognize_normalization(pictures() * 0.3 + 0.2).is_identity


def test_bytes_are_left_alone():
    found = recognize_normalization((pictures() * 255).to(torch.uint8))
    assert found.is_identity
    assert found.source == "uint8 images, divided by 255"


def test_dark_whole_numbers_are_taken_for_bytes():
    found = recognize_normalization((pictures() * 100).round())
    assert found.std == (1 / 255,)
    assert "values 0 to 255, not divided" in found.source


def test_images_divided_twice_are_noticed():
    with pytest.raises(DataError, match="divided by 255 twice"):
        recognize_normalization(pictures() / 255)
    assert recognize_normalization(pictures() / 255, mean=0, std=1).is_identity


def test_a_little_overshoot_of_bicubic_resizing_is_no_normalisation():
    images = pictures()
    images[2, 0, 0, :3] = torch.tensor([-0.1, 1.1, 1.05])
    found = recognize_normalization(images)
    assert found.is_identity
    assert found.source == "but for 0.0% the values of 64 images lie in [0, 1]"


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(normalize(pictures(), *ODD), id="unknown constants"),
        pytest.param(normalize(pictures(), *IMAGENET) * 1.1, id="range exceeded"),
        pytest.param(normalize(pictures() * 0.8, *IMAGENET), id="bounds not reached"),
        pytest.param(normalize(pictures() * 0.7 + 0.3, *IMAGENET), id="lower bound not reached"),
        pytest.param(normalize(pictures() * 1.2 - 0.2, *IMAGENET), id="lower bound exceeded"),
        pytest.param(normalize(pictures() * 1.2, *IMAGENET), id="upper bound exceeded"),
        pytest.param((pictures() - 0.4) * 3, id="scaled by hand"),
        pytest.param(normalize(pictures(), *IMAGENET).flip(1), id="channels in another order"),
    ],
)
def test_what_fits_nothing_is_an_error_that_says_what_was_seen_and_what_to_pass(x):
    with pytest.raises(
        DataError, match=r"no known normalisation fits: red .* to .*, green .*blue .* \(64 images\)"
    ) as caught:
        recognize_normalization(x)
    assert "The nearest is" in str(caught.value)
    assert "mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)" in str(caught.value)


def test_images_standardised_one_by_one_are_refused():
    x = pictures(channels=1)[2:]
    x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
    with pytest.raises(DataError, match="no known normalisation fits: values"):
        recognize_normalization(x)


def test_of_two_that_fit_the_tightest_is_taken():
    close = {"a": ((0.0,), (0.5,)), "b": ((0.0,), (0.497,))}
    for name, (mean, std) in close.items():
        assert _fitting(normalize(pictures(), mean, std), close)[0] == name


def test_two_that_fit_equally_well_but_differ_are_an_error():
    x = normalize(pictures(), (0.0,), (0.5,)) * 0.99
    rivals = {"one": ((0.0,), (0.5,)), "other": ((0.013,), (0.4985,))}
    with pytest.raises(DataError, match=r"two normalisations equally well: .*mean=0, std=0\.5"):
        _fitting(x, rivals)


def test_no_two_known_constants_can_be_mistaken_for_each_other():
    for name, (mean, std) in KNOWN.items():
        found = _fitting(normalize(pictures(200, 3), mean, std), KNOWN)
        assert found[0] == name


# ---- use


def test_a_normalisation_goes_both_ways_and_into_json():
    found = Normalization(*IMAGENET, "given")
    images = pictures().double()
    torch.testing.assert_close(found.undo(found.apply(images)), images)
    torch.testing.assert_close(found.apply(images), apply_spec(images, ImageSpec(mean=found.mean, std=found.std)))
    assert found.to_canonical(torch.full((1, 3, 1, 1), 9.0)).max() == 1
    assert json.loads(json.dumps(found.to_dict()))["mean"] == list(IMAGENET[0])


def test_bad_data_is_refused_before_anything_is_recognised():
    with pytest.raises(DataError, match="permute"):
        recognize_normalization(torch.rand(4, 8, 8, 3))


def test_of_two_fits_a_hair_apart_the_more_common_one_is_taken():
    # No pixel is black or white: (value - 127.5) / 128 would fit a hair tighter than [-1, 1], by chance.
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.99 + 0.003
    assert recognize_normalization(images * 2 - 1).mean == (0.5,)
    exact = images.clone()
    exact[0, :, 0, 0], exact[0, :, 0, 1] = 0.0, 1.0
    assert recognize_normalization((exact * 255 - 127.5) / 128).std == (128 / 255,)
