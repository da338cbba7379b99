"""Counts of parameters and operations: a formula on paper against the program itself."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from networks import shape_of

from diffusion_course.models import counting
from diffusion_course.models.dit import CONDITIONING, DiT
from diffusion_course.models.mmdit import MMDiT
from diffusion_course.models.unet import UNet

# No two sizes are equal, so that none stands in for another.
SIZES = {"image_size": (4, 6), "image_channels": 3, "patch": 2, "width": 40, "head_size": 20}
FAMILIES = [
    *({"conditioning": told, "depth": 3} for told in CONDITIONING),
    *({"conditioning": told, "depth": 2, "num_classes": 7, "extras": 2} for told in CONDITIONING),
    {"depth": 5, "long_skips": True},
    {"depth": 4, "long_skips": True, "conditioning": "in-context", "extras": 1},
    {"depth": 2, "qk_norm": True, "conditioning": "cross-attention"},
    {"depth": 1, "learned_variance": True},
]


def described(**more):
    return shape_of(lambda: DiT(**SIZES, **more, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("more", FAMILIES, ids=str)
def test_counts_on_paper_are_those_of_the_program(more):
    model, batch = described(**more), 5
    assert sum(counting.dit_parameters(**SIZES, **more).values()) == counting.parameter_count(model)
    shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((batch, 4, 6, 3), (batch,)))
    got = counting.matmul_flops(lambda m, x, t: m(x, t), model, *shapes)
    paper = counting.dit_flops(**SIZES, **{k: v for k, v in more.items() if k != "qk_norm"})
    assert got == batch * sum(paper.values())


# Peebles & Xie 2023, tables 1 and 4: latents of 32×32×4, 1,000 classes, a learned variance.
PUBLISHED = {  # depth, width, heads, patch: parameters in millions, billions of multiply-adds
    "S/8": (12, 384, 6, 8, 33, 0.36),
    "B/4": (12, 768, 12, 4, 130, 5.56),
    "L/2": (24, 1024, 16, 2, 458, 80.71),
    "XL/2": (28, 1152, 16, 2, 675, 118.64),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_have_the_published_sizes(name):
    depth, width, heads, patch, millions, billions = PUBLISHED[name]
    sizes = {"patch": patch, "width": width, "depth": depth, "head_size": width // heads,
             "num_classes": 1000, "learned_variance": True}  # fmt: skip
    # They are rounded to a million and to .01; the layers that embed the time differ a little.
    assert sum(counting.dit_parameters(32, 4, **sizes).values()) / 1e6 == pytest.approx(
        millions, rel=0.01
    )
    assert sum(counting.dit_flops(32, 4, **sizes).values()) / 2e9 == pytest.approx(
        billions, rel=0.005, abs=0.006
    )


def test_a_loop_s_products_count_once_for_each_turn_and_a_gradient_s_are_twice_more():
    a, b = jnp.ones((3, 5)), jnp.ones((7, 5, 5))

    def chain(a, b):
        return jax.lax.scan(lambda x, m: (jax.jit(jnp.matmul)(x, m), None), a, b)[0]

    assert counting.matmul_flops(chain, a, b) == 7 * 2 * 3 * 5 * 5
    # A sum over two axes at once.
    two = partial(jnp.einsum, "abc,bcd->ad")
    assert counting.matmul_flops(two, jnp.ones((2, 3, 5)), jnp.ones((3, 5, 7))) == 2 * 2 * 7 * 15
    # One of two branches runs.
    either = partial(jax.lax.cond, True, lambda a, b: a @ b[0], lambda a, b: (a + 1) @ b[1])
    assert counting.matmul_flops(either, a, b) == 2 * 3 * 5 * 5
    # Backwards, each product has one for the gradient of either factor.
    both = jax.value_and_grad(lambda a, b: chain(a, b).sum(), argnums=(0, 1))
    assert counting.matmul_flops(both, a, b) == 3 * 7 * 2 * 3 * 5 * 5


def test_products_of_unknown_number_are_refused():
    def endless(x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

    with pytest.raises(ValueError, match=r"^function must .*got a while"):
        counting.matmul_flops(endless, jnp.ones((2, 2)))
    either = partial(jax.lax.cond, True, lambda x: x @ x, lambda x: x)
    with pytest.raises(ValueError, match=r"^function must .*got a cond"):
        counting.matmul_flops(either, jnp.ones((2, 2)))
    unet = shape_of(lambda: UNet(1, (32,), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"^function must .*got a "):
        counting.matmul_flops(lambda m, x, t: m(x, t), unet, jnp.ones((1, 4, 4, 1)), jnp.ones(1))


@pytest.mark.parametrize("depth", [1, 3])
def test_two_streams_cost_what_their_description_says(depth):
    width, rows, cols, length, ids = 40, 2, 3, 4, 9
    model = shape_of(
        lambda: MMDiT((4, 6), 3, width=width, depth=depth, head_size=20, num_classes=ids,
                      rngs=nnx.Rngs(0))
    )  # fmt: skip

    def dense(a, b):
        return a * b + b

    w, norms = width, 2 * 20
    stream = dense(w, 6 * w) + 4 * dense(w, w) + norms + dense(w, 4 * w) + dense(4 * w, w)
    last = stream + 2 * dense(w, 2 * w) + 20
    ends = dense(12, w) + 2 * dense(w, w) + ids * w + dense(w, 2 * w) + dense(w, 12)
    assert counting.parameter_count(model) == 2 * (depth - 1) * stream + last + ends
    x, t, cond = jnp.ones((2, 4, 6, 3)), jnp.ones(2), jnp.zeros((2, length), int)
    got = counting.matmul_flops(lambda m: m(x, t, cond), model)
    patches, tokens = rows * cols, rows * cols + length
    both = (depth - 1) * (12 * w * w * tokens + 2 * tokens**2 * w + 12 * w * w)
    alone = 12 * w * w * patches + 2 * w * w * length + 2 * patches * tokens * w + 8 * w * w
    want = both + alone + 24 * w * patches + 2 * w * w + 2 * w * w
    assert got == 2 * 2 * want


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 3}, r"patch must divide image_size = \(4, 6\), got 3"),
        ({"width": 42}, "width must be a multiple of 4, got 42"),
        ({"head_size": 12}, "head_size must divide channels = 40, got 12"),
        ({"depth": 0}, "depth must be a whole number at least 1, got 0"),
        ({"depth": 1, "long_skips": True}, "depth must be at least 2 for long_skips, got 1"),
        ({"conditioning": "adaln"}, "conditioning must be one of adaln-zero, .*got 'adaln'"),
        ({"num_classes": 0}, "num_classes must be a whole number at least 1, got 0"),
        ({"extras": -1}, "extras must be a whole number at least 0, got -1"),
    ],
)
def test_a_description_that_dit_refuses_is_refused_here_with_the_same_words(change, message):
    for count in (counting.dit_parameters, counting.dit_flops):
        with pytest.raises(ValueError, match=message):
            count(**(SIZES | change))
    with pytest.raises(ValueError, match=message):
        shape_of(lambda: DiT(**(SIZES | change), rngs=nnx.Rngs(0)))
