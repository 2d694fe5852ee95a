"""What each part says beside its pictures: what to do, what to conclude and what not, and which section explains it."""

from __future__ import annotations

from dataclasses import dataclass

from posthoc_inn.analysis.samples import CONCLUSION, LIMITS


@dataclass(frozen=True)
class Words:
    """Of one part.

    Attributes:
        name: On its tab.
        about: What it shows, in a sentence or two.
        conclude: What to conclude.
        limits: What not to conclude.
        section: Of the guide, which explains it.
    """

    name: str
    about: str
    conclude: str
    limits: str
    section: str


LOOK = Words(
    "Look",
    "Pictures that look nearly the same to this layer. What they share, the layer keeps. What varies, it hardly sees.",
    CONCLUSION,
    f"{LIMITS} A sample marked ✗ changes the model's prediction: there t or the autoencoder misses something that the "
    "layer holds.",
    "What pictures show",
)
CONCEPTS = Words(
    "Concepts",
    "Move a slider: one dimension of a concept changes, all else of the picture's code stays. The model is asked about "
    "the picture that comes out.",
    "What to conclude: what changes with a slider is what that dimension of the concept holds. If the model's answer "
    "changes with it, the model looks at it, for this picture.",
    "What not to conclude: that this is the only picture with that concept, that a slider means the same in every "
    "picture, or that the model's answer is right. Far from 0 there are no such images in the data.",
    "Concepts",
)
ATTACK = Words(
    "Attack",
    "The picture is changed a little, against the model. Each layer's picture combines what the layer sees of the "
    "attacked picture with what it ignores of the clean one.",
    "What to conclude: if a layer's picture still looks like the reconstruction, the attack has not reached what that "
    "layer holds. If it shows another class, it has.",
    "What not to conclude: that a layer whose picture did not change is robust. The decoder draws pictures like those "
    "it was trained on, and t was never trained on attacked ones. One picture says little: `posthoc-inn analyze "
    "attack` asks many.",
    "Analyses",
)
COMPARE = Words(
    "Compare",
    "Samples of two layers, or of two models, for one picture and the same v.",
    "What to conclude: what varies in one row and not in the other, the first layer has lost and the second still "
    "keeps. A model that goes by texture keeps textures in its samples and loses shapes; one that goes by shape does "
    "the opposite. This is texture bias.",
    "What not to conclude: that the same v means the same content in both rows, that one picture shows a bias "
    "(`posthoc-inn compare` asks groups of images), or that a row with fewer good samples has the worse model: its t "
    "may be worse. Numbers tells.",
    "Models on groups of images",
)
VIDEO = Words(
    "Video",
    "A clip, frame by frame: what the layer sees of each frame, with what it ignores held as it is in the picture. Or "
    "the other way round.",
    "What to conclude: what moves, the layer sees. What stays though it moves in the clip, the layer hardly sees.",
    "What not to conclude: that a jump between two frames is one in the layer. The same v may stand for other content "
    "at another z, and frames unlike the data of the fit are drawn as if they were like it.",
    "A page to play with",
)
NUMBERS = Words(
    "Numbers",
    "How far to trust the pictures: what was measured on held-out images when this layer was fitted.",
    "What to conclude: agreement on samples near that on reconstructions, and a t that has converged, mean that what "
    "varies in samples is lost in the layer.",
    "What not to conclude: anything from pictures of a fit whose figures are poor (✗). What could fool each figure is "
    "told in docs/truth.md.",
    "What the figures mean",
)
PARTS = (LOOK, CONCEPTS, ATTACK, COMPARE, VIDEO, NUMBERS)
