"""Diffusion models in JAX and Flax NNX: the library behind the course's notebooks.

Read the files in this order; each imports only from those before it: `process`,
`parameterization`, `denoiser`, `losses`, `guidance`, `samplers`, `sampling`, `models`, `data`,
`distributed`, `train`, `checkpoints`, `metrics`, `plots`, `widgets`.
"""

from diffusion_course.notebook.setup import setup

__all__ = ["setup"]
__version__ = "0.1.0"
