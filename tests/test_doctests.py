"""The examples in the docstrings of every module give what they print."""

import doctest
import importlib
import pkgutil

import pytest

import diffusion_course

MODULES = [
    module.name
    for module in pkgutil.walk_packages(diffusion_course.__path__, "diffusion_course.")
    if not module.name.endswith("__main__")  # it would run the command line
]


def examples(name):
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(importlib.import_module(name)) if test.examples]


def test_the_main_functions_have_examples():
    found = {test.name for name in MODULES for test in examples(name)}
    assert len(found) > 10
    for name in (
        "betas.linear_betas",
        "process.from_betas",
        "process.add_noise",
        "process.posterior",
        "parameterization.target",
        "parameterization.to_x0",
        "denoiser.gaussian_mixture",
        "denoiser.denoiser",
        "losses.diffusion_loss",
        "bound.evaluate",
        "evaluation.metrics.frechet",
        "sampling.uniform",
        "samplers.ddim",
        "guidance.classifier_free",
        "models.unet.UNet",
        "data.load",
        "training.update.ema_decay",
        "weights.load",
    ):
        assert f"diffusion_course.{name}" in found


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_true(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0  # pytest shows what doctest printed
