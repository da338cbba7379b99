"""Released statistics of a judge's features, so that a Fréchet distance needs no data set."""

import json
from pathlib import Path

import safetensors.numpy

from diffusion_course.evaluation.metrics import Moments
from diffusion_course.weights import FOLDER
from diffusion_course.weights.card import Card, read_verified, sha256

_ENDING = ".features.safetensors"


def save(folder: str | Path, name: str, moments: Moments, classifier: Card) -> Path:
    """Writes NAME.features.safetensors and a JSON file that says whose features they are.

    Args:
      folder: where to.
      name: of the data set.
      moments: of the features of its training set.
      classifier: the card of the judge that computed them.
    """
    path = Path(folder) / (name + _ENDING)
    arrays = {"mean": moments.mean, "covariance": moments.covariance}
    path.write_bytes(safetensors.numpy.save(arrays))
    note = {
        "name": name,
        "classifier": classifier.name,
        "classifier_sha256": classifier.sha256,
        "data": classifier.data,
        "count": moments.count,
        "sha256": sha256(path.read_bytes()),
    }
    text = json.dumps(note, indent=1, ensure_ascii=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
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
    note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if note["classifier_sha256"] != classifier.sha256:
        raise ValueError(
            f"classifier must be the one whose features {path.name} holds, {note['classifier']} "
            f"{note['classifier_sha256'][:12]}…, got {classifier.name} {classifier.sha256[:12]}…"
        )
    arrays = safetensors.numpy.load(read_verified(path, note["sha256"]))
    return Moments(arrays["mean"], arrays["covariance"], note["count"])
