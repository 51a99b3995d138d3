"""A seccomp filter that takes from a program what no task needs: tracing, mounting, keys, new namespaces, io_uring ...

A list of system calls that fail, in classic BPF, for x86_64 and aarch64. Calls newer than the list fail too, with "no
such call", so that libraries fall back. Foreign calling conventions (32 bit, x32) kill. Standard library only: this
runs in the sandbox's own launcher.

Try it alone: `python -c "from zifio.tasks.jail.filter import instructions; print(len(instructions()))"`
"""

import ctypes
import errno
import os
import struct

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_DENIED = """
acct 163 89              add_key 248 217          adjtimex 159 171        bpf 321 280
chroot 161 51            clock_adjtime 305 266    clock_settime 227 112   create_module 174 -
delete_module 176 106    fanotify_init 300 262    fanotify_mark 301 263   finit_module 313 273
get_mempolicy 239 236    init_module 175 105      io_setup 206 0          io_submit 209 2
ioperm 173 -             iopl 172 -               kcmp 312 272            kexec_file_load 320 294
kexec_load 246 104       keyctl 250 219           lookup_dcookie 212 18   mbind 237 235
memfd_create 319 279     migrate_pages 256 238    modify_ldt 154 -        mount 165 40
move_pages 279 239       mq_open 240 180          msgget 68 186           name_to_handle_at 303 264
open_by_handle_at 304 265   perf_event_open 298 241   personality 135 92  pivot_root 155 41
process_vm_readv 310 270 process_vm_writev 311 271   ptrace 101 117       quotactl 179 60
reboot 169 142           request_key 249 218      semget 64 190           set_mempolicy 238 237
setdomainname 171 162    sethostname 170 161      setns 308 268           settimeofday 164 170
shmat 30 196             shmctl 31 195            shmget 29 194           swapoff 168 225
swapon 167 224           sysfs 139 -              syslog 103 116          umount2 166 39
unshare 272 97           uselib 134 -             userfaultfd 323 282     ustat 136 -
vhangup 153 58
"""  # name, its number on x86_64, its number on aarch64
# System V memory, memfd and shared anonymous memory are among them for they could hide from the memory limit.
# Files in /dev/shm serve instead, and are counted.

_FIRST_SHARED = 424  # from here on every architecture has the same numbers
_ALLOWED_SHARED = {  # all else from there on is new mounting, io_uring, pidfd_getfd, clone3 (its flags cannot be seen)
    "pidfd_send_signal": 424, "pidfd_open": 434, "close_range": 436, "openat2": 437, "faccessat2": 439,
    "epoll_pwait2": 441, "futex_waitv": 449, "fchmodat2": 452, "futex_wake": 454, "futex_wait": 455,
}  # fmt: skip

_CLONE, _SOCKET, _SOCKETPAIR, _IOCTL, _MMAP = (56, 220), (41, 198), (53, 199), (16, 29), (9, 222)
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_AF_UNIX, _TIOCSTI, _TIOCLINUX, _MAP_SHARED, _MAP_ANONYMOUS = 1, 0x5412, 0x541C, 0x01, 0x20

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND, _FOURTH = 0, 4, 16, 24, 40  # offsets; of arguments the low halves
_KILL, _ALLOW, _FAIL = 0x80000000, 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def instructions(machine: str | None = None) -> list[Instruction]:
    """The filter as (code, jump if true, jump if false, operand); empty on a machine whose calls are not listed."""
    machine = machine or os.uname().machine
    if machine not in _AUDIT_ARCH:
        return []
    column = list(_AUDIT_ARCH).index(machine)
    no, unknown, family = (_FAIL | code for code in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT))
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL),
    ]
    for number in _ALLOWED_SHARED.values():
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    code += [(_AT_LEAST, 0, 1, _FIRST_SHARED), (_RETURN, 0, 0, unknown)]
    words = _DENIED.split()
    for number in words[1 + column :: 3]:
        if number != "-":
            code += [(_EQUAL, 0, 1, int(number)), (_RETURN, 0, 0, no)]
    code += _only_if(_CLONE[column], _FIRST, [(_ANY_BIT, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, no)])
    for call in (_SOCKET, _SOCKETPAIR):
        code += _only_if(call[column], _FIRST, [(_EQUAL, 1, 0, _AF_UNIX), (_RETURN, 0, 0, family)])
    typing = [(_EQUAL, 1, 0, _TIOCSTI), (_EQUAL, 0, 1, _TIOCLINUX), (_RETURN, 0, 0, no)]
    code += _only_if(_IOCTL[column], _SECOND, typing)
    sharing = [(_ANY_BIT, 0, 2, _MAP_ANONYMOUS), (_ANY_BIT, 0, 1, _MAP_SHARED), (_RETURN, 0, 0, no)]
    code += _only_if(_MMAP[column], _FOURTH, sharing)
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def _only_if(number: int, argument: int, checks: list[Instruction]) -> list[Instruction]:
    """For the call `number`: load its argument, check it, and let pass what falls through."""
    body = [(_LOAD, 0, 0, argument), *checks, (_RETURN, 0, 0, _ALLOW)]
    return [(_EQUAL, 0, len(body), number), *body]


def install() -> bool:
    """Put this process and all its children under the filter, for good. False on a machine that is not listed.

    Raises OSError when the kernel has no seccomp. Privileges that a program could gain must be given up before.
    """
    code = instructions()
    if not code:
        return False
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
    program = _Program(len(code), ctypes.addressof(packed))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp filter")
    return True
