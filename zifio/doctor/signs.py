"""What can be wrong with a training stage, each from a few figures of its run folder: pure functions of a reading.

A sign keeps silent where it cannot tell. What a stage that goes well also shows is no sign: a policy that is nearly
always right has groups without a signal and little entropy.

Try it alone: `pytest tests/doctor/test_signs.py`
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from zifio.doctor.reading import Finding, Reading, course
from zifio.record.stage import expert_keys, expert_layers

_NO_SIGNAL = 0.8  # of the groups; honest runs that are not yet right have had up to 0.7
_SELDOM, _MOSTLY = 0.02, 0.9  # right
_GAIN = 0.05  # in the share that is right: less is no gain
_COLLAPSED = 0.1  # of the entropy of the first steps
_LENGTH = 1.5
_CUT = 0.3
_GAP, _GAP_GROWTH, _GAP_AT_ALL = 0.02, 3.0, 0.2  # nats a token
_ERRORS = 0.01  # of the checks
_IDLE, _DEAD_SHARE = 0.6, 0.25
_WORSE = 1.3
_FALLEN = 0.5

DEAD = 0.1
"""An expert with less than this part of an even share is dead."""


def diverged(reading: Reading) -> Finding | None:
    """Loss or gradient ceased to be finite, or the loss has left its best far behind."""
    tries = [
        f"a lower optim.lr (now {_setting(reading, 'optim', 'lr'):g})",
        "more optim.warmup_steps",
        "a lower optim.clip",
    ]
    if reading.ended.get("kind") == "Diverged":
        return Finding(
            "divergence", reading.name, "Training diverged: numbers were no longer finite.",
            [_first_sentence(reading.ended["message"])], tries,
        )  # fmt: skip
    loss = course(reading, "loss") if reading.kind not in ("rl", "distill") else None
    if loss is None:
        return None
    smooth = loss.means()
    best = int(smooth.argmin())
    if loss.latest > max(_WORSE * smooth[best], smooth[best] + 0.1):
        at = loss.steps[best + loss.size - 1]
        return Finding(
            "divergence", reading.name, "The loss rises again: training is coming apart.",
            [loss.tell(), f"lowest, at step {at}: {smooth[best]:.3g}"], tries,
        )  # fmt: skip
    return None


def verifier_errors(reading: Reading) -> Finding | None:
    """Checks that break."""
    tries = [
        "mend the verifier: the reasons stand in rollouts.jsonl and in the error",
        f"`most_errors` (now {reading.settings.get('most_errors', 0.1):g}) says how many stop the run",
    ]
    says = "The verifier breaks; such rollouts teach nothing and are left out."
    if reading.ended.get("kind") == "VerifierBroke":
        return Finding("verifier_errors", reading.name, says, [_first_sentence(reading.ended["message"])], tries)
    errors = course(reading, "n_verifier_errors", fewest=1)
    n = reading.settings.get("prompts", 0) * reading.settings.get("group", 0)
    if errors is None or not n:
        return None
    share = errors.values.sum() / (n * len(errors))
    if share < _ERRORS:
        return None
    worst = int(errors.values.argmax())
    told = f"{share:.1%} of all checks broke; most, at step {errors.steps[worst]}: {errors.values[worst]:.0f} of {n}"
    return Finding("verifier_errors", reading.name, says, [told], tries)


def farmed(reading: Reading) -> Finding | None:
    """The guard's alarms: the reward pays for something else than what is wanted."""
    if not reading.alarms:
        return None
    first, last = reading.alarms[0], reading.alarms[-1]
    evidence = [f"step {first.get('step')}: {reason}" for reason in first.get("reasons", [])]
    if last is not first:
        evidence.append(f"{len(reading.alarms)} alarms, the last at step {last.get('step')}")
    tries = [
        "a stricter verifier: `zifio screen TASK` shows what it lets through",
        'process = { form = "min" }',
        'guard.action = "stop" or "rollback"',
    ]
    return Finding("farmed", reading.name, "The reward is being farmed: gold does not follow it.", evidence, tries)


def gap_growth(reading: Reading) -> Finding | None:
    """Sampler and trainer give the same tokens ever more different log-probs."""
    gap = course(reading, "sampling/sampling_logp_difference/mean", fewest=3)
    if gap is None:
        return None
    smooth = gap.means()
    worst = int(smooth.argmax())
    if smooth[worst] < _GAP_AT_ALL and gap.latest < max(_GAP, _GAP_GROWTH * gap.first):
        return None
    told = f"most, up to step {gap.steps[worst + gap.size - 1]}: {smooth[worst]:.3g} nats a token"
    settings, tries = reading.settings, []
    if settings.get("asynchronous"):
        tries.append("asynchronous = false: rollouts are a step behind the weights")
    if settings.get("updates", 1) > 1:
        tries.append(f"fewer updates (now {settings['updates']}) or a lower optim.lr: the policy moves within a batch")
    if settings.get("routing") == "own" and any(key.startswith("expert_load/") for key in reading.keys):
        tries.append('routing = "replay": tokens keep the experts that sampled them')
    tries.append('old_logps = "trainer" with correction = { mode = "truncate" }')
    return Finding("gap_growth", reading.name, "Sampler and trainer drift apart.", [gap.tell(), told], tries)


def expert_collapse(reading: Reading) -> Finding | None:
    """A few experts do the work of all."""
    speed = _setting(reading, "balance", "bias_speed")
    for layer in expert_layers(reading.keys):
        keys = expert_keys(reading.keys, layer)
        shares = [course(reading, key, fewest=3) for key in keys]
        if not shares or any(one is None for one in shares):
            continue
        share_SE = np.stack([one.values for one in shares if one is not None], axis=1)
        size = max(3, len(share_SE) // 5)
        late_E, busy = share_SE[-size:].mean(axis=0), float(np.median(_busy(share_SE[-size:])))
        n, dead = len(keys), int((late_E < DEAD / len(keys)).sum())
        if busy >= _IDLE and dead < _DEAD_SHARE * n:
            continue
        first, last = shares[0].steps[[-size, -1]] if shares[0] is not None else (0, 0)
        evidence = [
            f"layer {layer}, steps {first} to {last}: load spread as over {busy * n:.1f} of {n} experts, "
            f"{dead} of them dead; the busiest has {late_E.max():.0%}"
        ]
        tries = [f"balance.bias_speed = 0.001 (now {speed:g})", "balance.loss_weight = 0.0001", "a lower optim.lr"]
        return Finding("expert_collapse", reading.name, "Experts collapse: few of them do the work.", evidence, tries)
    return None


def gate(reading: Reading) -> Finding | None:
    """A look at the starting model found that RL could not work."""
    kind = reading.ended.get("kind")
    if kind not in ("TooHard", "TooEasy"):
        return None
    cause, way = ("too_easy", _HARDER) if kind == "TooEasy" else ("too_hard", _EASIER)
    says, message = "The gate was shut: there is nothing to learn from.", reading.ended["message"]
    return Finding(cause, reading.name, says, [message], [way, "gate = false, to try all the same"])


def too_hard(reading: Reading) -> Finding | None:
    """Nothing is ever right."""
    right = course(reading, "pass_at_1")
    silent = course(reading, "frac_reward_zero_std")
    if right is None or right.latest > _SELDOM or right.first > _SELDOM:
        return None
    group = reading.settings.get("group", 16)
    evidence = [right.tell(".1%"), *([silent.tell(".0%") + " of the groups have no signal"] if silent else [])]
    tries = [
        _EASIER,
        f"a larger group (now {group}), or max_rounds to draw on until groups have a signal",
        "a better start: pretrain longer, or fine-tune on a few worked answers first (`sft`)",
    ]
    return Finding("too_hard", reading.name, "Too hard: replies are hardly ever right.", evidence, tries)


_EASIER = 'easier problems: the task\'s own options, or curriculum = { option = "max_terms", start = 2 }'
_HARDER = "harder problems: the task's own options"


def too_easy(reading: Reading) -> Finding | None:
    """Nearly everything was right from the start."""
    right, silent = course(reading, "pass_at_1"), course(reading, "frac_reward_zero_std")
    if right is None or silent is None or right.first < _MOSTLY or silent.first < _MOSTLY:
        return None
    evidence = [right.tell(".1%"), silent.tell(".0%") + " of the groups have no signal"]
    return Finding(
        "too_easy", reading.name, "Too easy: nearly every reply was right from the start.", evidence, [_HARDER]
    )


def dead_groups(reading: Reading) -> Finding | None:
    """Groups whose replies all earn the same, though the problems are neither too hard nor too easy."""
    right, silent = course(reading, "pass_at_1"), course(reading, "frac_reward_zero_std")
    if right is None or silent is None or silent.latest < _NO_SIGNAL or not _SELDOM < right.latest < _MOSTLY:
        return None
    if _has_collapsed(reading):
        return None  # which is why
    evidence = [silent.tell(".0%"), right.tell(".1%")]
    tries = [
        f"a larger group (now {reading.settings.get('group', 16)})",
        "max_rounds = 4: draw on until groups have a signal",
        "a reward that looks at the reply: `zifio screen TASK`",
    ]
    if 0 < _setting(reading, "sampling", "temperature") < 1:
        tries.insert(0, "sampling.temperature = 1.0")
    says = "Dead groups: most groups of replies all earn the same, so they have no gradient."
    return Finding("dead_groups", reading.name, says, evidence, tries)


def _has_collapsed(reading: Reading) -> bool:
    entropy, right = course(reading, "entropy"), course(reading, "pass_at_1")
    if entropy is None or right is None:
        return False
    if entropy.latest >= _COLLAPSED * float(entropy.values[:3].mean()) or right.latest >= _MOSTLY:
        return False
    smooth = right.means()
    return right.latest - right.first < 0.2 or bool(right.latest - smooth[len(smooth) // 2] < _GAIN)


def entropy_collapse(reading: Reading) -> Finding | None:
    """The policy says nearly always the same, and is not right."""
    entropy, right = course(reading, "entropy"), course(reading, "pass_at_1")
    if entropy is None or right is None or not _has_collapsed(reading):
        return None
    settings = reading.settings
    tries = [
        f"a lower optim.lr (now {_setting(reading, 'optim', 'lr'):g})",
        f"clip_high = 0.28 (now {settings.get('clip_high', 0.2):g})",
        f"kl_weight = 0.001 (now {settings.get('kl_weight', 0):g})",
    ]
    if settings.get("format_weight", 0):
        tries.append(f"a lower format_weight (now {settings['format_weight']:g}), where shape is all that is learned")
    says = "Entropy has collapsed: the policy says nearly always the same before it is right."
    return Finding("entropy_collapse", reading.name, says, [entropy.tell(), right.tell(".1%")], tries)


def length_gaming(reading: Reading) -> Finding | None:
    """Replies grow or shrink, and are right no more often."""
    length, right = course(reading, "completions/mean_length"), course(reading, "pass_at_1")
    if length is None or right is None or right.latest >= _MOSTLY:
        return None
    ratio = length.latest / max(length.first, 1.0)
    if 1 / _LENGTH < ratio < _LENGTH or right.latest - right.first > _GAIN:
        return None
    evidence = [length.tell(".1f"), right.tell(".1%")]
    cut = course(reading, "completions/clipped_ratio")
    if cut is not None and cut.latest > _CUT:
        evidence.append(cut.tell(".0%"))
    if ratio > 1:
        n, weight = _setting(reading, "sampling", "max_new_tokens"), reading.settings.get("format_weight", 1)
        tries = [
            f"overlong_cache: punish the last tokens before sampling.max_new_tokens (now {n:g})",
            'loss = "dr_grpo": no term that favours long wrong replies',
            f"what else is paid for: format_weight (now {weight:g}), process",
        ]
        return Finding("length_gaming", reading.name, "Replies grow and are right no more often.", evidence, tries)
    tries = ["what pays for brevity: overlong_cache, the verifier's parts", "a lower optim.lr"]
    return Finding("length_gaming", reading.name, "Replies shrink and are right no more often.", evidence, tries)


def cut_off(reading: Reading) -> Finding | None:
    """Replies that do not come to their end."""
    cut, right = course(reading, "completions/clipped_ratio"), course(reading, "pass_at_1")
    if cut is None or right is None or cut.latest <= _CUT or right.latest >= _MOSTLY or length_gaming(reading):
        return None
    if cut.first - cut.latest > _GAIN:
        return None  # it is learning to end
    n = _setting(reading, "sampling", "max_new_tokens")
    tries = [f"a larger sampling.max_new_tokens (now {n:g})", "overlong_cache, so that long replies are worth less"]
    return Finding("cut_off", reading.name, "Many replies are cut before they end.", [cut.tell(".0%")], tries)


def fallen(reading: Reading) -> Finding | None:
    """A policy that was right more often than it is now."""
    held = course(reading, "held_out/pass_at_1", fewest=4)
    right = held or course(reading, "pass_at_1")
    if right is None or reading.kind not in ("rl", "distill", "sft"):
        return None
    size = right.size if held is None else 2
    smooth = right.means(size)
    best, now = int(smooth.argmax()), float(smooth[-1])
    if now > _FALLEN * smooth[best] or smooth[best] - now < 0.1:
        return None
    evidence = [f"{right.key}: {smooth[best]:.1%} at step {right.steps[best + size - 1]}, now {now:.1%}"]
    tries = ["a lower optim.lr", "kl_weight = 0.001", "take the model of an earlier step: fewer steps"]
    return Finding("fallen", reading.name, "The model has become worse than it was.", evidence, tries)


def stopped(reading: Reading) -> Finding | None:
    """Begun, not done, and nobody works on it."""
    if reading.state != "stopped" or reading.ended:
        return None
    last = max((int(reading.series(key)[0][-1]) for key in reading.keys), default=0)
    of = reading.settings.get("steps")
    evidence = [f"the last line is of step {last}" + (f" of {of}" if of else "") + "; no process holds the run"]
    tries = ["run the same command again: it goes on from the last checkpoint"]
    return Finding("stopped", reading.name, "The stage was stopped or killed before its end.", evidence, tries)


def failed(reading: Reading) -> Finding | None:
    """Ended by an error that no other sign explains."""
    known = ("Diverged", "Farmed", "VerifierBroke", "TooHard", "TooEasy")
    message = str(reading.ended.get("message", ""))
    if not message or reading.ended.get("kind") in known:
        return None
    return Finding("failed", reading.name, "The stage ended with an error.", [message], ["what the error says"])


SIGNS: tuple[Callable[[Reading], Finding | None], ...] = (
    diverged, verifier_errors, farmed, gate, failed, stopped, gap_growth, expert_collapse, too_hard, too_easy,
    dead_groups, entropy_collapse, length_gaming, cut_off, fallen,
)  # fmt: skip
"""The gravest first."""


def diagnose(reading: Reading) -> list[Finding]:
    """All that is wrong with a stage, the likeliest cause first."""
    return [found for found in (sign(reading) for sign in SIGNS) if found is not None]


def _busy(share_SE: np.ndarray) -> np.ndarray:
    """[S]: over how many experts, as a share of all, a load is spread: e to its entropy, by their number."""
    logs_SE = np.log(share_SE, where=share_SE > 0, out=np.zeros_like(share_SE))
    return np.exp(-(share_SE * logs_SE).sum(axis=1)) / share_SE.shape[1]


def _setting(reading: Reading, table: str, key: str) -> float:
    """A number among the settings, 0 where the stage has none."""
    found = reading.settings.get(table)
    return found.get(key, 0) if isinstance(found, dict) else 0


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0]
