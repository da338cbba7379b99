"""Settings of this process that make JAX faster on a CPU."""

import ctypes
import sys

# glibc's names and numbers, from malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 2**30


def keep_freed_memory() -> bool:
    """Lets the process keep up to 1 GiB that it has freed, instead of handing it back at once.

    A training step's temporary arrays are hundreds of megabytes, which XLA allocates and frees
    at every call. Handed back, they return as pages that the kernel must clear again, one by
    one, which takes a quarter of the step (``benchmarks/fast_paths.py``). Call it before JAX's
    first computation: JAX then also runs programs in the calling thread, because only the main
    thread's heap grows that far.

    Returns: whether it could be done; it needs Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl and others
        return False
    done = mallopt(_M_MMAP_THRESHOLD, _KEPT) and mallopt(_M_TRIM_THRESHOLD, _KEPT)
    if done:
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)
    return bool(done)
