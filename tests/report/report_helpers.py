"""Figures of an imaginary fit that went well, a report of it, and a reader of pages."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import torch

from posthoc_inn.analysis import Samples
from posthoc_inn.report import ReportContent

HOSTILE = "</title><script>alert(1)</script><img src=x onerror='alert(2)'>\"& {{ 7*7 }} {% raw %}"
"""A name that would like to be more than a name."""
ALONE = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and notices tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data


def history(first: float, last: float) -> dict[str, Any]:
    rows = [
        {
            "step": 100.0 * (k + 1),
            "train": first + k * (last - first) / 5,
            "held_out": first + k * (last - first) / 5 + 0.1,
        }
        for k in range(6)
    ]
    return {"rows": rows, "best_step": 600.0, "best_loss": last, "skipped": 2, "stopped": "finished", "seconds": 9.0}


METRICS: dict[str, Any] = {
    "images": {"train": 1000, "held_out": 100},
    "model": {"name": "net", "accuracy": 0.93, "chance": 0.1},
    "is_cut": True,
    "autoencoder": {"error": 0.005, "kl": 150.0, "agreement": 0.96, "agreement_error": 0.01, "similarity": 0.98},
    "likelihood": {
        "held_out": 20.0,
        "held_out_error": 0.5,
        "held_out_per_dim": 0.31,
        "train": 19.5,
        "standard_normal": 90.8,
        "noise_floor": -60.0,
        "v_mean": 0.01,
        "v_std": 1.02,
        "round_trip": 3e-6,
        "verdict": "converged",
        "advice": "More steps would not gain; a wider preset might.",
    },
    "faithfulness": {
        "agreement": 0.92,
        "agreement_error": 0.009,
        "similarity": 0.93,
        "similarity_error": 0.002,
        "similarity_between": 0.55,
        "images": 100,
        "samples": 8,
    },
    "explained_by_invariances": {
        "value": 0.97,
        "standard_error": 0.003,
        "interval": [0.96, 0.98],
        "images": 100,
        "samples": 10_000,
    },
    "training": {"t": history(80, 20), "autoencoder": history(0.5, 0.1), "classifier": history(2.3, 0.2)},
    "seconds": {"classifier": 60.0, "features": 9.0, "autoencoder": 80.0, "t": 75.0},
}


def samples(**changes: Any) -> Samples:
    pictures = torch.rand(3, 3, 8, 8)
    usual: dict[str, Any] = {
        "images": 3,
        "samples": 2,
        "seed": 0,
        "agreement": 4 / 6,
        "names": (),
        "predictions": ("a", "b", "c"),
        "sample_predictions": (("", "b"), ("", ""), ("a", "")),
        "inputs": pictures,
        "reconstructions": pictures,
        "pictures": torch.rand(3, 2, 3, 8, 8),
    }
    return Samples(**(usual | changes))


def content(**changes: Any) -> ReportContent:
    usual: dict[str, Any] = {
        "title": "What layer4 of net cannot see",
        "done": ["It was recovered."],
        "metrics": METRICS,
        "samples": samples(),
        "v": torch.randn(50, 4),
        "warnings": ["Mind this."],
        "settings": {"layer": "layer4", "steps": 5000},
        "files": {"bundle": "bundle/"},
        "version": "0.1.0",
    }
    return ReportContent(**(usual | changes))
