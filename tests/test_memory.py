"""Memory that is freed is kept, and calls wait: what `setup` changes for notebooks on Linux."""

import json
import subprocess
import sys

import pytest

from diffusion_course.notebook import memory

# A process of its own for each setting of `setup`, which must come before JAX starts.
SCRIPT = """
import json, resource, sys
from diffusion_course import setup
setup(quiet=True, cache=False, wait=sys.argv[1] == "wait")
import jax, jax.numpy as jnp

x = jnp.ones((1000, 1000))  # sorted tables are temporary arrays of 40 MB in every version
step = jax.jit(lambda x: jnp.sort(jnp.stack([jnp.sort(x * i, axis=0) for i in range(10)])).sum())
for n in range(6):
    if n == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

product = jax.jit(lambda a: a @ a @ a @ a)
a = jnp.ones((800, 800))
product(a).block_until_ready()
print(json.dumps({"faults": faults, "ready": [product(a).is_ready() for _ in range(10)]}))
"""


@pytest.fixture(scope="module")
def seen():
    def run(how):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    return {how: run(how) for how in ("wait", "return")}


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")


@linux
def test_setup_has_freed_memory_kept(seen):
    # Three steps with 80 MB of temporary arrays, in pages of 4 kB: 20,000 each if not kept.
    assert seen["wait"]["faults"] < 2_000 < 20_000 < seen["return"]["faults"]


@linux
def test_setup_has_calls_wait_unless_told_otherwise(seen):
    assert all(seen["wait"]["ready"])
    # Ten times: a busy machine may let one product end before the program looks.
    assert not all(seen["return"]["ready"])


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
