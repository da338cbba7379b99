"""Data sets behind one type: ``load("digits")``, ``load("mnist", split="test")``.

`toy2d`, `digits`, `shapes` and `clips` need nothing but this library; `mnist`, `fashion_mnist` and
`cifar10` come from the Hugging Face hub or from a local copy in ``DIFFUSION_COURSE_DATA``.
"""

import inspect
from functools import partial

from diffusion_course.checks import one_of
from diffusion_course.data import clips, digits, hub, shapes, toy2d
from diffusion_course.data.batches import batches
from diffusion_course.data.local import local_folder
from diffusion_course.data.network import hub_reachable
from diffusion_course.data.types import Card, Dataset, DataUnavailableError, check_batch

__all__ = [
    "Card",
    "DataUnavailableError",
    "Dataset",
    "batches",
    "check_batch",
    "hub_reachable",
    "load",
    "local_folder",
    "names",
    "source_of",
]

_BUNDLED = {
    "toy2d": toy2d.load,
    "digits": digits.load,
    "shapes": shapes.load,
    "clips": clips.dataset,
}
_LOADERS = _BUNDLED | {name: partial(hub.load, name) for name in hub.SPECS}


def names() -> tuple[str, ...]:
    """The names that `load` takes; those that need no network come first."""
    return tuple(_LOADERS)


def load(name: str, split: str = "train", **options) -> Dataset:
    """A data set by name.

    Args:
      name: one of `names()`.
      split: "train" or "test"; for ``digits`` also "all".
      **options: ``kind``, ``n``, ``seed`` for ``toy2d``; ``n``, ``size``, ``seed``, ``new``,
        ``averaged`` for ``shapes``; ``n``, ``frames``, ``size``, ``seed`` for ``clips``;
        ``progress`` for the data sets of the hub. See the function `load` of the file in question.

    Raises:
      ValueError: a name, a split or an option is not one of those.
      DataUnavailableError: a data set of the hub is neither on this computer nor reachable, or
        what is there is damaged, incomplete or other data.

    >>> load("digits", "test")
    Dataset('digits', x=float32 [360, 8, 8, 1], 10 classes)
    >>> load("toy2d", kind="two_moons", n=500).label_names
    ('upper moon', 'lower moon')
    """
    one_of("name", name, names())
    allowed = [p for p in inspect.signature(_LOADERS[name]).parameters if p != "split"]
    for option in options:
        if option not in allowed:
            known = f"only {', '.join(allowed)}" if allowed else "no options"
            raise ValueError(f"option {option!r} is unknown: {name} takes {known}")
    return _LOADERS[name](split, **options)


def source_of(name: str, split: str = "train") -> str:
    """Where `load` would take the data from, without loading it.

    Returns:
      "bundled", "cache" (decoded from the hub before), "local copy" (``DIFFUSION_COURSE_DATA``),
      "hub", or "unavailable". Only where the answer depends on the hub is the hub asked, for at
      most 5 s.

    Raises:
      ValueError: the name is not one of `names()`.
    """
    one_of("name", name, names())
    return "bundled" if name in _BUNDLED else hub.source_of(name, split)
