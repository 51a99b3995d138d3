"""What a plan is about: a published model by name, a checkpoint on this machine or at the hub, or one's `config.json`.

Try it: `python -c "from zifio.forecast.subject import shape_of; print(shape_of('deepseek-v3'))"`
"""

from __future__ import annotations

from pathlib import Path

from zifio.config import ConfigError, suggestion
from zifio.gguf import is_gguf
from zifio.models.config import AnyConfig, read_config
from zifio.models.hub import is_name, resolve
from zifio.models.presets import PRESETS, preset


def shape_of(reference: str) -> AnyConfig:
    """The shape of a preset, a checkpoint's folder, its config.json, a GGUF file or a name at the hub, of which only
    the config is fetched. What is on this machine wins. Raises ConfigError."""
    path = Path(reference)
    if path.name == "config.json" and path.is_file():
        return read_config(path.parent)
    if not path.exists() and reference.lower() in PRESETS:
        return preset(reference)
    if not path.exists() and not is_name(reference):
        hint = suggestion(reference, PRESETS) or f"Presets: {', '.join(PRESETS)}."
        raise ConfigError(
            f"{reference}: wanted a preset, a checkpoint's folder or config.json, a name at the hub, or a recipe, came "
            f"none of these. {hint}"
        )
    place = resolve(reference, ("config.json",))
    if is_gguf(place):
        from zifio.models.gguf import read_gguf

        return read_gguf(place)[0]
    return read_config(place)
