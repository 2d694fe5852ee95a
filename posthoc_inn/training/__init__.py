"""The one training loop and what it trains."""

from posthoc_inn.training.history import History, Verdict
from posthoc_inn.training.loop import Task, train

__all__ = ["History", "Task", "Verdict", "train"]
