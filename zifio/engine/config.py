"""What the engine may spend and how it works; read from a recipe or a command line, never importing torch.

Try it alone: `python -c "from zifio.engine.config import EngineConfig; print(EngineConfig(memory_gb=0.5))"`
"""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt, model_validator

from zifio.config import Config


class EngineConfig(Config):
    """Memory, batch and forms of the engine. Only speed and memory depend on these, never what is drawn."""

    memory_gb: PositiveFloat | None = None
    """Most memory for keys and values, in 10^9 bytes; by default what the batch needs, up to half of what is free."""
    max_rows: PositiveInt = 512
    """Most sequences computed side by side."""
    chunk_tokens: PositiveInt = 2048
    """Most prompt tokens computed in one step, beside the replies that are under way; longer prompts come in chunks."""
    prefix_sharing: bool = True
    """Compute and store equal beginnings of prompts once."""
    speculate: bool = False
    """Draft one token ahead with the model's MTP module and check it in the next step: the same replies, in fewer
    steps."""
    latent_cache: bool = False
    """Store MLA's latents (absorbed form) instead of every head's keys and values; of no effect on other attention."""
    one_copy: bool = False
    """While a batch is drawn, keep weights only as the kernels want them: less by their size in memory, for the time of
    writing them anew. Of no effect where there are no kernels (a GPU, bf16), and on requests that are queued."""
    bitwise: bool = False
    """True: insist that log-probs are an fp32 trainer's bit for bit, whatever the batch, and refuse to work where that
    cannot be kept (another device or type, MLA's latent_cache, no compiled kernels). It costs nothing: with kernels on
    a CPU it is so anyway. False: as near as rounding allows."""
    cuda_graphs: bool = True
    """Capture steps that only decode as CUDA graphs, which a GPU runs without waiting for Python; of no effect on a CPU
    and while routing is recorded."""
    record_routing: bool = False
    """Keep the experts of every token, so that a trainer can send tokens the same way."""

    @model_validator(mode="after")
    def _possible(self) -> EngineConfig:
        if self.one_copy and self.latent_cache:
            raise ValueError("latent_cache multiplies by weights as they are, which one_copy gives up. Choose one")
        return self
