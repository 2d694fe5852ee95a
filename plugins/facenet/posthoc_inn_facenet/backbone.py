"""Inception-ResNet-v1 with random weights, one of the two published sets, or those of a local file."""

from __future__ import annotations

from collections.abc import Mapping

from facenet_pytorch import InceptionResnetV1
from torch import Tensor, nn

from posthoc_inn.errors import DataError, UnknownNameError
from posthoc_inn.weights import is_weights_file, load_into, load_state, seeded_init

PUBLISHED = ("vggface2", "casia-webface")
HEAD = "logits."
"""Beginning of the names of the classifier that training needed; the embedding does without it."""


def build_facenet(*, weights: str | None, num_classes: int | None) -> nn.Module:
    """Build the network in eval mode; the global generator is not used.

    Args:
        weights: None for random ones, the same at every call; "vggface2" or "casia-webface", which downloads them
            where torch's hub directory lacks them; or a local file.
        num_classes: None for the embedding, (B, 512) of length 1; else logits (B, num_classes), for training it anew
            or for weights that come with a classifier of so many identities.

    Raises:
        UnknownNameError: `weights` is neither a file nor published.
        DataError: The weights cannot be read, downloaded or loaded.
    """
    state: Mapping[str, Tensor] | None = None
    if weights is not None and is_weights_file(weights):
        state = load_state(weights)
    elif weights is not None:
        state = _published(weights)
    with seeded_init():
        model: nn.Module = InceptionResnetV1(classify=num_classes is not None, num_classes=num_classes)
    if state is not None:
        if num_classes is None:
            state = {name: tensor for name, tensor in state.items() if not name.startswith(HEAD)}
        load_into(model, state, source=str(weights))
    return model.eval()


def _published(name: str) -> Mapping[str, Tensor]:
    """Return published weights by facenet-pytorch's own way: from torch's hub directory, or downloaded to it."""
    if name not in PUBLISHED:
        raise UnknownNameError(
            f"facenet takes the weights {' and '.join(map(repr, PUBLISHED))} (downloaded) or a local file, "
            f"got {name!r}."
        )
    try:
        with seeded_init():
            state: Mapping[str, Tensor] = InceptionResnetV1(pretrained=name).state_dict()
    except Exception as error:
        # No network, a full disk, a file that was cut short: whatever it is, there are no weights.
        raise DataError(
            f"facenet-pytorch's weights {name} could not be had ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}). Where there is no network, download the file that "
            "https://github.com/timesler/facenet-pytorch/releases lists elsewhere, and pass it: --weights FILE.pt; or "
            "leave weights out for random ones."
        ) from error
    return state
