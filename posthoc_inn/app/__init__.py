"""The page to play with (`posthoc-inn app`): the parts' answers are plain functions, gradio shows them."""

from __future__ import annotations
