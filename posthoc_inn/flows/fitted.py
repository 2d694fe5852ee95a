"""What actnorm and conditioner have in common: something learned from data once, explicitly, before use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FittedOnce(nn.Module):
    """A module with a saved flag that tells whether its data-dependent part was set.

    The flag is a buffer, so that it is saved and loaded with the weights. What was once read as true is
    remembered, because reading a buffer on a GPU makes the host wait.

    >>> module = FittedOnce()
    >>> module.is_initialized
    False
    """

    initialized: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))
        self._seen = False

    @property
    def is_initialized(self) -> bool:
        """Whether the data-dependent part was set, here or before saving."""
        if not self._seen:
            self._seen = bool(self.initialized)
        return self._seen

    def _mark_initialized(self) -> None:
        self.initialized.fill_(True)
        self._seen = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._seen = False
        super()._load_from_state_dict(*args, **kwargs)
