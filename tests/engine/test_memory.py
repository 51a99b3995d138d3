"""How many pages there may be, and the words for what can never fit."""

from __future__ import annotations

import pytest
import torch

from zifio.engine.memory import SHARE, free_bytes, misfit, n_pages


def test_pages_are_those_wanted_or_those_that_fit():
    assert n_pages(10, 1000, 1.0) == 10
    assert n_pages(10, 1000, 4500e-9) == 4
    assert n_pages(10, 1000, 900e-9) == 0
    free = free_bytes()
    assert free > 1e6
    assert n_pages(10, int(free), None) == int(SHARE) and n_pages(10, int(free / 8), None) in (3, 4, 5)


@pytest.mark.parametrize("n_prompt, n_new, fits", [(20, 44, True), (20, 45, False), (64, 36, False), (60, 4, True)])
def test_what_fits_the_pages(n_prompt: int, n_new: int, fits: bool):
    words = misfit(n_prompt, n_new, context=100, page_size=32, page_bytes=10**6, n_pages=2)
    assert (words == "") == fits
    if not fits:
        assert "4 pages of 32 tokens (0.004 GB)" in words or "3 pages of 32 tokens (0.003 GB)" in words
        assert f"Lower max_new_tokens to {64 - n_prompt}," in words


def test_free_memory_of_a_gpu_is_the_drivers_and_what_torch_keeps_idle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert free_bytes("cuda:0") == 1400
    assert n_pages(100, 10, None, "cuda:0") == 1400 * SHARE / 10
