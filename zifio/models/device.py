"""Where a model is computed, and in what.

Try it alone: `python -c "from zifio.models.device import find_device; print(find_device('auto', 'try'))"`
"""

from __future__ import annotations

from typing import Literal

import torch

from zifio.config import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["fp32", "bf16"]


def find_device(wanted: Device, who: str) -> torch.device:
    """The device that a person means by that; auto is a GPU where there is one.

    Raises ConfigError, beginning with `who`, when there is no GPU and one is wanted.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError(f'{who}: device: wanted a GPU that torch can use, came none. Set device = "cpu".')
    if wanted == "cpu" or not there:
        return torch.device("cpu")
    # cuDNN's attention makes a plan for every new shape, and here nearly every pass has one.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device("cuda")


def sampling_precision(trained_in: Precision, device: torch.device) -> Precision:
    """What to sample in from a model that trains in this precision: on a GPU the same, so that log-probs are close; on
    a CPU fp32, which the kernels are for."""
    return trained_in if device.type == "cuda" else "fp32"
