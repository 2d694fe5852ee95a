"""Flows that do something: a new one is the identity after its actnorm, because its subnets end in zeros."""

from __future__ import annotations

import torch

from posthoc_inn.flows.maps import MapCoupling
from posthoc_inn.flows.subnet import Subnet


def randomize(module, *, scale=1.0, weights=None, generator=None):
    """Draw the last layers of all subnets in `module`, and return it.

    Outputs have a deviation of about `scale`; or the weights have that of `weights`, where it is given.
    """
    generator = torch.Generator().manual_seed(1) if generator is None else generator
    for net in module.modules():
        if isinstance(net, Subnet | MapCoupling):
            for parameter in net.output.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(noise * (scale / net.output.in_features**0.5 if weights is None else weights))
    return module
