"""The 1,797 handwritten digits that come with scikit-learn: real data without a download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from diffusion_course.checks import one_of
from diffusion_course.data.types import Card, Dataset

SPLITS = ("train", "test", "all")

CARD = Card(
    name="digits",
    source="E. Alpaydin and C. Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine "
    "Learning Repository, doi:10.24432/C50P49; its test part, as scikit-learn ships it",
    licence="CC BY 4.0",
    description="Handwritten digits of 13 people as 8 x 8 images of 17 grey levels.",
)


def load(split: str = "train") -> Dataset:
    """Images [N, 8, 8, 1]; the grey levels 0..16 become -1..1.

    ``train`` has 1,437 images, ``test`` 360 and ``all`` 1,797, each in the order of the source.
    Every class has 139 to 147 images in ``train`` and 35 to 37 in ``test``.

    Raises:
      ValueError: the split is not one of these.
    """
    one_of("split", split, SPLITS)
    table = _table()
    labels = table[:, 64].astype(np.int32)
    chosen = _indices(labels, split)
    x = table[:, :64].reshape(-1, 8, 8, 1).astype(np.float32) / 8 - 1
    return Dataset(x[chosen], labels[chosen], tuple("0123456789"), CARD)


def _table() -> np.ndarray:
    """Grey levels of 64 pixels and the label of each image: [1797, 65].

    Importing scikit-learn takes a second, so its file is read where it lies; only if a version
    keeps it elsewhere is scikit-learn asked.
    """
    folder = find_spec("sklearn").submodule_search_locations[0]
    file = Path(folder, "datasets", "data", "digits.csv.gz")
    if file.is_file():
        return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    source = load_digits()
    return np.column_stack([source.data, source.target])


def _indices(labels: np.ndarray, split: str) -> np.ndarray:
    """Every fifth image of the list sorted by class is a test image.

    No random numbers: the split is the same under every version of every library. A stable sort
    keeps the order of the source within a class, so both parts hold every writer's hand.
    """
    by_class = np.argsort(labels, kind="stable")
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[by_class[::5]] = True
    return np.flatnonzero({"train": ~is_test, "test": is_test, "all": is_test | True}[split])
