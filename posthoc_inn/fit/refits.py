"""More trainings of t with other seeds, for how much its figures vary: what no error over images contains."""

from __future__ import annotations

import dataclasses

from posthoc_inn.errors import ConfigError
from posthoc_inn.fit.parts import Parts, make_flow
from posthoc_inn.flows import ConditionalFlow
from posthoc_inn.seeds import derived


def check_refits(refits: int, flow: ConditionalFlow) -> None:
    """Check that t can be trained with other seeds.

    Raises:
        ConfigError: It has none.
    """
    if refits and not flow.is_trained:
        raise ConfigError(
            f"refits={refits} repeats the training of t with other seeds, and the linear t has none: it is fitted in "
            "closed form. Leave refits out, or choose another preset."
        )


def reseeded(parts: Parts, trained: ConditionalFlow, number: int) -> Parts:
    """Return the parts with an untrained t of another seed, on the same e.

    Args:
        parts: Of the fit.
        trained: The t that was trained first.
        number: Of the training, from 1.
    """
    config = parts.config
    seed = derived(config.flow.seed, "refit", number)
    config = config.replace(
        flow=config.flow.replace(seed=seed),
        flow_training=config.flow_training.replace(seed=derived(seed, "t")),
    )
    shapes = parts.flow.flow.config.latent_shape, parts.flow.picture_shape
    flow = make_flow(config, parts.probe.z_shape, None, *shapes)
    if flow.pictures is not None and trained.pictures is not None:
        # Which picture z shows is no matter of chance: it is looked for once.
        flow.pictures.load_state_dict(trained.pictures.state_dict())
        flow.set_encoder(trained.asked())
    if trained.base is not None:
        flow.set_base(trained.base)
    return dataclasses.replace(parts, config=config, flow=flow.to(parts.device))
