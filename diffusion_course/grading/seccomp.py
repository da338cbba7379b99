"""System calls that no answer needs, denied to all programs in the sandbox."""

from __future__ import annotations

import platform
import struct
import sys

# The kernel's name of the machine, and the numbers there of: ptrace, add_key, request_key, keyctl,
# perf_event_open, process_vm_readv, process_vm_writev, bpf, userfaultfd, io_uring's three. Keys are
# the user's own, whatever walls there are; the others are where kernels have had their holes.
_MACHINES = {
    "x86_64": (0xC000003E, (101, 248, 249, 250, 298, 310, 311, 321, 323, 425, 426, 427)),
    "aarch64": (0xC00000B7, (117, 217, 218, 219, 241, 270, 271, 280, 282, 425, 426, 427)),
}
_OTHER_ABI = 0x40000000  # of x86_64, where the same calls have numbers from here on
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _MACHINE = 0, 4  # where the kernel keeps them in what a filter reads
_ALLOW, _NOT_PERMITTED = 0x7FFF0000, 0x00050001


def program() -> bytes:
    """The filter as bubblewrap reads it; empty on a machine whose numbers are not known here.

    Returns: instructions of classic BPF, eight bytes each.
    Source: seccomp(2) of the Linux manual; linux/filter.h.
    """
    if not sys.platform.startswith("linux") or platform.machine() not in _MACHINES:
        return b""
    machine, denied = _MACHINES[platform.machine()]
    tests = [(_AT_LEAST, _OTHER_ABI), *((_EQUAL, number) for number in denied)]
    last = len(tests)
    lines = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 0, last + 2, machine), (_LOAD, 0, 0, _NUMBER)]
    # Where a test holds, jump behind the other tests and the line that allows.
    lines += [(test, last - n, 0, value) for n, (test, value) in enumerate(tests)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _NOT_PERMITTED)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
