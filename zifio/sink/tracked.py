"""trackio and wandb, which are called alike: a project for each recipe, a run for each stage.

wandb without an account: `WANDB_MODE=offline`. trackio keeps everything on this machine.

Try it alone: `zifio run recipes/smoke.toml 'sinks=["trackio"]'`
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path


class Tracked:
    """A sink with `init`, `log` and `finish`."""

    def __init__(self, module: str, run: str, stage: str, folder: Path) -> None:
        """A run of the name `stage`, gone on with where there is one."""
        self._module = importlib.import_module(module)
        more = {"id": f"{run}-{stage}-{folder.stat().st_ino}", "dir": str(folder)} if module == "wandb" else {}
        self._run = self._module.init(project=run, name=stage, resume="allow", **more)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """All of a step's numbers."""
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until everything is there."""
        self._module.finish()
