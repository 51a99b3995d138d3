"""llama.cpp's worker, through the low-level calls of llama-cpp-python: all sequences side by side in one context.

Each prompt is computed once and its memory copied to the samples of its group; a sequence that has ended gives its
place to the last one, so that every pass is one batch. Keys and values are F16, as by default. Tokens are drawn by
llama.cpp's own sampler or by numpy, whichever is faster here. The weights are those of the GGUF, written out once more
as F32 or F16 without quantisation.

Try it alone: `echo '{"go": 0}' | PEER_PYTHON bench/peers/llama_rollouts.py WORK.json`
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from channel import Absent, Channel, Done, Job, fastest, rounds, run

PREFILL_TOKENS = 2048  # of one call of llama_decode


def main(job: Job, channel: Channel) -> None:
    """Load; then rollouts, or one token for the start-up time."""
    import llama_cpp

    if not job.get("gguf"):
        raise Absent("needs the model as GGUF, and none is given")
    file = unquantised(Path(job["gguf"]), Path(job["cache_folder"]), job["gguf_type"])
    text = Text(job, file)
    draws = {"own sampler": text.draw_own, "sampled by numpy": text.draw_numpy}
    if job["temperature"] == 0:
        draws = {"greedy by numpy": text.draw_likeliest}
    if job["kind"] == "startup":
        text(1, text.draw_numpy)
        channel.ready(llama_cpp.__version__)
        channel.wait()
    best = fastest({name: lambda draw=draw: text(min(8, job["max_new_tokens"]), draw) for name, draw in draws.items()})

    def once(round_: int) -> Done:
        lengths = text(job["max_new_tokens"], draws[best])
        return Done(sum(lengths), lengths)

    channel.ready(llama_cpp.__version__, f"{best}, F16 keys and values")
    rounds(channel, once)


class Text:
    """Replies to the job's prompts. Row g * P + p is sample g of prompt p, so that the prompts are rows 0 to P - 1."""

    def __init__(self, job: Job, file: Path) -> None:
        import llama_cpp
        import numpy as np

        self.lib, self.np, self.job = llama_cpp, np, job
        self.prompts, self.group = job["prompts"], job["group"]
        self.n_rows = len(self.prompts) * self.group
        quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        self._quiet = quiet  # or it would be collected while llama.cpp still calls it
        self.model = llama_cpp.llama_load_model_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.context = llama_cpp.llama_init_from_model(self.model, self._settings())
        if not self.context:
            raise Absent(f"llama.cpp makes no context for {self.n_rows} sequences")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(PREFILL_TOKENS, 0, 1)
        self.random = np.random.default_rng(0)
        self.chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        llama_cpp.llama_sampler_chain_add(self.chain, llama_cpp.llama_sampler_init_dist(0))

    def _settings(self) -> Any:
        job, settings = self.job, self.lib.llama_context_default_params()
        longest = max(map(len, self.prompts)) + job["max_new_tokens"]
        settings.n_ctx = self.n_rows * (-(-longest // 256) * 256)
        settings.n_batch = settings.n_ubatch = PREFILL_TOKENS
        settings.n_seq_max = self.n_rows
        settings.n_threads = settings.n_threads_batch = job["threads"]
        settings.kv_unified = False  # every sequence attends to its own memory only
        settings.no_perf = True
        return settings

    def __call__(self, n_new: int, draw: Any) -> list[int]:
        """The length of every reply."""
        lib, n_prompts = self.lib, len(self.prompts)
        lib.llama_memory_clear(self.memory, False)
        last = self._prefill()
        tokens = draw([at for _ in range(self.group) for at in last])
        for row in range(n_prompts, self.n_rows):
            lib.llama_memory_seq_cp(self.memory, row % n_prompts, row, -1, -1)
        positions = [len(self.prompts[row % n_prompts]) for row in range(self.n_rows)]
        rows = list(range(self.n_rows))  # which reply stands at which place of the batch
        lengths = [n_new] * self.n_rows
        for made in range(1, n_new + 1):
            ended = [] if self.job["fixed"] else [i for i, t in enumerate(tokens) if t == self.job["eos_id"]]
            for place in reversed(ended):
                lengths[rows[place]] = made
                self._leave(place, len(rows) - 1)
                for column in (rows, tokens, positions):
                    column[place] = column[-1]
                    column.pop()
            if made == n_new or not rows:
                break
            self._decode(tokens, positions, list(range(len(rows))), [True] * len(rows))
            tokens = draw(list(range(len(rows))))
            positions = [position + 1 for position in positions]
        return lengths

    def _leave(self, place: int, last: int) -> None:
        """Free a place and move the last sequence there."""
        self.lib.llama_memory_seq_rm(self.memory, place, -1, -1)
        if place != last:
            self.lib.llama_memory_seq_cp(self.memory, last, place, -1, -1)
            self.lib.llama_memory_seq_rm(self.memory, last, -1, -1)

    def _prefill(self) -> list[int]:
        """Compute all prompts in one call; where in its batch the last token of each stands."""
        tokens = [t for prompt in self.prompts for t in prompt]
        if len(tokens) > PREFILL_TOKENS:
            raise Absent(f"{len(tokens)} tokens of prompts are more than this worker's {PREFILL_TOKENS}")
        positions = [i for prompt in self.prompts for i in range(len(prompt))]
        rows = [p for p, prompt in enumerate(self.prompts) for _ in prompt]
        wanted = [i + 1 == len(prompt) for prompt in self.prompts for i in range(len(prompt))]
        self._decode(tokens, positions, rows, wanted)
        return [at for at, is_last in enumerate(wanted) if is_last]

    def _decode(self, tokens: list[int], positions: list[int], rows: list[int], wanted: list[bool]) -> None:
        batch, n = self.batch, len(tokens)
        view = self.np.ctypeslib.as_array
        batch.n_tokens = n
        view(batch.token, (n,))[:] = tokens
        view(batch.pos, (n,))[:] = positions
        view(batch.n_seq_id, (n,))[:] = 1
        view(batch.logits, (n,))[:] = wanted
        for at, row in enumerate(rows):
            batch.seq_id[at][0] = row
        self.n_outputs = sum(wanted)
        self.output_of = {at: out for out, at in enumerate(at for at, is_wanted in enumerate(wanted) if is_wanted)}
        if code := self.lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {code} for {n} tokens")

    def _logits(self, places: list[int]) -> Any:
        view = self.np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (self.n_outputs * self.n_vocab,))
        return view.reshape(self.n_outputs, self.n_vocab)[[self.output_of[at] for at in places]]

    def draw_own(self, places: list[int]) -> list[int]:
        """A token for each of these places of the last batch, at temperature 1, by llama.cpp."""
        return [self.lib.llama_sampler_sample(self.chain, self.context, at) for at in places]

    def draw_numpy(self, places: list[int]) -> list[int]:
        """The same by inverse cumulative distribution."""
        np = self.np
        mass = self._logits(places)
        mass -= mass.max(axis=1, keepdims=True)
        np.exp(mass, out=mass)
        np.cumsum(mass, axis=1, out=mass)
        target = self.random.random(len(mass), dtype=np.float32) * mass[:, -1]
        return [int(row.searchsorted(t, side="right")) for row, t in zip(mass, target, strict=True)]

    def draw_likeliest(self, places: list[int]) -> list[int]:
        """The likeliest token of each place."""
        return self._logits(places).argmax(axis=1).tolist()


def unquantised(source: Path, folder: Path, kind: str) -> Path:
    """The GGUF with its matrices as F32 or F16; made at the first call. Norms stay F32, as llama.cpp wants them."""
    target = folder / f"{source.stem}-{kind}.gguf"
    if target.exists():
        return target
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(source)
    beside = target.with_suffix(".new")
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(beside, architecture)
    skipped = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")
    for name, entry in reader.fields.items():
        if not name.startswith(skipped):
            inner = entry.types[-1] if entry.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, entry.contents(), entry.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        is_matrix = len(tensor.shape) > 1
        writer.add_tensor(tensor.name, values.astype(np.float16) if kind == "F16" and is_matrix else values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    beside.replace(target)
    return target


if __name__ == "__main__":
    run(main)
