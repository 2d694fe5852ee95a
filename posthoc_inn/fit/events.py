"""Tells plugins how a fit goes (the hooks `fit_started` to `fit_failed`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from posthoc_inn.fit.request import FitRequest
from posthoc_inn.plugins import FitEvent, get_plugin_manager


def stage_finished(request: FitRequest, stage: str, curve: dict[str, Any]) -> None:
    """Tell plugins that a stage was trained."""
    get_plugin_manager().fit_stage_finished(_event(request, stage, curve))


@contextlib.contextmanager
def announced(request: FitRequest, layer: str, seconds: Mapping[str, float]) -> Iterator[None]:
    """Tell plugins that the fit of a layer starts, and in the end that it is done or has failed.

    Args:
        request: What the fit is asked for.
        layer: The layer.
        seconds: Of each stage; read in the end.
    """
    manager = get_plugin_manager()
    manager.fit_started(_event(request, "fit", {"layer": layer}))
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        manager.fit_failed(_event(request, "fit", {"error": f"{type(error).__name__}: {error}"}))
        raise
    manager.fit_finished(_event(request, "fit", {"seconds": sum(seconds.values())}))


def _event(request: FitRequest, stage: str, info: dict[str, Any]) -> FitEvent:
    return FitEvent(stage, None if request.out is None else str(request.out), info)
