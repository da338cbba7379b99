"""Exercises: immediate checks in a notebook, and batch grading of untrusted submissions."""

from diffusion_course.grading.checking import check

__all__ = ["check"]
