"""vLLM's worker: rollouts in one process, prefix caching on, no seeds per request (they crash its CPU build).

Try it alone: `echo '{"go": 0}' | PEER_PYTHON bench/peers/vllm_rollouts.py WORK.json`
"""

from __future__ import annotations

import os
from typing import Any

from channel import Channel, Done, Job, rounds, run


def main(job: Job, channel: Channel) -> None:
    """Load; then rollouts, or one token for the start-up time."""
    n_rows = len(job["prompts"]) * job["group"]
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CACHE_ROOT", f"{job['cache_folder']}/vllm")  # what it compiles
    if job["device"] == "cpu":
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(memory_gib(job, n_rows)))
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # "auto" leaves one core out, of two that is half
        os.environ.setdefault("KMP_BLOCKTIME", "5")  # as its own binding sets it
        os.environ.setdefault("KMP_TPAUSE", "0")
    import vllm

    on_gpu: dict[str, Any] = {} if job["device"] == "cpu" else {"gpu_memory_utilization": 0.4}
    engine = vllm.LLM(
        model=job["model"], dtype=job["dtype"], skip_tokenizer_init=True, enable_prefix_caching=True,
        max_model_len=max(map(len, job["prompts"])) + job["max_new_tokens"], max_num_seqs=n_rows,
        disable_log_stats=True, enforce_eager=job["smoke"], **on_gpu,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]

    def once(round_: int, n_new: int | None = None) -> Done:
        sampling = vllm.SamplingParams(
            n=job["group"], temperature=job["temperature"], max_tokens=n_new or job["max_new_tokens"],
            ignore_eos=job["fixed"], stop_token_ids=None if job["fixed"] else [job["eos_id"]], detokenize=False,
        )  # fmt: skip
        replies = engine.generate(prompts, sampling, use_tqdm=False)
        lengths = [len(reply.token_ids) for request in replies for reply in request.outputs]
        return Done(sum(lengths), lengths)

    if job["kind"] == "startup":
        once(0, 1)
    channel.ready(vllm.__version__, "prefix caching")
    rounds(channel, once)


def memory_gib(job: Job, n_rows: int) -> int:
    """Memory for keys and values: what all rows need at their longest, and up to a GiB more."""
    longest = max(map(len, job["prompts"])) + job["max_new_tokens"]
    return 1 + n_rows * longest * job["cache_bytes_per_token"] // 2**30


if __name__ == "__main__":
    run(main)
