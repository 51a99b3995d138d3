"""The file system of a sandbox: a system to read, a small tmpfs to write, a /proc of its own, and nothing else.

Called as process 1 of new namespaces, while it still holds the capabilities of their owner. Standard library only, and
whatever it needs of that is imported before: from the first pivot on, modules are out of reach.
"""

import os

from zifio.tasks.jail import kernel
from zifio.tasks.jail.kernel import BIND, NODEV, NOEXEC, NOSUID, RDONLY, RECURSIVE, REMOUNT, mount, pivot_root, unmount

DEVICES = ("null", "full", "random", "urandom")  # not zero: mapped, it is memory that the limit cannot see
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
         "stderr": "/proc/self/fd/2", "shm": "/tmp"}  # fmt: skip

_BASE, _NEW, _OLD = "/tmp", "/new", "/old"
_SHOWN_FLAGS = {"ro": RDONLY, "nosuid": NOSUID, "nodev": NODEV, "noexec": NOEXEC, "noatime": 1024, "nodiratime": 2048,
                "relatime": 1 << 21}  # fmt: skip


def enter(readable: list[str], scratch_bytes: int, user: int) -> None:
    """Make the new root and go there; what was there before is out of reach afterwards.

    `readable` are files and folders of the host, shown read-only at their own paths. Raises OSError.
    """
    mount("none", "/", "", kernel.PRIVATE | RECURSIVE)
    mount("tmpfs", _BASE, "tmpfs", NOSUID | NODEV, "size=64k,mode=755")
    os.mkdir(_BASE + _NEW)
    os.mkdir(_BASE + _OLD)
    pivot_root(_BASE, _BASE + _OLD)
    os.chdir("/")
    mount("tmpfs", _NEW, "tmpfs", NOSUID | NODEV, "size=1m,nr_inodes=1000,mode=755")
    for path in readable:
        _show(path)
    for name in ("dev", "proc", "tmp", "etc"):
        os.makedirs(f"{_NEW}/{name}", exist_ok=True)
    for name in DEVICES:
        _show(f"/dev/{name}", devices=True)
    for name, target in LINKS.items():
        os.symlink(target, f"{_NEW}/dev/{name}")
    _write("passwd", f"nobody:x:{user}:{user}:nobody:/tmp:/usr/sbin/nologin\n")
    _write("group", f"nogroup:x:{user}:\n")
    mount("tmpfs", f"{_NEW}/tmp", "tmpfs", NOSUID | NODEV, f"size={scratch_bytes},nr_inodes=10000,mode=1777")
    _own_proc()
    unmount(_OLD)
    os.chdir(_NEW)
    pivot_root(".", ".")
    unmount(".")
    os.chdir("/")
    mount("none", "/", "", BIND | REMOUNT | RDONLY | NOSUID | NODEV)


def _write(name: str, text: str) -> None:
    with open(f"{_NEW}/etc/{name}", "w") as file:
        file.write(text)


def _own_proc() -> None:
    """Processes of this namespace only, nothing to write, and nothing but processes where the kernel can."""
    flags = RDONLY | NOSUID | NODEV | NOEXEC
    try:
        mount("proc", f"{_NEW}/proc", "proc", flags, "subset=pid")
    except OSError:
        mount("proc", f"{_NEW}/proc", "proc", flags)


def _show(path: str, devices: bool = False) -> None:
    """Bind a path of the old root into the new one, with everything that is mounted below it, read-only."""
    source, target = _OLD + path, _NEW + path
    if os.path.islink(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(source), target)
        return
    if not os.path.exists(source):
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    mount(source, target, "", BIND | RECURSIVE)
    for place, options in _mounts_below(target):
        kept = sum(flag for word, flag in _SHOWN_FLAGS.items() if word in options)
        mount("none", place, "", BIND | REMOUNT | kept | RDONLY | NOSUID | (0 if devices else NODEV))


def _mounts_below(path: str) -> list[tuple[str, list[str]]]:
    """(place, its options) of the mounts at and below `path`: flags that the host set must be set again."""
    found = []
    with open(f"{_OLD}/proc/self/mountinfo") as lines:
        for line in lines:
            fields = line.split(" ")
            place = fields[4]
            for escape, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
                place = place.replace(escape, character)
            if place == path or place.startswith(path + "/"):
                found.append((place, fields[5].split(",")))
    return found
