"""Small molecules as clouds of points, and the geometry of a chain of atoms.

Bond lengths and bond angles are exact; only the torsions differ from one molecule to the next.
Lengths are in ångström, angles in radians. All arithmetic is NumPy's, in float64.
"""

from typing import NamedTuple

import numpy as np

from diffusion_course.checks import integer, one_of

SPLITS = ("train", "test")


class Clouds(NamedTuple):
    """Molecules of one kind.

    Attributes:
      x: positions [n, N, 3] float32 in ångström; each cloud's mean is 0.
      types: the kind of each atom, int32 [N].
      names: what the types stand for.
      torsions: [n, N − 3] float32 in (−π, π].
    """

    x: np.ndarray
    types: np.ndarray
    names: tuple[str, ...]
    torsions: np.ndarray


class Recipe(NamedTuple):
    """A chain of atoms: bonds [N − 1], the angle between two of them, and mixtures of torsions."""

    atoms: str
    bonds: tuple[float, ...]
    angle: float
    means: tuple[float, ...]
    weights: tuple[float, ...]
    std: float


def _degrees(*angles: float) -> tuple[float, ...]:
    return tuple(np.radians(angles).tolist())


# Rounded values of the gas phase. Half of all real hydrogen peroxide has the other hand, −112°;
# here all molecules have the same one.
KINDS = {
    "peroxide": Recipe(
        "HOOH", (0.95, 1.475, 0.95), *_degrees(94.8), _degrees(111.8), (1.0,), *_degrees(8)
    ),
    "pentane": Recipe(
        "CCCCC", (1.53,) * 4, *_degrees(112), _degrees(180, 65, -65), (0.6, 0.2, 0.2), *_degrees(10)
    ),
}


def load(
    kind: str = "peroxide",
    split: str = "train",
    *,
    n: int = 2000,
    seed: int = 0,
    turned: bool = False,
) -> Clouds:
    """Draws n molecules; the first ones are the same whatever n is.

    Args:
      kind: "peroxide", H–O–O–H with one torsion near +112°, all of one hand; or "pentane", its
        five carbons with two independent torsions: 180° with probability .6, ±65° with .2 each.
      split: "train" or "test", two independent streams.
      n: how many, at least 1.
      seed: a whole number, at least 0.
      turned: whether each is turned by a rotation of its own. If not, the first atoms of all lie
        alike, as files from one source often do.

    Raises: ValueError for arguments that break these rules.

    >>> clouds = load("peroxide", n=5)
    >>> clouds.x.shape, clouds.names, clouds.types.tolist()
    ((5, 4, 3), ('H', 'O'), [0, 1, 1, 0])
    """
    recipe = KINDS[one_of("kind", kind, KINDS)]
    n, seed = integer("n", n, 1), integer("seed", seed, 0)
    stream = [seed, SPLITS.index(one_of("split", split, SPLITS)), tuple(KINDS).index(kind)]
    streams = [np.random.default_rng([*stream, part]) for part in range(3)]
    count = len(recipe.atoms) - 3
    places = np.cumsum(recipe.weights)[:-1]
    chosen = np.searchsorted(places, streams[0].random((n, count)), side="right")
    torsions = np.asarray(recipe.means)[chosen]
    torsions = wrap(torsions + recipe.std * streams[1].standard_normal((n, count)))
    x = place_chain(recipe.bonds, [recipe.angle] * (count + 1), torsions)
    if turned:
        x = np.einsum("nij,naj->nai", rotations(streams[2].standard_normal((n, 4))), x)
    x = x - x.mean(1, keepdims=True)
    names = tuple(sorted(set(recipe.atoms)))
    types = np.array([names.index(atom) for atom in recipe.atoms], np.int32)
    return Clouds(x.astype(np.float32), types, names, torsions.astype(np.float32))


def wrap(angle) -> np.ndarray:
    """The same angle in (−π, π]."""
    return np.pi - np.mod(np.pi - np.asarray(angle, np.float64), 2 * np.pi)


def rotations(q) -> np.ndarray:
    """Rotation matrices [n, 3, 3] of quaternions [n, 4], which need not have length 1.

    Quaternions of four standard normal numbers give rotations that are uniform.
    """
    w, x, y, z = (np.asarray(q, np.float64) / np.linalg.norm(q, axis=-1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def place_chain(bonds, angles, torsions) -> np.ndarray:
    """The positions of a chain of N >= 3 atoms, from its lengths and angles.

    The first atom lies at the origin, the second on the x axis, the third in the x–y plane. Each
    next one stands in the frame of the three before it.

    Args:
      bonds: lengths [N − 1].
      angles: between neighbouring bonds [N − 2], π for a straight line.
      torsions: about the inner bonds [n, N − 3]: 0 where both ends lie on the same side, positive
        if the far end turns clockwise, seen along the bond.

    Returns: float64 [n, N, 3]. Raises: ValueError if the three lengths do not fit together.
    Source: Parsons et al. 2005, *Practical conversion from torsion space to Cartesian space*.
    """
    bonds, angles, torsions = (np.asarray(a, np.float64) for a in (bonds, angles, torsions))
    count = len(bonds) + 1
    if count < 3 or angles.shape != (count - 2,) or torsions.shape[1:] != (count - 3,):
        raise ValueError(
            "bonds, angles and torsions must have shapes [N − 1], [N − 2] and [n, N − 3] with "
            f"N >= 3, got {list(bonds.shape)}, {list(angles.shape)} and {list(torsions.shape)}"
        )
    n = len(torsions)
    bend = [-np.cos(angles[0]), np.sin(angles[0]), 0]
    atoms = [np.zeros((n, 3)), np.tile([bonds[0], 0, 0], (n, 1))]
    atoms.append(atoms[1] + bonds[1] * np.array(bend))
    for i, torsion in enumerate(torsions.T):
        a, b, c = atoms[-3:]
        along = (c - b) / np.linalg.norm(c - b, axis=1, keepdims=True)
        normal = np.cross(b - a, along)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        side = np.cross(normal, along)
        angle, length = angles[i + 1], bonds[i + 2]
        turned = np.cos(torsion)[:, None] * side + np.sin(torsion)[:, None] * normal
        atoms.append(c + length * (-np.cos(angle) * along + np.sin(angle) * turned))
    return np.stack(atoms, axis=1)


def torsions(x) -> np.ndarray:
    """The torsion about each inner bond of chains x [n, N, 3]: [n, N − 3] in (−π, π].

    Positive where the far bond turns clockwise, seen along the inner one; a mirror image has the
    opposite sign.

    >>> x = place_chain([1.0, 1.0, 1.0], [1.8, 1.9], [[0.7], [-2.0]])
    >>> torsions(x).round(3).ravel().tolist()
    [0.7, -2.0]
    """
    steps = np.diff(np.asarray(x, np.float64), axis=1)
    first, middle, last = steps[:, :-2], steps[:, 1:-1], steps[:, 2:]
    one, two = np.cross(first, middle), np.cross(middle, last)
    length = np.linalg.norm(middle, axis=-1)
    return np.arctan2(length * (first * two).sum(-1), (one * two).sum(-1))


def distances(x) -> np.ndarray:
    """All distances within each cloud [..., N, 3]: [..., N, N]."""
    x = np.asarray(x, np.float64)
    return np.linalg.norm(x[..., :, None, :] - x[..., None, :, :], axis=-1)
