"""Pictures from a model in the terminal, and words about pictures: `zifio draw` and `zifio see`.

`draw` writes one PNG with all drawings side by side; of a caption that describes a glyph scene it also counts how many
drawings show exactly that. The same seed draws the same.

Try it alone: `zifio draw runs/janus-nano/janus/model "red circle above blue square" --cfg 2 --out grid.png`
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zifio.config import ConfigError, Sampling, build
from zifio.gguf import is_gguf
from zifio.log import say
from zifio.models.hub import resolve
from zifio.models.janus_config import is_janus
from zifio.pictures import PICTURE, from_url, grid, read_picture, to_url, write_png
from zifio.seed import stream_seed
from zifio.tasks.glyphs import read_caption, score_drawing

if TYPE_CHECKING:
    from zifio.engine.policy import LocalPolicy
    from zifio.models.device import Device

QUESTION = "What is this?"
_MOST = 1024  # drawings of one call
_LONGEST = 256  # tokens of a reply, where the command does not say


def draw(
    model: Path,
    prompt: str,
    n: int = 16,
    cfg: float = 5.0,
    out: Path = Path("drawing.png"),
    temperature: float = 1.0,
    columns: int | None = None,
    seed: int = 0,
    device: Device = "cpu",
    as_json: bool = False,
) -> Any:
    """Draw `prompt` n times under guidance of scale `cfg` into one file; what to say of it, or a table for JSON.

    Raises ConfigError where the model does not draw, the file cannot be written, or a number makes no sense.
    """
    sampling = build(Sampling, {"temperature": temperature, "guidance": cfg}, "command line")
    for name, value, most in (("-n", n, _MOST), ("--columns", 1 if columns is None else columns, _MOST)):
        if not 1 <= value <= most:
            raise ConfigError(f"{name}: wanted a number from 1 to {most}, came {value}. Choose another.")
    if not prompt.strip():
        raise ConfigError('PROMPT: wanted words to draw, came none. Write, say, "red circle left of blue square".')
    if out.suffix.lower() != ".png" or not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"--out: wanted a .png file in a folder that exists, came {out}. Choose another.")
    policy = _opened(model, device)
    message = {"role": "user", "content": prompt, "draws": True}
    seeds = [stream_seed(seed, "draw", place) for place in range(n)]
    (replies,) = policy.complete([[message]], n, sampling, [seeds])
    pictures = [from_url(reply.text) for reply in replies]
    write_png(grid(pictures, columns or math.ceil(math.sqrt(n))), out)
    found: dict[str, Any] = {"prompt": prompt, "n": n, "cfg": cfg, "seed": seed, "out": str(out)}
    if (scene := read_caption(prompt)) is not None:
        verdicts = [score_drawing(scene, picture) for picture in pictures]
        found["right"] = None if verdicts[0].outcome == "error" else sum(v.outcome == "right" for v in verdicts)
    if as_json:
        return found | {"pictures": [to_url(picture) for picture in pictures]}
    if found.get("right") is not None:
        say(f"{found['right']} of {n} show exactly what was asked")
    return str(out)


def see(
    model: Path,
    image: Path,
    question: str = QUESTION,
    temperature: float = 0.0,
    max_new_tokens: int | None = None,
    seed: int = 0,
    device: Device = "cpu",
    as_json: bool = False,
) -> Any:
    """What the model says about a picture; as text, or a table for JSON.

    Raises ConfigError where the model reads no pictures, the file is none, or both do not fit the model's context.
    """
    longest = _LONGEST if max_new_tokens is None else max_new_tokens
    sampling = build(Sampling, {"temperature": temperature, "max_new_tokens": longest}, "command line")
    if PICTURE in question:
        raise ConfigError(f"QUESTION: wanted words, came the mark {PICTURE}, which stands before them. Leave it out.")
    picture = read_picture(image)
    policy = _opened(model, device)
    message = {"role": "user", "content": PICTURE + question, "pictures": [to_url(picture)]}
    if max_new_tokens is None:
        room = policy.model.config.max_position_embeddings - len(policy.prompt([message]))
        sampling = sampling.model_copy(update={"max_new_tokens": max(1, min(_LONGEST, room))})
    ((reply,),) = policy.complete([[message]], 1, sampling, [[stream_seed(seed, "see")]])
    found = {"image": str(image), "question": question, "answer": reply.text, "tokens": len(reply.tokens)}
    return found | {"finish": reply.finish, "seed": seed} if as_json else reply.text


def _opened(model: Path, device: Device) -> LocalPolicy:
    """The model as a policy. What it is, is looked at before torch, which takes seconds to import."""
    folder = resolve(model)
    if is_gguf(folder) or not is_janus(folder):
        raise ConfigError(
            f"{model}: wanted a model that reads pictures and draws (model_type janus), came one of text. Train one: "
            "zifio run recipes/janus-nano.toml."
        )
    from zifio.engine.policy import load_policy

    return load_policy(folder, device=device, precision="bf16")
