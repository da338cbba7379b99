"""Diffusion models in JAX and Flax NNX: the library behind the course's notebooks.

docs/library.md has its files in the order to read them; each imports only from those above it.
"""

from diffusion_course.notebook.setup import setup

__all__ = ["diagnose", "setup"]
__version__ = "0.1.0"


def __getattr__(name: str):
    # `diagnose` needs JAX and Flax, which the command line's first answers do without.
    if name == "diagnose":
        from diffusion_course.diagnosis import diagnose

        return diagnose
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
