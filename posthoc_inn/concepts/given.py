"""Sources made of given pairs, or of other sources: lists of pairs, sources side by side, the random concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from posthoc_inn.concepts.model import RANDOM
from posthoc_inn.errors import DataError, Problems
from posthoc_inn.protocols import ConceptSource
from posthoc_inn.seeds import derived


class GivenPairs:
    """Pairs that somebody made: of images that share a concept, or that differ in one and agree in all else.

    Args:
        sharing: Concept -> pairs (n, 2) of image indices that share it, and nothing else on purpose.
        differing: Concept -> pairs (n, 2) that differ in it alone: all other factors, the residual's too, are shared.

    Raises:
        DataError: A concept has no pairs, or pairs are not (n, 2) whole numbers from 0.

    >>> source = GivenPairs({"pose": [(0, 1), (2, 3)]}, {"light": [(0, 4)]})
    >>> a, b, shared = source.pairs(50, seed=0)
    >>> source.names, shared[a + b == 4][0].tolist()
    (('pose', 'light'), [True, True, False])
    """

    def __init__(self, sharing: Mapping[str, Any] | None = None, differing: Mapping[str, Any] | None = None) -> None:
        sharing, differing = dict(sharing or {}), dict(differing or {})
        self.names = tuple(dict.fromkeys([*sharing, *differing]))
        if not self.names:
            raise DataError("There are no pairs: give at least one concept in sharing or differing.")
        parts = []
        for is_shared, group in ((True, sharing), (False, differing)):
            for name, given in group.items():
                pairs = _as_pairs(given, name)
                mask = torch.full((len(self.names) + 1,), not is_shared)
                mask[1 + self.names.index(name)] = is_shared
                parts.append((pairs, mask))
        self._set(parts)

    def _set(self, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._parts = [(pairs, mask) for pairs, mask in parts if len(pairs)]

    def subset(self, index: Tensor) -> GivenPairs:
        """Return the pairs of which both images are among `index` (M,), numbered by their place in it.

        Raises:
            DataError: A concept is left without pairs.
        """
        place = {int(i): k for k, i in enumerate(index.tolist())}
        parts = []
        for pairs, mask in self._parts:
            kept = [(place[a], place[b]) for a, b in pairs.tolist() if a in place and b in place]
            parts.append((torch.tensor(kept, dtype=torch.long).reshape(-1, 2), mask))
        for k, name in enumerate(self.names, 1):
            if not any(len(pairs) and bool(mask[k]) != bool(mask[0]) for pairs, mask in parts):
                raise DataError(f"The concept {name!r} has no pairs among these {len(index):,} images.")
        out = GivenPairs.__new__(GivenPairs)
        out.names = self.names
        out._set(parts)
        return out

    def pairs(self, n: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices a (n,), b (n,) and `shared` (n, K + 1); each list of pairs is drawn equally often."""
        generator = torch.Generator().manual_seed(seed)
        which = torch.randint(len(self._parts), (n,), generator=generator)
        out = torch.zeros(n, 2, dtype=torch.long)
        shared = torch.zeros(n, len(self.names) + 1, dtype=torch.bool)
        for k, (pairs, mask) in enumerate(self._parts):
            rows = (which == k).nonzero()[:, 0]
            out[rows] = pairs[torch.randint(len(pairs), (len(rows),), generator=generator)]
            shared[rows] = mask
        turned = torch.rand(n, generator=generator) < 0.5
        out[turned] = out[turned].flip(1)
        return out[:, 0], out[:, 1], shared


def _as_pairs(given: Any, name: str) -> Tensor:
    try:
        pairs = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"The pairs of {name!r} are no list of pairs of image indices: {error}.") from error
    if pairs.numel() == 0:
        raise DataError(f"The concept {name!r} has no pairs.")
    good = pairs.ndim == 2 and pairs.shape[1] == 2 and not pairs.is_floating_point() and not pairs.is_complex()
    if not good or bool((pairs < 0).any()):
        raise DataError(f"The pairs of {name!r} must be (n, 2) image indices from 0, got {tuple(pairs.shape)}.")
    if bool((pairs[:, 0] == pairs[:, 1]).any()):
        raise DataError(f"A pair of {name!r} is one image twice: it says nothing about the concept.")
    return pairs.long()


class JoinedSources:
    """Several sources as one; each gives an equal share of the pairs.

    A pair that shares one concept says nothing of the others': they count as independent. One that differs in one
    concept (its residual is shared) agrees in the others' too.

    Args:
        sources: At least one; their concepts have different names.
        length: Number of the data's images, from which sources number images of their own; needed where more than one
            brings such.

    Raises:
        DataError: Two sources have a concept of the same name, or `length` is missing.
    """

    def __init__(self, sources: Sequence[ConceptSource], *, length: int | None = None) -> None:
        self.sources = list(sources)
        names = [name for source in self.sources for name in source.names]
        problems = Problems("JoinedSources")
        problems.check(bool(self.sources), "give at least one source")
        twice = sorted({n for n in names if names.count(n) > 1})
        problems.check(not twice, f"two sources have a concept called {', '.join(twice)}")
        brings = [s for s in self.sources if getattr(s, "extra", None) is not None]
        known = length is not None or len(brings) < 2
        problems.check(known, "several sources bring images of their own: give length, the number of the data's images")
        problems.raise_if_any(DataError)
        self.names = tuple(names)
        self._length, self._shifts = length, [0] * len(self.sources)
        if brings:
            self.extra = brings[0].extra if len(brings) == 1 else ConcatDataset([s.extra for s in brings])  # type: ignore[attr-defined]
            # -1: of no image of the data.
            self.extra_of = torch.cat([_extra_of(source) for source in brings])
            before = 0
            for k, source in enumerate(self.sources):
                self._shifts[k] = before
                before += len(source.extra) if source in brings else 0  # type: ignore[attr-defined]

    def pairs(self, n: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices a (n,), b (n,) and `shared` (n, K + 1)."""
        parts = []
        start = 1
        for k, source in enumerate(self.sources):
            count = n // len(self.sources) + (k < n % len(self.sources))
            a, b, own = source.pairs(count, seed=derived(seed, "source", k))
            if self._shifts[k]:
                a, b = (i + self._shifts[k] * (i >= (self._length or 0)) for i in (a, b))
            shared = own[:, :1].repeat(1, len(self.names) + 1)
            shared[:, start : start + len(source.names)] = own[:, 1:]
            start += len(source.names)
            parts.append((a, b, shared))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        a, b, shared = (torch.cat(columns)[order] for columns in zip(*parts, strict=True))
        return a, b, shared


def _extra_of(source: ConceptSource) -> Tensor:
    """Return the index of the image that each image of a source's own was made from, (N,), -1 for none."""
    known = getattr(source, "extra_of", None)
    if known is None:
        return torch.full((len(source.extra),), -1)  # type: ignore[attr-defined]
    return torch.as_tensor(known).long()


class WithRandom:
    """A source with one more concept, "(random)", whose pairs share nothing: the null that others are compared with.

    Args:
        source: The concepts.
    """

    def __init__(self, source: ConceptSource) -> None:
        self.source = source
        self.names = (*source.names, RANDOM)
        if getattr(source, "extra", None) is not None:
            self.extra, self.extra_of = source.extra, _extra_of(source)  # type: ignore[attr-defined]

    def pairs(self, n: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices a (n,), b (n,) and `shared` (n, K + 2); the random concept gets its share of the pairs."""
        generator = torch.Generator().manual_seed(seed)
        a, b, own = self.source.pairs(n, seed=seed)
        shared = torch.cat([own, own[:, :1]], dim=1)
        rows = (torch.rand(n, generator=generator) * len(self.names) < 1).nonzero()[:, 0]
        if len(rows) >= 2:
            # Partners exchanged in a circle: the images are those of real pairs, the pairs share nothing on purpose.
            b = b.index_copy(0, rows, b[rows.roll(1)])
            shared[rows] = torch.tensor([False] * len(self.names) + [True])
        return a, b, shared
