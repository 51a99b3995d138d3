"""How much memory the cache may take, and which requests can never fit it.

Try it alone: `python -c "from zifio.engine.memory import free_bytes; print(free_bytes())"`
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from zifio.config import ConfigError

SHARE = 0.5
"""Of the free memory, what the cache may take when nothing else is said."""


def free_bytes(device: str = "cpu") -> int:
    """Memory that is free for this process, also within its control group; where nobody says, half of all there is.

    Of a GPU: what its driver calls free, and what torch has reserved there and does not use.
    """
    if device != "cpu":
        import torch  # whose absence makes the rest quick to try

        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file() and (found := re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())):
        free = [int(found.group(1)) * 1024]
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()).isdecimal():
        used = int((group / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        free.append(max(0, int(limit) - used + (int(cached.group(1)) if cached else 0)))
    return min(free)


def n_pages(wanted: int, page_bytes: int, memory_gb: float | None, device: str = "cpu", taken: int = 0) -> int:
    """Pages to have, when `wanted` would hold everything at once: those, or as many as the memory allows, of which so
    many bytes are taken. Pages that keep nothing only count tokens, and cost nothing."""
    return min(wanted, int(max(0.0, _most(memory_gb, device) - taken) / page_bytes)) if page_bytes else wanted


def n_slots(wanted: int, slot_bytes: int, memory_gb: float | None, device: str = "cpu") -> int:
    """Slots for states of sequences: as many as wanted, or what half of the memory holds, and one at least.

    Raises ConfigError where the memory does not hold one."""
    most = _most(memory_gb, device)
    if slot_bytes > most:
        raise ConfigError(
            f"memory_gb: wanted at least {slot_bytes / 1e9:.3g} for the state of one sequence, came {most / 1e9:.3g}. "
            "Raise it."
        )
    return max(1, min(wanted, int(most / 2 / slot_bytes)))


def _most(memory_gb: float | None, device: str) -> float:
    return SHARE * free_bytes(device) if memory_gb is None else memory_gb * 1e9


def misfit(
    n_prompt: int, n_new: int, context: int, page_size: int, page_bytes: int, n_pages: int, what: str = "the prompt"
) -> str:
    """Why a prompt of so many tokens with so long a reply can never be computed; empty when it can."""
    if n_prompt + n_new > context:
        return (
            f"max_new_tokens={n_new} does not fit: {what} has {n_prompt} tokens and the model's context is {context}. "
            f"Lower max_new_tokens to {max(context - n_prompt, 0)} or shorten it."
        )
    wanted = -(-(n_prompt + n_new) // page_size)
    if wanted > n_pages:
        return (
            f"max_new_tokens={n_new} does not fit: {what} has {n_prompt} tokens, together {wanted} pages of "
            f"{page_size} tokens ({wanted * page_bytes / 1e9:.3g} GB), and the cache has {n_pages} "
            f"({n_pages * page_bytes / 1e9:.3g} GB). Lower max_new_tokens to "
            f"{max(n_pages * page_size - n_prompt, 0)}, or raise the engine's memory_gb."
        )
    return ""
