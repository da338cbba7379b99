"""A network, a denoiser or a jump that answers in another shape is refused where it is called.

Such an answer would broadcast, and every state of a column or of the batch would become the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_course import distillation, flow_map, guidance, parallel, process, sampling

P = process.rectified_flow()
X = jax.random.normal(jax.random.key(0), (3, 2))
KEY = jax.random.key(1)


def right(x, t, *_):
    return 0.5 * x


def column(x, t, *_):
    return x[:, :1]


def one_row(x, t, *_):
    return x[:1]


SAMPLE = jnp.array([0.9, 0.5, 0.3]), jnp.array([0.4, 0.2, 0.1])
PLACES = {
    "jumps": lambda D: sampling.sample(flow_map.jumps(P), D, X, sampling.uniform(2), KEY),
    "land": lambda D: flow_map.land(P, D, X, 0.5, 0.25),
    "a denoiser as a jump": lambda D: flow_map.of_denoiser(D)(X, 0.5, 0.25),
    "picard": lambda D: parallel.picard(P, D, X, sampling.uniform(3), tolerance=0.1),
    "classifier": lambda D: guidance.classifier(D, P, lambda x, t: x.sum(1))(X, 0.5),
    "inpaint": lambda D: guidance.inpaint(D, jnp.zeros((3, 2)), np.array([True, False]))(X, 0.5),
    "landing_loss": lambda D: flow_map.landing_loss(P, "flow", D, X, *SAMPLE, X),
    "consistency_loss": lambda D: flow_map.consistency_loss(D, right, P, "flow", X, KEY, steps=4),
    "its target": lambda D: flow_map.consistency_loss(right, D, P, "flow", X, KEY, steps=4),
    "its teacher": lambda D: flow_map.consistency_loss(
        right, right, P, "flow", X, KEY, steps=4, teacher=D
    ),
    "progressive_loss": lambda D: flow_map.progressive_loss(right, P, "flow", X, KEY, D, 2),
    "trajectory_loss": lambda D: distillation.trajectory_loss(
        right, right, P, X, KEY, teacher=D
    ),
    "distribution_loss, real": lambda D: flow_map.distribution_loss(P, X, X, SAMPLE[0], D, right),
    "distribution_loss, fake": lambda D: flow_map.distribution_loss(P, X, X, SAMPLE[0], right, D),
    "mean_velocity_loss": lambda D: flow_map.mean_velocity_loss(
        D, X, None, KEY, times=flow_map.mean_flow_times()
    ),
}  # fmt: skip


@pytest.mark.parametrize("answer", [column, one_row])
@pytest.mark.parametrize("place", PLACES)
def test_an_answer_of_another_shape_is_refused(place, answer):
    PLACES[place](right)  # and the right one is not
    with pytest.raises(ValueError, match=r"must have (the )?shape .*, got shape"):
        PLACES[place](answer)


def test_a_state_to_land_at_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="landed must have the shape of x"):
        flow_map.landing_loss(P, "flow", right, X, *SAMPLE, X[:1])


def test_mean_velocity_refuses_what_the_other_losses_refuse():
    loss = lambda x0, cond=None: flow_map.mean_velocity_loss(  # noqa: E731
        right, x0, cond, KEY, times=flow_map.mean_flow_times()
    )
    with pytest.raises(ValueError, match=r"x0 must be .*floating"):
        loss(np.full((4, 2), 200, np.uint8))
    with pytest.raises(ValueError, match="cond must be labels of shape"):
        loss(X, jnp.zeros((3, 1), jnp.int32))
