"""What t costs beside simpler answers, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthoc_inn.report.findings.judging import Finding, Status

CLEAR = 2.0
"""Standard errors by which two costs have to differ to be told apart."""
WHERE = "Likelihood of t"


def rungs(figures: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the ladder by name; empty where it was not measured, as in older bundles."""
    return {r["name"]: r for r in figures.get("ladder") or () if r.get("nats") is not None}


def is_above(rung: Mapping[str, Any] | None) -> bool | None:
    """Whether a simpler answer costs clearly more than t; None where that was not measured."""
    if rung is None or rung.get("gain") is None:
        return None
    return bool(rung["gain"] > CLEAR * (rung.get("gain_error") or 0.0))


def ladder(figures: Mapping[str, Any]) -> list[Finding]:
    """Return what a held-out latent costs under t, and whether t uses z."""
    known = rungs(figures)
    return [_headline(figures, known), *_other_z(known)]


def _headline(figures: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> Finding:
    # A generator's latents are known without noise.
    floor = figures.get("noise_floor")
    noise = "" if floor is None else f"; the encoder's own noise allows no less than {floor:.1f}"
    others = [f"N(0, 1), which knows nothing, costs {figures['standard_normal']:.1f}"]
    if "gaussian" in known:
        others.append(f"one Gaussian for all images {_beside(known['gaussian'])}")
    if "linear" in known and not figures.get("is_linear"):
        others.append(f"a linear t {_beside(known['linear'])}")
    is_better = is_above(known.get("gaussian"))
    status: Status = "good" if is_better else "poor"
    advice = "t knows no more of a latent than one Gaussian for all images does: it has learned nothing from z."
    if is_better is None:
        status = "good" if figures["held_out"] < figures["standard_normal"] else "poor"
        advice = "t has learned nothing: it does worse than N(0, 1)."
    elif is_above(known.get("other_z")) is False:
        status, advice = "poor", "t does not use z: see the next line."
    meaning = f"Lower is better. The same latents: {', '.join(others)}{noise}."
    return Finding(
        WHERE, "Negative log-likelihood, held out", f"{figures['held_out']:.1f} nats", meaning, status, advice
    )


def _beside(rung: Mapping[str, Any]) -> str:
    gain, error = rung.get("gain"), rung.get("gain_error")
    if gain is None or error is None:
        return f"{rung['nats']:.1f}"
    return f"{rung['nats']:.1f} ({abs(gain):.1f} ± {error:.1f} {'more' if gain >= 0 else 'less'} than t)"


def _other_z(known: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    other = known.get("other_z")
    is_dearer = is_above(other)
    if other is None or is_dearer is None:
        return []
    spread = "" if other.get("gain_error") is None else f" ± {other['gain_error']:.1f}"
    told = (
        "t looks at z."
        if is_dearer
        else "That is nothing beyond chance: t ignores z, so its samples say nothing about the layer."
    )
    return [
        Finding(
            WHERE,
            "With another image's z",
            f"{other['gain']:+.1f}{spread} nats",
            f"What a latent costs more where t gets the z of another image, picked at random. {told}",
            "good" if is_dearer else "poor",
            "t ignores z: it draws any image of the data. Train it longer, or look at whether z holds anything.",
        )
    ]
