"""What this machine allows: its measured peaks, and for each work the time that no program on it can beat.

    time of a phase = max(FLOPs / peak of matrix products, bytes / bandwidth of memory)

A phase is the prefill, one step of decoding, or a training step. FLOPs are those of `zifio.models.count`; bytes are
the weights, read once a phase (of experts, those that the tokens of a step can visit), and the keys and values that
are attended to. The peak is the best of several libraries and shapes; the bandwidth that of reading a buffer far
larger than any cache with all threads, kept up for as long as a round of a single stream takes. The model has no term
for anything but products and memory, so 100 % is out of reach.

Try it alone: `python -m bench.roofline` (prints the peaks as JSON)
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from zifio.models.config import AnyConfig
from zifio.models.count import cached_numbers, forward_flops, parameters
from zifio.models.families import LatentConfig

Shape = AnyConfig


@dataclass(frozen=True)
class Peaks:
    """FLOP/s of matrix products and bytes/s of memory, with what reached them."""

    flops: float
    bandwidth: float
    by: str = ""
    bytes_per_weight: int = 4

    def seconds(self, flops: float, n_bytes: float) -> float:
        """The least time of a phase."""
        return max(flops / self.flops, n_bytes / self.bandwidth)


def limit(settings: dict[str, Any], shape: Shape, peaks: Peaks, lengths: Sequence[int] = ()) -> float | None:
    """Tokens per second that this machine allows at most for a job; None where the question has no answer.

    `lengths` are the replies' of a run, where replies end as they like; all `max_new_tokens` where they do not.
    """
    kind = settings["kind"]
    if kind == "pretrain":
        sizes = [len(one["tokens"]) for one in settings["sequences"]]
        return sum(sizes) / _training(shape, sizes, peaks)
    if kind not in ("rollouts", "grpo"):
        return None
    group = settings["group"]
    n_rows = group * len(settings["prompts"])
    replies = [settings["max_new_tokens"]] * n_rows if settings["fixed"] else list(lengths)
    if len(replies) != n_rows:
        return None
    prompts = [len(prompt) for prompt in settings["prompts"]]
    seconds = rollouts(shape, prompts, group, replies, peaks)
    if kind == "grpo":
        whole = [prompts[row // group] + reply for row, reply in enumerate(replies)]
        seconds += _training(shape, whole, peaks)
    return sum(replies) / seconds


def rollouts(shape: Shape, prompts: list[int], group: int, replies: list[int], peaks: Peaks) -> float:
    """Least seconds for `group` replies to each prompt: every prompt once, then all unfinished rows a step."""
    vocabulary = 2.0 * (shape.vocab_size or 0) * shape.hidden_size
    unneeded = vocabulary * (sum(prompts) - len(prompts))  # logits of a prompt's last token only
    seconds = peaks.seconds(forward_flops(shape, prompts) - unneeded, _weight_bytes(shape, sum(prompts), peaks))
    cache = peaks.bytes_per_weight * cached_numbers(shape)
    one = forward_flops(shape, [1])
    per_key = forward_flops(shape, [2]) - 2 * one  # what each further key costs a token
    for step in range(max(replies) - 1):
        at = [prompts[row // group] + step for row, reply in enumerate(replies) if reply > step + 1]
        flops = len(at) * one + per_key * sum(at)
        seconds += peaks.seconds(flops, _weight_bytes(shape, len(at), peaks) + cache * sum(at))
    return seconds


def _training(shape: Shape, sizes: list[int], peaks: Peaks) -> float:
    """Least seconds of an optimizer step: three times the forward pass, then AdamW over parameter, gradient and two
    moments, of which three are written, too."""
    adam = 7 * peaks.bytes_per_weight * parameters(shape).total
    return 3 * forward_flops(shape, sizes) / peaks.flops + adam / peaks.bandwidth


def _weight_bytes(shape: Shape, n_tokens: int, peaks: Peaks) -> float:
    """Bytes of the weights that a pass over so many tokens reads: of experts at most those it can visit."""
    counted = parameters(shape)
    experts = counted.total - counted.active  # what a token leaves out
    if isinstance(shape, LatentConfig) and experts:
        idle = shape.n_routed_experts - shape.num_experts_per_tok
        share = min(idle, (n_tokens - 1) * shape.num_experts_per_tok) / idle
        return peaks.bytes_per_weight * (counted.multiplied + share * experts)
    return peaks.bytes_per_weight * counted.multiplied


SHAPES = ((128, 576, 3072), (1024, 576, 3072), (512, 2048, 2048), (2048, 2048, 2048), (128, 576, 49152))
"""Rows, inner width and columns of the products that are tried."""


def measure(threads: int, device: str = "cpu") -> Peaks:
    """The peaks of this machine, or of its GPU in bf16."""
    import torch

    from zifio.kernels import operators as kernels

    torch.set_num_threads(threads)
    if device != "cpu":
        return _measure_gpu(device)
    best, by = 0.0, ""
    for rows, inner, columns in SHAPES:
        for name, product in _products(rows, inner, columns).items():
            rate = 2.0 * rows * inner * columns / _quickest(product)
            if rate > best:
                best, by = rate, f"{name}, {rows} x {inner} x {columns}"
    buffer = torch.ones(2**27)  # 512 MB, far beyond any cache
    huge = kernels.memory(2**27).fill_(1.0)  # on huge pages, which are read faster
    matrix, vector = torch.ones(16384, 8192), torch.ones(8192)
    readers = [lambda: buffer.sum(), lambda: torch.mv(matrix, vector), lambda: huge.sum()]
    bandwidth = 4 * buffer.numel() / _sustained(min(readers, key=_quickest))
    return Peaks(best, bandwidth, by)


def _products(rows: int, inner: int, columns: int) -> dict[str, Callable[[], Any]]:
    """The same matrix product by every library at hand."""
    import torch

    from zifio.kernels import operators as kernels

    left, weight = torch.randn(rows, inner), torch.randn(columns, inner)
    left_n, weight_n = left.numpy(), weight.numpy()
    found: dict[str, Callable[[], Any]] = {
        "torch linear": lambda: torch.nn.functional.linear(left, weight),
        "numpy": lambda: left_n @ weight_n.T,
    }
    if torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        found["oneDNN on packed weights"] = lambda: torch.ops.mkldnn._linear_pointwise(
            left, packed, None, "none", [], ""
        )
    if kernels.native(left):
        panels = kernels.pack(weight)
        found["zifio on packed weights"] = lambda: kernels.linear(left, weight, packed=panels)
    return found


def _measure_gpu(device: str) -> Peaks:
    """bf16 products and reading of a large buffer."""
    import torch

    def timed(work: Callable[[], Any]) -> Callable[[], None]:
        def once() -> None:
            work()
            torch.cuda.synchronize()

        return once

    size = 8192
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2.0 * size**3 / _quickest(timed(lambda: left @ right))
    buffer = torch.ones(2**30, device=device, dtype=torch.bfloat16)
    bandwidth = buffer.numel() * 2 / _quickest(timed(lambda: buffer.sum()))
    return Peaks(flops, bandwidth, f"torch matmul in bf16, {size} x {size} x {size}", 2)


def _quickest(work: Callable[[], Any], least_s: float = 0.4) -> float:
    """The shortest time of the work, of as many as fit into `least_s` and at least five."""
    work()
    best, began, n = float("inf"), time.perf_counter(), 0
    while n < 5 or time.perf_counter() - began < least_s:
        at = time.perf_counter()
        work()
        best, n = min(best, time.perf_counter() - at), n + 1
    return best


def _sustained(work: Callable[[], Any], least_s: float = 2.0) -> float:
    """The mean time of the work over seconds: a shared machine gives more for a moment than it keeps up."""
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < least_s:
        work()
        n += 1
    return (time.perf_counter() - began) / n


if __name__ == "__main__":
    threads_, device_ = int(sys.argv[1]) if len(sys.argv) > 1 else 1, sys.argv[2] if len(sys.argv) > 2 else "cpu"
    sys.stdout.write(json.dumps(vars(measure(threads_, device_))) + "\n")
