"""What each kind of stage accepts; read by `recipe.py` from TOML and never importing torch.

A stage's `from`, `data` and `teacher` name an earlier stage of the recipe, or a folder or file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from zifio.config import Config, EndpointSettings, Sampling, build, is_url
from zifio.data.tokenizer import TokenizerConfig
from zifio.engine.config import EngineConfig
from zifio.models.config import Lora, ModelConfig
from zifio.tasks.catalog import TaskConfig

Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Optim(Config):
    """The optimizer and its schedule."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: hidden matrices by Muon, the rest by AdamW; adamw: all by AdamW."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate, after warm-up."""
    adamw_lr_scale: PositiveFloat = 1.0
    """Factor on the learning rate of what AdamW moves, beside Muon."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    eps: PositiveFloat = 1e-8
    """AdamW's term against division by zero."""
    momentum: Decay = 0.95
    """Muon's momentum."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay of matrices; norms have none."""
    clip: PositiveFloat = 1.0
    """Largest joint norm of the gradient."""
    warmup_steps: NonNegativeInt = 0
    """Steps in which the learning rate rises from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate falls after the warm-up and the hold."""
    hold: Share = 0.0
    """Share of the steps after the warm-up at the peak, before it falls (DeepSeek-V3 held two thirds of its tokens)."""
    final_lr: Share = 0.0
    """Where it ends, as a share of the peak."""


class Balance(Config):
    """How experts are kept evenly busy."""

    loss_weight: NonNegativeFloat = 1e-4
    """Alpha of the sequence-wise balance loss (DeepSeek-V3: 1e-4)."""
    bias_speed: NonNegativeFloat = 1e-3
    """Step of the loss-free selection bias (DeepSeek-V3: 1e-3)."""


class Rows(Config):
    """How sequences are laid out in memory; changes speed, not results."""

    row_tokens: PositiveInt = 256
    """Length of a packed row; no sequence may be longer."""
    micro_tokens: PositiveInt = 8192
    """Tokens of one forward and backward pass; gradients add up over the step."""
    recompute: bool = False
    """Keep only what enters a block and compute the rest again for the gradient: less memory, a third more time."""


class Held(Config):
    """A quick look at the held-out problems during training."""

    every: NonNegativeInt = 0
    """Steps between looks; 0 means never."""
    problems: PositiveInt = 64
    """How many held-out problems, always the same."""
    n: PositiveInt = 4
    """Samples per problem."""


class Stage(Config):
    """What all stages share."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Names the stage's folder and lets later stages refer to it."""


class ModelStage(Stage):
    """What all stages share that train a model."""

    steps: PositiveInt
    """Optimizer steps (in RL: batches of rollouts)."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where the model trains; auto takes a GPU where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: matrix products of training in bfloat16; weights, norms, routers and the optimizer stay in fp32."""
    optim: Optim = Optim()
    """The optimizer."""
    balance: Balance = Balance()
    """Expert balance; of no effect on a dense model."""
    rows: Rows = Rows()
    """Memory layout."""
    checkpoint_every: PositiveInt = 100
    """Steps between checkpoints, from which a killed run goes on."""
    held_out: Held = Held()
    """A look at held-out problems along the way."""
    sampling: Sampling = Sampling()
    """How replies are drawn when the stage samples."""


class TokenizerStage(Stage):
    """Train a tokenizer on the task's own text, or on a file."""

    kind: Literal["tokenizer"]
    """Names the kind."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Characters or byte-level BPE."""


class Curriculum(Config):
    """Documents that grow harder: a whole-number option of the task rises to its full value."""

    option: str
    """Option of the task that grows, such as max_terms."""
    start: PositiveInt
    """Its value at the first step."""
    until: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of the steps after which it has its full value."""


class PretrainStage(ModelStage):
    """Next-token prediction from random weights on documents of the task, some of which show their working."""

    kind: Literal["pretrain"]
    """Names the kind."""
    model: ModelConfig
    """Shape of the model."""
    tokenizer: str = "tokenizer"
    """Tokenizer stage, or a folder with tokenizer.json."""
    task: TaskConfig | None = None
    """The family that documents are made from; by default the recipe's task."""
    curriculum: Curriculum | None = None
    """Begin with easier documents; nothing means the same kind from first to last."""
    documents: PositiveInt = 128
    """Documents per step."""
    p_cot: Share = 0.1
    """Share of documents that show their working."""
    loss_on: Literal["all", "reply"] = "all"
    """Whether the prompt's tokens count too."""
    mtp_weight: NonNegativeFloat = 0.3
    """Weight of the multi-token prediction loss (DeepSeek-V3: 0.3, later 0.1); of no effect without the module."""


class Conversations(ModelStage):
    """What the stages share that learn from given conversations."""

    data: str | None = None
    """A `sample` stage, or a JSONL file with `prompt` and `response`, or `messages`."""
    documents: PositiveInt | None = None
    """Instead of data: so many problems of the task, answered with their working."""
    sequences: PositiveInt = 64
    """Conversations per step; the data is walked through in a new order every epoch."""
    short_first: Share = 0.0
    """Share of the steps over which ever longer conversations join, beginning with the shortest tenth."""
    lora: Lora | None = None
    """Train adapters and leave the rest as it is, routers and their balance too; nothing means all weights train."""

    @model_validator(mode="after")
    def _one_source(self) -> Conversations:
        if (self.data is None) == (self.documents is None):
            raise ValueError("wanted either `data` (a stage or file) or `documents` (a number), not both or neither")
        return self


class SftStage(Conversations):
    """Supervised fine-tuning on conversations."""

    kind: Literal["sft"]
    """Names the kind."""
    from_: str = Field(alias="from")
    """Model to start from."""


class Hints(Config):
    """How hints-then-RL goes: GRPO on the teacher's problems, each reply beginning like the teacher's trace."""

    start: Share = 0.9
    """Share of the trace's tokens that is given at the first step."""
    until: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of the steps after which nothing is given any more; until then the hints shrink evenly."""
    group: int = Field(default=16, ge=2)
    """Rollouts per problem; a step has sequences / group problems."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"] | None = None
    """As in an `rl` stage."""
    format_weight: NonNegativeFloat = 1.0
    """Worth of the agreed shape, beside 1 for a right answer."""


METHODS: dict[str, dict[str, Any]] = {
    # Kullback-Leibler divergence on given text (Hinton et al., arXiv:1503.02531, on every token).
    "forward_kl": {"student_share": 0.0, "beta": 0.0},
    # On-policy (MiniLLM, arXiv:2306.08543, without its gradient through the sampling; Thinking Machines' distillation).
    "reverse_kl": {"student_share": 1.0, "beta": 1.0},
    # Agarwal et al., arXiv:2306.13649: part of the text is the student's own.
    "gkd": {"student_share": 0.5, "beta": 0.5},
}
"""What the names of methods on logits stand for: values of DistillStage's own options, which explicit ones override."""

_OF_LOGITS = ("teacher_model", "endpoint", "student_share", "beta", "temperature", "top_k")
_READS = {"hints": ("hints",)} | {name: tuple(METHODS) for name in _OF_LOGITS}
"""Which methods read an option."""


class DistillStage(Conversations):
    """Teach a student what a teacher knows: by its text, by its logits, or by reinforcement that its text helps."""

    kind: Literal["distill"]
    """Names the kind."""
    teacher: str
    """The model that teaches; for the methods on logits also the address of a server that tells log-probs of prompts
    (`prompt_logprobs` at /v1/completions, as vLLM has it) and has the student's tokenizer."""
    teacher_model: str = ""
    """What the server calls the teacher."""
    endpoint: EndpointSettings = EndpointSettings()
    """How to speak with the server."""
    method: Literal["traces", "forward_kl", "reverse_kl", "gkd", "hints"] = "traces"
    """traces: fine-tuning on the teacher's text (R1, section 2.4), whatever its tokenizer; forward_kl, reverse_kl, gkd:
    the teacher's next-token distributions, for which both must have one tokenizer; hints: RL on the teacher's problems
    with the beginning of its trace given, less and less of it."""
    from_: str | None = Field(None, alias="from")
    """The student's base; or leave it out and give `model`."""
    model: ModelConfig | None = None
    """Shape of a student that starts from random weights."""
    task: TaskConfig | None = None
    """What the student's own replies are about; by default the recipe's task."""
    student_share: Share = 0.5
    """Share of a step's sequences that the student has just drawn; the others come from `data` (GKD's lambda)."""
    beta: Share = 0.5
    """Which divergence from the teacher's p to the student's q: 0 is forward KL(p || q), 1 is reverse KL(q || p), and
    between lies GKD's Jensen-Shannon divergence, whose mixture holds this much of p."""
    temperature: PositiveFloat = 1.0
    """Both models' logits are divided by this before they are compared."""
    top_k: NonNegativeInt = 0
    """Compare the teacher's likeliest tokens one by one and all others as a whole: a lower bound of the divergence
    (`divergence.py` says how near); 0 compares all."""
    hints: Hints = Hints()
    """How hints-then-RL goes."""

    @property
    def draws(self) -> bool:
        """Whether the student draws replies to learn from."""
        return self.method == "hints" or (self.method in METHODS and self.student_share > 0)

    @model_validator(mode="after")
    def _one_source(self) -> DistillStage:
        """The values of a named method where none is given, for what it wants depends on them."""
        preset = METHODS.get(self.method, {})
        missing = {name: value for name, value in preset.items() if name not in self.model_fields_set}
        stage = self.model_copy(update=missing)
        wants_data = stage.method not in METHODS or stage.student_share < 1
        if stage.documents is not None:
            raise ValueError("documents: wanted a teacher's text, came a number of documents. Give `data` instead")
        if wants_data and stage.data is None:
            way_out = " Or set student_share = 1: the student writes all of it." if stage.method in METHODS else ""
            raise ValueError(
                f"data: wanted the teacher's traces, came nothing. Name a `sample` stage or a JSONL file.{way_out}"
            )
        if not wants_data and stage.data is not None:
            raise ValueError(
                f"data: wanted none, for the student writes all text itself (student_share = 1), came {stage.data!r}. "
                "Leave it out, or lower student_share"
            )
        return stage

    @model_validator(mode="after")
    def _one_start(self) -> DistillStage:
        if (self.from_ is None) == (self.model is None):
            raise ValueError("wanted either `from` (a base to start from) or `model` (a shape), not both or neither")
        if self.lora is not None and self.from_ is None:
            raise ValueError("wanted a base under the adapters of `lora`, came random weights; give `from`")
        if self.method == "hints" and self.from_ is None:
            raise ValueError("wanted a base that RL can start from, came random weights; give `from`")
        return self

    @model_validator(mode="after")
    def _what_the_method_reads(self) -> DistillStage:
        for name, methods in _READS.items():
            if name in self.model_fields_set and self.method not in methods:
                raise ValueError(f"{name} counts with method {', '.join(methods)} only, came method {self.method}")
        self._check_server()
        if "task" in self.model_fields_set and not self.draws:
            raise ValueError(f"task is what the student draws replies to, and with method {self.method} it draws none")
        if self.method == "hints" and self.sequences % self.hints.group:
            raise ValueError(f"sequences={self.sequences} is not divisible by hints.group={self.hints.group}")
        if self.method == "hints" and self.short_first:
            raise ValueError("short_first orders conversations to imitate; with method hints it counts for nothing")
        if self.method == "hints":
            self.as_rl()
        return self

    def as_rl(self) -> RlStage:
        """The `rl` stage that trains behind hints, where it has this stage's settings; its balance is off unless set.

        Raises ConfigError for what RL cannot do.
        """
        shared = set(ModelStage.model_fields) | {"lora"}
        settings = self.model_dump(mode="json", include=shared, exclude_unset=True)
        settings |= {"kind": "rl", "name": self.name, "from": self.from_, "gate": False}
        settings |= {"prompts": self.sequences // self.hints.group, "group": self.hints.group}
        settings |= {"format_weight": self.hints.format_weight}
        return build(RlStage, settings | ({"loss": self.hints.loss} if self.hints.loss else {}), self.name)

    def _check_server(self) -> None:
        """Raise ValueError where a server could not teach so, or where there is none."""
        if not is_url(self.teacher):
            if {"teacher_model", "endpoint"} & self.model_fields_set:
                raise ValueError(f"teacher_model and endpoint are about a server, came teacher={self.teacher!r}")
            return
        if self.method not in METHODS:
            raise ValueError(
                f"method {self.method} wants text of the teacher with its weights' digest, came the address "
                f"{self.teacher}. For text of a server use an `sft` stage, for its log-probs another method"
            )
        if not self.teacher_model:
            raise ValueError("teacher_model: wanted what the server calls the teacher, came nothing")
        if not self.top_k or self.temperature != 1:
            raise ValueError(
                f"a server tells its likeliest tokens at temperature 1, came top_k={self.top_k} and "
                f"temperature={self.temperature:g}. Set top_k to what the server gives (20 at most, by vLLM's default)"
            )
        if self.from_ is None:
            raise ValueError("wanted a base that has the teacher's tokenizer, for a server gives none; give `from`")


class PassRateCurriculum(Config):
    """Problems that follow the model: a whole-number option of the task moves by one after every step whose rollouts
    were right too often or too seldom, because a group that is all right or all wrong teaches nothing."""

    option: str
    """Option of the task that moves, such as max_terms; its value in the task is the hardest."""
    start: PositiveInt
    """Its value at the first step."""
    low: Share = 0.2
    """Easier after a step of which a smaller share of the rollouts was right."""
    high: Share = 0.8
    """Harder after a step of which a larger share of the rollouts was right."""

    @model_validator(mode="after")
    def _in_order(self) -> PassRateCurriculum:
        if self.low >= self.high:
            raise ValueError(f"wanted low below high, came low={self.low} and high={self.high}. Lower low.")
        return self


class Correction(Config):
    """Weights pi_trainer / pi_sampler on tokens, for a sampler whose log-probs are not quite the trainer's."""

    mode: Literal["truncate", "mask"] = "truncate"
    """truncate: the ratio is clamped to [low, high] (truncated importance sampling); mask: it counts as it is within
    [low, high] and is 0 outside (IcePop: 0.5 to 5)."""
    level: Literal["token", "sequence"] = "token"
    """Whether the ratio is that of each token or of the whole reply."""
    low: NonNegativeFloat = 0.0
    """Least ratio."""
    high: PositiveFloat = 2.0
    """Greatest ratio (about 2 in the papers on truncated importance sampling)."""

    @model_validator(mode="after")
    def _in_order(self) -> Correction:
        if self.low >= self.high:
            raise ValueError(f"wanted low below high, came low={self.low} and high={self.high}. Lower low.")
        return self


LOSSES: dict[str, dict[str, Any]] = {
    # DeepSeekMath, eq. 3: every sequence counts the same.
    "grpo": {"advantage": "group", "aggregate": "sequence", "ratio": "token", "clip_low": 0.2, "clip_high": 0.2},
    # arXiv:2503.20783: neither the length of a reply nor the deviation of its group divides.
    "dr_grpo": {"advantage": "none", "aggregate": "constant", "ratio": "token", "clip_low": 0.2, "clip_high": 0.2},
    # arXiv:2503.14476: every token counts the same. Its other two parts are max_rounds and overlong_cache.
    "dapo": {"advantage": "group", "aggregate": "token", "ratio": "token", "clip_low": 0.2, "clip_high": 0.28},
    # arXiv:2507.18071: one ratio per sequence, the geometric mean of its tokens'.
    "gspo": {"advantage": "group", "aggregate": "sequence", "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    # arXiv:2506.13585: REINFORCE under a capped ratio; no token loses its gradient.
    "cispo": {"advantage": "group", "aggregate": "token", "ratio": "token", "cap": 5.0},
    # arXiv:2402.14740: REINFORCE with the mean of the others as baseline, on the log-prob of the whole reply.
    "rloo": {
        "advantage": "leave_one_out", "aggregate": "sequence", "ratio": "product", "clip_low": 0.2, "clip_high": 0.2,
        "kl": "k1", "kl_in": "reward",
    },
}  # fmt: skip
"""What the names of losses stand for: values of RlStage's own options, which explicit ones override."""


class Process(Config):
    """Reward for the steps of a reply, beside its outcome.

    With o the outcome's reward and p_1 .. p_K those of the steps (0 or 1 from the task's own check, a probability from
    a model; a reply without a step has none to show: its process is worth 0):

        min     min(o, p_1, ..., p_K)               the weakest step, the outcome being the last (arXiv:2504.15275)
        gated   o where every p_k reaches `least`, else 0
        mean    o + weight * mean(p)
        sum     o + weight * sum(p)                 pays for steps that nobody needs
    """

    form: Literal["min", "gated", "mean", "sum"]
    """How the steps' rewards and the outcome's become one."""
    by: str = "task"
    """task: the task's own check of steps; else a process reward model: a `prm` stage or a folder."""
    weight: NonNegativeFloat = 1.0
    """Worth of the process beside the outcome, in mean and sum."""
    least: Share = 0.5
    """Below this a step shuts the gate."""
    neutral: Share = 0.0
    """Worth of a step that is true and not the next of a working; 1 pays for true but needless ones."""
    credit: Literal["reply", "step"] = "reply"
    """reply: one reward and advantage for all tokens; step: every step's own reward, and the outcome's at the end,
    normalised over the group's steps and summed from a token on (DeepSeekMath, section 4.1.3); mean and sum only."""

    @model_validator(mode="after")
    def _has_steps(self) -> Process:
        if self.credit == "step" and self.form in ("min", "gated"):
            raise ValueError(f'form="{self.form}" is one reward for a whole reply; set credit = "reply"')
        return self


class Guard(Config):
    """Watches over a reward: a few held-out problems are answered now and then, and checked by gold, without training
    on them. An alarm names its reason with examples."""

    task: TaskConfig
    """The task as it should be checked: gold."""
    every: PositiveInt = 5
    """Steps between looks."""
    problems: PositiveInt = 32
    """How many held-out problems, always the same."""
    n: PositiveInt = 4
    """Replies per problem."""
    gap: Share = 0.15
    """Alarm when the share of replies that the reward calls right and gold does not has grown by this since the first
    look; or when gold has fallen by this from its best while the reward has not."""
    repeats: Share = 0.15
    """Alarm when the share of replies that repeat a step three times in a row has grown by this."""
    length: float = Field(1.5, gt=1)
    """Alarm when replies, at two looks in a row, are longer or shorter by this factor than at the best look at which as
    many showed a working, and gold has not risen by a tenth of `gap` since."""
    thinking: Share = 0.5
    """Alarm when the share of replies that show a working has fallen below this share of its highest."""
    action: Literal["warn", "stop", "rollback"] = "warn"
    """warn: go on; stop: end the run with an error; rollback: take back the weights of the last look without an alarm,
    and end the stage with them."""


class RlStage(ModelStage):
    """GRPO and its kin with verifiable rewards: R1-Zero from a base, or R1's reasoning stage from a cold start."""

    kind: Literal["rl"]
    """Names the kind."""
    from_: str = Field(alias="from")
    """Model to start from."""
    task: TaskConfig | None = None
    """By default the recipe's task."""
    lora: Lora | None = None
    """Train adapters and leave the rest as it is; nothing means all weights train."""
    engine: EngineConfig = EngineConfig()
    """What the sampler may spend and how it works; by default it takes all rollouts of a step side by side."""
    balance: Balance = Balance(loss_weight=0.0, bias_speed=0.0)
    """Expert balance; off, so that the policy moves for no other reason than the reward."""
    prompts: PositiveInt = 32
    """Problems per step."""
    group: int = Field(16, ge=2)
    """Rollouts per problem (DeepSeek-R1: 16)."""
    updates: PositiveInt = 1
    """Optimizer updates per batch of rollouts, each on its own share of the problems (DeepSeek-R1: 16)."""
    max_rounds: PositiveInt | None = None
    """Dynamic sampling (DAPO): keep only groups with unequal rewards and draw further problems until there are
    `prompts` of them, in at most so many rounds; by default groups are taken as they come."""
    curriculum: PassRateCurriculum | None = None
    """Let the difficulty follow the pass rate; nothing means the same task from first to last."""
    accuracy_weight: NonNegativeFloat = 1.0
    """Worth of a right answer."""
    format_weight: NonNegativeFloat = 1.0
    """Worth of the agreed shape (DeepSeek-R1: equal to accuracy)."""
    reward_model: str | None = None
    """A `reward` stage or a folder, for what no verifier can check: its scores are rewards too, counted in deviations
    from the mean of the starting model's. Where accuracy_weight is 0 the gate is open."""
    reward_weight: PositiveFloat = 1.0
    """Worth of such a deviation."""
    reward_on: Literal["reply", "answer"] = "reply"
    """What it reads: the whole reply, or what stands behind the thinking (DeepSeek-R1, on helpfulness)."""
    overlong_cache: NonNegativeInt = 0
    """Soft punishment of length (DAPO, eq. 13): over the last so many tokens before sampling.max_new_tokens the reward
    falls by up to 1; 0 for none."""
    mask_truncated: bool = False
    """Leave replies out of the loss that were cut at sampling.max_new_tokens; the group's mean still counts them."""
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo"] | None = None
    """A paper's values for the options from here to kl_in; explicit ones override them. By default GRPO with the mean
    over all tokens."""
    advantage: Literal["group", "none", "leave_one_out"] = "group"
    """Reward minus the group's mean, over the group's deviation (GRPO) or not (none: Dr. GRPO); leave_one_out: minus
    the mean of the others (RLOO)."""
    aggregate: Literal["token", "sequence", "constant"] = "token"
    """Mean over all tokens, over sequences of their token means (GRPO as printed), or token sum over a constant."""
    ratio: Literal["token", "sequence", "product"] = "token"
    """The importance ratio of each token, of its sequence as the geometric mean over tokens (GSPO), or of its whole
    sequence (RLOO)."""
    clip_low: PositiveFloat = 0.2
    """The ratio is clipped below 1 - clip_low."""
    clip_high: PositiveFloat = 0.2
    """The ratio is clipped above 1 + clip_high (DeepSeek-R1: 10)."""
    cap: PositiveFloat | None = None
    """CISPO: log-probs under a weight of min(ratio, cap) that has no gradient; clip_low and clip_high are then idle."""
    kl: Literal["k1", "k2", "k3", "k3_corrected"] = "k3"
    """Estimator of the penalty. k3 has the gradient of the forward divergence; k2, and k3_corrected (k3 times the
    ratio, DeepSeek-V3.2), that of the reverse one; k1 is for the reward: in the loss its gradient is only noise."""
    kl_in: Literal["loss", "reward"] = "loss"
    """A term of the loss, or subtracted from the reward before advantages (k1 only)."""
    kl_weight: NonNegativeFloat = 0.0
    """Weight beta of the penalty for leaving the starting model (DeepSeek-R1: 0.001)."""
    old_logps: Literal["sampler", "trainer"] = "sampler"
    """Whose log-probs the ratio starts from: those the sampler reported, or the trainer's own of the same weights."""
    correction: Correction | None = None
    """Weigh tokens for the difference between sampler and trainer; wants old_logps = "trainer"."""
    off_policy_delta: PositiveFloat | None = None
    """Leave out replies with a negative advantage whose tokens the policy finds less likely than the sampler did, by
    more than this in the mean log-prob (DeepSeek-V3.2)."""
    process: Process | None = None
    """Reward steps too; nothing means the outcome alone."""
    guard: Guard | None = None
    """Watch for a reward that is being farmed; nothing means nobody looks."""
    routing: Literal["own", "replay"] = "own"
    """replay: send a rollout's tokens in training to the experts that the sampler sent them to, weighed by the router's
    scores of today (R3, arXiv:2510.11370); own: the router chooses anew, which comes to the same in fp32 and before
    the first update."""
    asynchronous: bool = False
    """Draw the rollouts of the next step while this one trains, with the weights from before its update."""
    gate: bool = True
    """Before the first step, check that the starting model leaves something to learn and can be rewarded at all."""
    most_errors: Share = 0.1
    """Stop when the verifier breaks on more than this share of a step's rollouts."""

    @property
    def scorers(self) -> dict[str, str]:
        """The reward models that it asks, by their keys."""
        by_step = {"process.by": self.process.by} if self.process and self.process.by != "task" else {}
        return by_step | ({"reward_model": self.reward_model} if self.reward_model else {})

    @model_validator(mode="after")
    def _named_loss(self) -> RlStage:
        """Values of the named loss where none is given (a validator that runs before would lose TOML's strictness)."""
        preset = LOSSES[self.loss] if self.loss else {}
        missing = {name: value for name, value in preset.items() if name not in self.model_fields_set}
        return self.model_copy(update=missing) if missing else self

    @model_validator(mode="after")
    def _possible(self) -> RlStage:
        if self.prompts % self.updates:
            raise ValueError(f"prompts={self.prompts} is not divisible by updates={self.updates}")
        for name, value in self.sampling.off_policy().items():
            raise ValueError(
                f"sampling.{name}={getattr(self.sampling, name):g} samples another policy than the one that is "
                f"trained; set it to {value:g}"
            )
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature=0 draws the same reply every time, so no group has an advantage")
        if self.overlong_cache >= self.sampling.max_new_tokens:
            raise ValueError(
                f"overlong_cache={self.overlong_cache} must be below sampling.max_new_tokens="
                f"{self.sampling.max_new_tokens}, or every reply would be punished; lower it"
            )
        if self.kl_in == "reward" and self.kl != "k1":
            raise ValueError(f'kl_in="reward" takes the log-ratio itself, came kl="{self.kl}"; set kl = "k1"')
        if self.correction and self.old_logps == "sampler":
            raise ValueError(
                "correction compares the trainer's log-probs with the sampler's; set old_logps = \"trainer\""
            )
        if self.process and self.process.credit == "step":
            if self.advantage == "leave_one_out":
                raise ValueError('process.credit="step" wants advantage="group" or "none"; set one of them')
            if self.kl_in == "reward" and self.kl_weight:
                raise ValueError('process.credit="step" has no place for kl_in="reward"; set kl_in = "loss"')
        for name, usual in {"reward_weight": 1.0, "reward_on": "reply"}.items():
            if self.reward_model is None and getattr(self, name) != usual:
                raise ValueError(f"{name} is about a reward model, and there is none; name one as reward_model")
        if not (self.accuracy_weight or self.format_weight or self.reward_model):
            raise ValueError("accuracy_weight=0 and format_weight=0 leave no reward; raise one, or set reward_model")
        if self.routing == "replay" and self.asynchronous:
            raise ValueError(
                'routing="replay" wants the experts of every token, which the rollouts that asynchronous=true keeps in '
                'checkpoints are without. Set asynchronous = false, or routing = "own".'
            )
        return self
