"""System calls that no answer needs, denied to all programs in the sandbox."""

from __future__ import annotations

import platform
import struct
import sys

# The kernel's name of the machine, the number there of socket, and those of: ptrace, add_key,
# request_key, keyctl, perf_event_open, process_vm_readv, process_vm_writev, bpf, userfaultfd,
# io_uring's three. Keys are the user's own, whatever walls there are; the others are where kernels
# have had their holes.
_MACHINES = {
    "x86_64": (0xC000003E, 41, (101, 248, 249, 250, 298, 310, 311, 321, 323, 425, 426, 427)),
    "aarch64": (0xC00000B7, 198, (117, 217, 218, 219, 241, 270, 271, 280, 282, 425, 426, 427)),
}
# Sockets of this machine, of the two internets and of the kernel, which all have walls of their
# own. Others have none: through VSOCK a virtual machine talks with its host.
_FAMILIES = (1, 2, 10, 16)
_OTHER_ABI = 0x40000000  # of x86_64, where the same calls have numbers from here on
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16  # where a filter finds them (lowest bytes first)
_ALLOW, _NOT_PERMITTED = 0x7FFF0000, 0x00050001


def program() -> bytes:
    """The filter as bubblewrap reads it; empty on a machine whose numbers are not known here.

    Returns: instructions of classic BPF, eight bytes each.
    Source: seccomp(2) of the Linux manual; linux/filter.h.
    """
    if not sys.platform.startswith("linux") or platform.machine() not in _MACHINES:
        return b""
    machine, socket, denied = _MACHINES[platform.machine()]
    # Code, where to go if a test holds and if it does not, operand.
    lines: list[tuple[int, str, str, int]] = [
        (_LOAD, "", "", _MACHINE),
        (_EQUAL, "", "deny", machine),
        (_LOAD, "", "", _NUMBER),
        (_AT_LEAST, "deny", "", _OTHER_ABI),
        *((_EQUAL, "deny", "", number) for number in denied),
        (_EQUAL, "", "allow", socket),
        (_LOAD, "", "", _FIRST_ARGUMENT),
        *((_EQUAL, "allow", "", family) for family in _FAMILIES),
        (_RETURN, "", "", _NOT_PERMITTED),
        (_RETURN, "", "", _ALLOW),
    ]
    places = {"deny": len(lines) - 2, "allow": len(lines) - 1}
    jump = lambda here, to: places[to] - here - 1 if to else 0  # noqa: E731
    return b"".join(
        struct.pack("=HBBI", code, jump(here, yes), jump(here, no), operand)
        for here, (code, yes, no, operand) in enumerate(lines)
    )
