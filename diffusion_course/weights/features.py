"""Released statistics of a judge's features, so that a Fréchet distance needs no data set."""

from pathlib import Path

import numpy as np
import safetensors.numpy

from diffusion_course import files
from diffusion_course.evaluation.metrics import Moments
from diffusion_course.weights import FOLDER
from diffusion_course.weights.card import (
    Card,
    as_safetensors,
    read_json,
    read_verified,
    sha256,
)

_ENDING = ".features.safetensors"


def save(folder: str | Path, name: str, moments: Moments, classifier: Card) -> Path:
    """Writes NAME.features.safetensors and a JSON file that says whose features they are.

    Args:
      folder: where to; it must exist.
      name: of the data set.
      moments: of the features of its training set.
      classifier: the card of the judge that computed them.

    Returns: the path of the first file. Both are written, or neither.
    Raises: ValueError for moments that are not those of `metrics.moments`.
    """
    mean, covariance = np.asarray(moments.mean), np.asarray(moments.covariance)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"moments must hold a mean [D] and a covariance [D, D], "
            f"got {list(mean.shape)} and {list(covariance.shape)}"
        )
    path = Path(folder) / (name + _ENDING)
    content = as_safetensors({"mean": mean, "covariance": covariance})
    note = {
        "name": name,
        "classifier": classifier.name,
        "classifier_sha256": classifier.sha256,
        "data": classifier.data,
        "count": moments.count,
        "sha256": sha256(content),
    }
    files.write_together({path: content, path.with_suffix(".json"): files.as_json(note)})
    return path


def load(name: str, classifier: Card, folder: str | Path = FOLDER) -> Moments:
    """The moments of a data set's features, for `metrics.frechet`.

    Args:
      name: of the data set, such as "mnist".
      classifier: the card of the judge that the features to be compared come from.
      folder: where the files lie; the package by default.

    Raises: ValueError for an unknown name, a damaged file, or the features of another judge.
    """
    known = sorted(p.name.removesuffix(_ENDING) for p in Path(folder).glob("*" + _ENDING))
    if name not in known:
        raise ValueError(f"name must be one of {', '.join(known) or 'none'}, got {name!r}")
    path = Path(folder) / (name + _ENDING)
    note = read_json(path.with_suffix(".json"))
    missing = {"classifier", "classifier_sha256", "count", "sha256"} - note.keys()
    if missing:
        raise ValueError(f"{path.stem}.json must say {', '.join(sorted(missing))}")
    if note["classifier_sha256"] != classifier.sha256:
        raise ValueError(
            f"classifier must be the one whose features {path.name} holds, {note['classifier']} "
            f"{note['classifier_sha256'][:12]}…, got {classifier.name} {classifier.sha256[:12]}…"
        )
    arrays = safetensors.numpy.load(read_verified(path, note["sha256"]))
    return Moments(arrays["mean"], arrays["covariance"], note["count"])
