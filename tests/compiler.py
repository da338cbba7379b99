"""How the tests' own programs are compiled: quickly.

Most of them run once. On a fresh machine two thirds of the tests' time is XLA's compiler; with few
of LLVM's passes, the older emitters and no parallel parts it takes half of that. A network then
trains 1.1 times and draws up to 1.4 times as slowly, so notebooks keep the compiler's defaults.
"""

import os

_QUICK = (
    "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false "
    "--xla_cpu_parallel_codegen_split_count=1"
)


def quick() -> None:
    """For this process and those that it starts, before JAX is used; flags that are set stay."""
    os.environ.setdefault("XLA_FLAGS", _QUICK)


def without(environment: dict[str, str]) -> dict[str, str]:
    """The same variables, so that a process compiles as it does for a reader."""
    mine = environment.get("XLA_FLAGS") == _QUICK
    return {k: v for k, v in environment.items() if not (mine and k == "XLA_FLAGS")}
