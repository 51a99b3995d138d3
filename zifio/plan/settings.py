"""What `zifio plan` assumes, and what `key=value` on its command line changes. Every default names its source.

Try it: `python -c "from zifio.plan.settings import PlanConfig; print(PlanConfig())"`
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from zifio.config import Config
from zifio.plan.hardware import Precision

Share = Annotated[float, Field(gt=0, le=1)]
Recompute = Literal["none", "cheap", "block"]


class Layout(Config):
    """How a model is spread over devices; there are data x tensor x pipeline of them."""

    data: PositiveInt = 1
    """Copies that each see another part of the batch."""
    tensor: PositiveInt = 1
    """Devices that share every matrix."""
    pipeline: PositiveInt = 1
    """Devices that hold the layers one behind the other."""
    expert: PositiveInt = 1
    """Devices among data x tensor that share out the routed experts; with 1 their matrices are cut like all others."""
    zero: Annotated[int, Field(ge=0, le=3)] = 1
    """What the copies share out instead of holding it (ZeRO, arXiv:1910.02054): from 1 the optimizer, from 2 gradients,
    from 3 weights (FSDP). DeepSeek-V3 used 1."""

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.data * self.tensor * self.pipeline


class SftPlan(Config):
    """Fine-tuning on given text."""

    examples: PositiveInt = 804_745
    """Conversations (DeepSeek-R1, second SFT: 804,745)."""
    tokens: PositiveInt = 5355
    """Tokens of one (DeepSeek-R1: 5,355 on average)."""
    epochs: PositiveInt = 2
    """How often each is read (DeepSeek-R1: 2 to 3)."""


class RlPlan(Config):
    """Reinforcement with groups of replies."""

    steps: PositiveInt = 1000
    """Batches of rollouts."""
    prompts: PositiveInt = 32
    """Problems per step (DeepSeek-R1: 32)."""
    group: PositiveInt = 16
    """Replies to each (DeepSeek-R1: 16)."""
    prompt_tokens: PositiveInt = 256
    """Tokens of a problem."""
    reply_tokens: PositiveInt = 4096
    """Tokens of a reply, on average; what matters most and is known least."""
    with_reference: bool = True
    """Whether a reference model reads the replies too (the KL term of DeepSeek-R1)."""


class ServePlan(Config):
    """Answering requests."""

    prompt_tokens: PositiveInt = 1024
    """Tokens of a question."""
    reply_tokens: PositiveInt = 1024
    """Tokens of an answer."""
    rows: PositiveInt | None = None
    """Replies side by side; by default as many as fit in memory."""


class PlanConfig(Config):
    """What a plan assumes."""

    hardware: str | None = None
    """A name of `hardware.toml`, or `this`; by default what the model was trained on, or h100."""
    devices: PositiveInt | None = None
    """Devices at work, which turns hours of devices into days; by default the layout's."""
    usd_per_hour: NonNegativeFloat | None = None
    """Rent of a device; by default the table's."""
    precision: Precision = "bf16"
    """Of matrix products in training, whose peak the MFU is a share of."""
    mfu: Share | None = None
    """Share of the peak that training reaches; by default the published one of the model's own training, or 0.40 for a
    dense model (Llama 3: 0.38 to 0.43, arXiv:2407.21783, table 4) and 0.35 with experts (DeepSeek: 0.25 to 0.39)."""
    rl_mfu: Share = 0.25
    """As `mfu` in RL, whose batches are ragged: an assumption."""
    decode_mfu: Share = 0.30
    """Share of the peak that drawing tokens reaches where products, not memory, set the pace: an assumption."""
    bandwidth_use: Share = 0.60
    """Share of the memory's bandwidth that drawing tokens reaches: an assumption."""
    power_use: Share = 0.80
    """Share of its most that a busy device draws, on average: an assumption."""
    pue: Annotated[float, Field(ge=1)] = 1.10
    """What the building draws for each watt of the devices: an assumption (large data centres report 1.1)."""
    seq_len: PositiveInt = 4096
    """Tokens of a training sequence, for FLOPs per token; attention is causal."""
    tokens: PositiveFloat | None = None
    """Tokens of pretraining; by default the published number, or 20 for each active parameter (arXiv:2203.15556)."""
    micro_tokens: PositiveInt = 4096
    """Tokens in one pass of a device."""
    recompute: Recompute = "none"
    """What is computed again for the backward pass. cheap: norms, MLA's projections up and SwiGLU, which cost next to
    nothing (DeepSeek-V3, section 3.2.3); block: all within a block, for a third more FLOPs."""
    activation_precision: Precision | None = None
    """Of what is kept for the backward pass (DeepSeek-V3 keeps most in fp8); by default the precision of products."""
    moment_bytes: Literal[2, 4] = 4
    """Bytes of each of Adam's two moments (DeepSeek-V3 keeps them in bf16: 2)."""
    weight_precision: Precision = "bf16"
    """Of the weights while they draw or serve (DeepSeek-V3 is published in fp8)."""
    layout: Layout = Layout()
    """How the model is spread in training."""
    draw_layout: Layout | None = None
    """How a copy is spread that draws or serves; by default over the fewest devices that hold its weights in 7 tenths
    of their memory."""
    sft: SftPlan = SftPlan()
    """The fine-tuning that is planned."""
    rl: RlPlan = RlPlan()
    """The reinforcement that is planned."""
    serve: ServePlan = ServePlan()
    """The serving that is planned."""
