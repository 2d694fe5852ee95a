"""How much figures vary between trainings of t with other seeds, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posthoc_inn.report.findings.judging import Finding, percent

LABELS = {
    "held_out": "Negative log-likelihood, held out",
    "agreement": "Same prediction as the image",
    "similarity": "Same features at the layer",
    "explained_by_invariances": "Explained by what the layer ignores",
}


def refits(metrics: Mapping[str, Any]) -> list[Finding]:
    """Return the spread of each figure over trainings."""
    told = metrics.get("refits") or {}
    found = []
    for name, values in (told.get("values") or {}).items():
        spread = told["deviation"][name]
        if name not in LABELS or spread is None:
            continue
        value, ends = f"± {spread:.3f}", f"{min(values):.3f} to {max(values):.3f}"
        if name == "held_out":
            value, ends = f"± {spread:.2f} nats", f"{min(values):.1f} to {max(values):.1f} nats"
        elif name != "similarity":
            value, ends = f"± {100 * spread:.1f} %", f"{percent(min(values))} to {percent(max(values))}"
        meaning = (
            f"Standard deviation over {told['trainings']} trainings of t with other seeds, {ends}. The errors of the "
            "figures above are over images, and do not contain this."
        )
        found.append(Finding("Other seeds", LABELS[name], value, meaning, "info"))
    return found
