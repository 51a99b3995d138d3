"""Compiles the C files of this folder for the processor at hand, once, and loads the result.

The compiled library lies in the user's cache (`$XDG_CACHE_HOME/zifio`, else `~/.cache/zifio`) under a name that holds a
digest of sources, compiler, flags and processor, so a change of any makes a new one. `$CC` names the compiler (default:
cc); ZIFIO_KERNELS=off does without, and torch's operators take over: slower, and without the promise of equal bits.

The code calls OpenMP, but is linked without it: it uses the OpenMP that torch has loaded, so that both share one set of
threads.

Try it: `python -m zifio.kernels.library`
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401 - loads OpenMP for us

from zifio.log import say

_HERE = Path(__file__).parent
_SOURCES = ("matmul.c", "attention.c", "rowwise.c", "experts.c", "blocks.c", "codes.c", "delta.c", "indexer.c")
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-fPIC")

_I, _P, _F, _C = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float, ctypes.c_int
_SIGNATURES = {
    "matmul": (_I, _I, _I, _P, _I, _I, _P, _I, _I, _P, _I, _C),
    "matmul_transposed": (_I, _I, _I, _P, _I, _P, _I, _P, _I, _C),
    "pack": (_I, _I, _P, _I, _P),
    "unpack": (_I, _I, _P, _P, _I),
    "matmul_packed": (_I, _I, _I, _P, _I, _P, _P),
    "store": (_I, _I, _I, _I, _P, _P, _P, _P, _P, _P),
    "attend_pages": (_I, _I, _I, _I, _I, _I, _F, _P, _P, _P, _P, _I, _P, _P, _P),
    "attend_spans": (_I, _P, _I, _I, _I, _I, _I, _F, _P, _P, _P, _P, _P),
    "attend_spans_backward": (_I, _P, _I, _I, _I, _I, _I, _F, *[_P] * 9),
    "rms_norm": (_I, _I, _P, _I, _P, _F, _P),
    "rms_norm_backward": (_I, _I, _P, _I, _P, _F, _P, _P, _P),
    "swiglu": (_I, _I, _P, _P, _I, _P),
    "swiglu_backward": (_I, _I, _P, _P, _I, _P, _P, _P),
    "sigmoid": (_I, _I, _P, _P),
    "softmax": (_I, _I, _P, _P),
    "rotate": (_I, _I, _I, _P, _I, _I, _P, _P, _C, _C, _P, _I, _I),
    "logp": (_I, _I, _P, _I, _P, _P, _P),
    "token_logp": (_I, _I, _P, _I, _F, _P, _P, _P, _P),
    "token_logp_backward": (_I, _I, _P, _I, _F, _P, _P, _P),
    "draw": (_I, _I, _P, _I, _P, _P, _P, _P),
    "blocks": (_I, _P, _P, _P),
    "draw_codes": (_I, _I, _I, _P, _P, _P, _I, _P, _P, _P, _P, _P, _I, _P, _P, _P),
    "delta_spans": (_P, _I, _P),
    "delta_slots": (_P, _I, _P, _P, _P),
    "rule_spans": (_P, _I, _P),
    "rule_spans_backward": (_P, _I, _P),
    "pick": (_I, _I, _I, _I, _P, _P, _P, _I, _P, _P, _P),
    "experts": (_I, _I, _I, _I, _I, *[_P] * 6, _I, _P, _I, *[_P] * 6),
    "experts_backward": (_I, _I, _I, _I, _I, *[_P] * 14),
}
_NUMBERS = {  # what returns one
    "packed_size": (_I, _I), "key_page_size": (_I, _I), "value_page_size": (_I, _I), "blocks_work": (_I,) * 5,
    "delta_width": (_I,), "decode_work": (_I,), "decode": (_P, _I, _P, _P, _P, _I, _P, _P),
}  # fmt: skip


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where they are switched off or cannot be had (said once on the terminal)."""
    if os.environ.get("ZIFIO_KERNELS", "").lower() in ("off", "0", "no"):
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        say("no C compiler found: torch's own operators are used, which are slower. Install cc, or name it in CC")
        return None
    try:
        return _load(_compiled(compiler))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        say(f"the kernels could not be compiled, torch's slower operators are used: {detail.strip()[:400]}")
        return None


def _compiled(compiler: str) -> Path:
    """Path of the compiled library, made now if it is not there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zifio"
    place = folder / f"kernels-{_digest(compiler)}.so"
    if place.exists():
        return place
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        flags = (*_FLAGS, "-fopenmp")
        if subprocess.run([compiler, "-fopenmp", "-E", "-x", "c", os.devnull], capture_output=True).returncode:
            flags = _FLAGS
        objects = []
        for source in _SOURCES:
            objects.append(f"{beside}/{source}.o")
            command = [compiler, *flags, "-c", str(_HERE / source), "-o", objects[-1]]
            subprocess.run(command, check=True, capture_output=True, text=True)
        built = Path(beside, "kernels.so")
        unresolved = ["-undefined", "dynamic_lookup"] if platform.system() == "Darwin" else []
        link = [compiler, "-shared", *unresolved, "-o", str(built), *objects, "-lm"]
        subprocess.run(link, check=True, capture_output=True, text=True)
        built.replace(place)  # whole or not at all, whoever else builds it at the same time
    return place


def _digest(compiler: str) -> str:
    """Names everything that the compiled code depends on."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    parts = [compiler, version, *_FLAGS, platform.machine(), _processor()]
    parts += [(_HERE / name).read_text() for name in ("tile.h", *_SOURCES)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What instructions there are, in the system's words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def _load(path: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, f"zifio_{name}")
        function.argtypes, function.restype = arguments, None
        setattr(loaded, name, function)
    for name, arguments in _NUMBERS.items():
        function = getattr(loaded, f"zifio_{name}")
        function.argtypes, function.restype = arguments, _I
        setattr(loaded, name, function)
    return loaded


if __name__ == "__main__":
    say(f"kernels: {library()}")
