"""Weights that are set to zero because they are small."""

from collections.abc import Mapping

import numpy as np

from diffusion_course import checks


def magnitude(
    arrays: Mapping[str, np.ndarray], share: float, scope: str = "tensor"
) -> dict[str, np.ndarray]:
    """Sets the smallest weights of matrices and kernels to zero.

    Vectors, such as biases and norms' scales, are left alone. Zeros save no time by themselves: a
    dense product multiplies by them as well. They save bytes only if they are not stored.

    Args:
      arrays: name -> array, as `weights.card.flat_params` gives them.
      share: of the weights that become zero, in [0, 1]; the number is rounded down.
      scope: "tensor" takes this share of each tensor, "global" of all of them together.

    Returns: new arrays of the same dtypes. Of equal weights the first ones become zero.
    Raises: ValueError for a share outside [0, 1], or an unknown scope.
    Source: Han et al. 2015, section 3 (arXiv:1506.02626), without its training afterwards.

    >>> magnitude({"kernel": np.array([[3.0, -1.0], [0.5, 2.0]])}, 0.5)["kernel"].tolist()
    [[3.0, 0.0], [0.0, 2.0]]
    """
    share = float(checks.number("share", share))
    checks.within("share", share, 0, 1)
    checks.one_of("scope", scope, ("tensor", "global"))
    pruned = {name: np.array(a) for name, a in arrays.items()}
    names = [name for name, a in pruned.items() if a.ndim >= 2]
    for group in [names] if scope == "global" else [[name] for name in names]:
        sizes = np.concatenate([np.abs(pruned[name]).ravel() for name in group] or [np.zeros(0)])
        small = np.argsort(sizes, kind="stable")[: int(share * len(sizes) + 1e-9)]
        keep = np.ones(len(sizes), bool)
        keep[small] = False
        for name in group:
            size = pruned[name].size
            pruned[name][~keep[:size].reshape(pruned[name].shape)] = 0
            keep = keep[size:]
    return pruned


def zeros(arrays: Mapping[str, np.ndarray]) -> float:
    """Share of zeros among the weights of matrices and kernels; 0 if there are none."""
    large = [a for a in arrays.values() if np.ndim(a) >= 2]
    return sum((a == 0).sum() for a in large) / max(sum(a.size for a in large), 1)
