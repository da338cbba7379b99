"""The judge of `time_to_quality.py`: the released classifier of the digits, for both sides."""

import numpy as np
from worker import serve

from diffusion_course import setup, weights
from diffusion_course.models.classifier import judge


def main() -> None:
    setup("cpu", quiet=True)
    classifier = weights.load("digits_classifier").model

    def accuracy(path: str) -> float:
        """The share of samples that are recognised as what they were asked to be."""
        with np.load(path) as found:
            predicted, _ = judge(classifier, found["x"])
            return float((np.asarray(predicted) == found["labels"]).mean())

    serve({"accuracy": accuracy})


if __name__ == "__main__":
    main()
