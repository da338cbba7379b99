import subprocess
import sys

import pytest

from diffusion_course.notebook import memory

FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
if sys.argv[1] == "keep":
    from diffusion_course.notebook import memory
    assert memory.keep_freed_memory()
x = jnp.ones((1000, 1000))
step = jax.jit(lambda x: jnp.sort(jnp.stack([jnp.sort(x * i, axis=0) for i in range(20)])).sum())
for n in range(6):
    if n == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_a_repeated_step_reuses_its_memory():
    def page_faults(how):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    # Three steps with 160 MB of temporary arrays, in pages of 4 kB: 40,000 each if not kept.
    assert page_faults("keep") < 2_000 < page_faults("return")


RETURNS_AT_ONCE = """
import sys, time
from diffusion_course import setup
setup(quiet=True, cache=False, wait=sys.argv[1] == "wait")
import jax, jax.numpy as jnp
product = jax.jit(lambda a: a @ a @ a @ a)
a = jnp.ones((1200, 1200))
product(a).block_until_ready()
late = product(a)
print(late.is_ready())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize(("how", "ready"), [("wait", "True"), ("return", "False")])
def test_setup_has_calls_wait_unless_told_otherwise(how, ready):
    done = subprocess.run(
        [sys.executable, "-c", RETURNS_AT_ONCE, how], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ready


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
