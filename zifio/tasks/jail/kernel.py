"""The few calls of Linux that Python does not offer, each raising OSError with its own name.

Standard library only: this runs in the sandbox's own launcher.
"""

import ctypes
import os
import struct

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT = 1, 2, 4, 8, 32
BIND, RECURSIVE, PRIVATE = 4096, 16384, 1 << 18
DETACH = 2

_SYS_ADMIN = 21
_SETUID, _SETGID = 7, 6
_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP, _CHILD_SUBREAPER, _NO_NEW_PRIVS, _CAP_AMBIENT = 1, 4, 24, 36, 38, 47
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(what: str, result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Move this process into new namespaces."""
    _checked("unshare", _libc.unshare(flags))


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2)."""
    given = [word.encode() for word in (source, target, kind)]
    _checked(f"mount {target}", _libc.mount(*given, ctypes.c_ulong(flags), options.encode()))


def unmount(target: str) -> None:
    """Take a mount and all below it out of sight."""
    _checked(f"umount {target}", _libc.umount2(target.encode(), DETACH))


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    _checked("pivot_root", _libc.pivot_root(new.encode(), old.encode()))


def die_with_parent(signal: int) -> None:
    """Get `signal` when the thread that made this process ends. A change of user undoes it."""
    _checked("prctl", _libc.prctl(_PDEATHSIG, signal, 0, 0, 0))


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends."""
    _checked("prctl", _libc.prctl(_CHILD_SUBREAPER, 1, 0, 0, 0))


def hide_memory() -> None:
    """Close this process's memory and open files to others of its user (/proc, ptrace)."""
    _checked("prctl", _libc.prctl(_DUMPABLE, 0, 0, 0, 0))


def may_administer() -> bool:
    """Whether this process may make namespaces and become another user without a user namespace."""
    with open("/proc/self/status") as lines:
        effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff"))
    return all(effective >> bit & 1 for bit in (_SYS_ADMIN, _SETUID, _SETGID))


def drop_bounds() -> None:
    """No capability can be regained by executing a file. Only who still has the right to may do this."""
    for capability in range(64):
        if _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0):
            break  # beyond the last one


def drop_privileges() -> None:
    """No capability now or ever, and none to be gained from a file."""
    _libc.prctl(_CAP_AMBIENT, 4, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    nothing = ctypes.create_string_buffer(bytes(24))
    _checked("capset", _libc.capset(header, nothing))
    _checked("prctl", _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
