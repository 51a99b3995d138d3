"""Our decoder against `transformers`, the independent reference: logits, caches, router, MTP, files both ways."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from tiny import EVERY_FAMILY, hybrid, logits_of, made
from torch import Tensor

from zifio.engine.cache import CPU
from zifio.engine.layered import new_cache
from zifio.models.config import AnyConfig, DeepseekV3Config, LlamaConfig, Yarn, read_config
from zifio.models.decoder import Decoder
from zifio.models.weights import load_model, load_state, save_model, to_disk_names

transformers = pytest.importorskip("transformers")

TINY = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = LlamaConfig(**TINY, intermediate_size=48, num_key_value_heads=2)
YARN = Yarn(factor=40, original_max_position_embeddings=16)


def deepseek(**changes: object) -> DeepseekV3Config:
    """A tiny DeepSeek-V3 with groups, a scaled gate and one dense layer."""
    fields = {
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
    }
    fields |= {
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "kv_lora_rank": 24,
        "v_head_dim": 12,
    }
    fields |= {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "n_shared_experts": 2, "initializer_range": 0.15}
    return DeepseekV3Config(**(TINY | fields | changes))


CASES: dict[str, AnyConfig] = {
    "full-query": deepseek(),
    "low-rank-query": deepseek(q_lora_rank=20),
    "yarn": deepseek(q_lora_rank=20, rope_scaling=YARN),
    "no-groups": deepseek(n_group=1, topk_group=1),
    "llama": LLAMA,
    "llama-tied": LlamaConfig(**TINY, intermediate_size=48, head_dim=10, tie_word_embeddings=True),
}
CASES |= {f"tiny-{name}": config.model_copy(update={"vocab_size": 50}) for name, config in EVERY_FAMILY.items()}
HYBRID = hybrid(vocab_size=50)


@pytest.fixture(params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Decoder, torch.nn.Module, Path]:
    """Our model and the one transformers makes of the files that we wrote."""
    model = made(CASES[request.param])
    save_model(model, tmp_path)
    return model, transformers.AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path


def test_our_folder_opens_in_transformers_with_equal_logits(pair: tuple) -> None:
    model, theirs, _ = pair
    tokens = torch.randint(50, (3, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(logits_of(model, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


def test_their_folder_opens_here_with_equal_logits(pair: tuple, tmp_path: Path) -> None:
    _, theirs, _ = pair
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    tokens = torch.randint(50, (3, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(logits_of(ours, tokens), theirs(tokens).logits, atol=1e-5, rtol=0)


def test_folder_round_trip_is_exact(pair: tuple) -> None:
    model, _, folder = pair
    again = load_model(folder)
    assert again.config == read_config(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("name", ["full-query", "low-rank-query", "yarn", "tiny-v2-greedy", "tiny-v2-grouped"])
def test_absorbed_equals_expanded(name: str) -> None:
    model = made(CASES[name])
    tokens = torch.randint(50, (2, 30), generator=torch.Generator().manual_seed(4))
    positions = torch.arange(30).expand(2, -1)
    with torch.no_grad():
        expanded = model(tokens, positions, absorb=False).hidden_BTD
        absorbed = model(tokens, positions, absorb=True).hidden_BTD
    torch.testing.assert_close(absorbed, expanded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("name", [*CASES, "hybrid"])
def test_cached_decoding_equals_the_full_forward(name: str, latent: bool) -> None:
    """Two sequences in scattered pages, cut into chunks of many sizes, across page borders."""
    model, n_tokens = made(HYBRID if name == "hybrid" else CASES[name]), 70
    tokens = torch.randint(50, (2, n_tokens), generator=torch.Generator().manual_seed(5))
    positions = torch.arange(n_tokens).expand(2, -1)
    cache = new_cache(model.config, 9, 3, latent, torch.float32, CPU)
    slots = (torch.tensor([2, 0]),) if cache.has_slots else ()
    parts, at = [], 0
    with torch.no_grad():
        full = model(tokens, positions).hidden_BTD
        for n in (5, 40, 1, 1, 10, 13):
            cache.begin(torch.tensor([[7, 2, 5], [1, 8, 0]]), torch.tensor([at, at]), torch.tensor([n, n]), *slots)
            now = slice(at, at + n)
            hidden = model(tokens[:, now].reshape(1, -1), positions[:, now].reshape(1, -1), cache).hidden_BTD
            parts.append(hidden.view(2, n, -1))
            at += n
    torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=1e-5, rtol=0)


def test_packed_equals_padded() -> None:
    model = made(CASES["yarn"])
    generator = torch.Generator().manual_seed(6)
    lengths = [7, 12, 5]
    pieces = [torch.randint(50, (n,), generator=generator) for n in lengths]
    packed_positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with torch.no_grad():
        packed = model(torch.cat(pieces)[None], packed_positions).hidden_BTD[0].split(lengths)
        for piece, hidden in zip(pieces, packed, strict=True):
            alone = model(piece[None], torch.arange(len(piece))[None]).hidden_BTD[0]
            torch.testing.assert_close(hidden, alone, atol=1e-5, rtol=0)


def test_gate_matrix_equals_transformers_with_negative_scores() -> None:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    model = made(CASES["full-query"])
    router = model.routers()[0]
    theirs = DeepseekV3TopkRouter(transformers.DeepseekV3Config(**model.config.model_dump()))
    theirs.load_state_dict(router.state_dict())
    x_ND = torch.randn(200, 32, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        routing = router(x_ND)
        _, gate, expert = theirs(x_ND)
    choice = routing.scores_NE + router.e_score_correction_bias
    assert (choice < 0).any(), "the test wants groups whose scores plus bias are negative"
    torch.testing.assert_close(routing.gate_matrix(), torch.zeros(200, 8).scatter(1, expert, gate))


def their_mtp(model: Decoder, swap: bool) -> Tensor:
    """Hidden states of transformers' MTP layer on our weights, its concatenation swapped on demand."""
    from transformers.modeling_layers import MtpModel

    main = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**model.config.model_dump()))
    disk = to_disk_names(model.config, model.state_dict())
    names = main.state_dict()
    for key in list(names):  # transformers keeps experts stacked in memory
        if key.endswith("experts.gate_up_proj") or key.endswith("experts.down_proj"):
            names[key] = model.state_dict()[key.removeprefix("model.")]
        else:
            names[key] = disk[key]
    main.load_state_dict(names)
    mtp = MtpModel(main, 1)
    ours = {k.removeprefix("mtp.0."): v for k, v in model.state_dict().items() if k.startswith("mtp.0.")}
    state = {}
    for key in mtp.layers[0].state_dict():
        inner = key.replace("mtp_block.", "block.").replace("post_norm.", "norm.", 1) if "." in key else key
        state[key] = ours[inner]
    if swap:
        state["eh_proj.weight"] = state["eh_proj.weight"].roll(model.config.hidden_size, dims=1)
    mtp.layers[0].load_state_dict(state)
    tokens = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        hidden = main.model(tokens).last_hidden_state
        embedded = main.model.embed_tokens(tokens[:, 1:])
        positions = torch.arange(19)[None]
        rotary = main.model.rotary_emb(embedded, positions)
        mask = torch.full((19, 19), float("-inf")).triu(1)[None, None]
        takes = inspect.signature(type(mtp.layers[0]).forward).parameters
        cache = "cache" if "cache" in takes else "past_key_values"  # its name before transformers 5.24
        out = mtp.layers[0](
            embedded, hidden[:, :-1], position_embeddings=rotary, attention_mask=mask,
            position_ids=positions, **{cache: None},
        )  # fmt: skip
    return out[0] if isinstance(out, tuple) else out


def test_mtp_equals_transformers_and_the_swapped_order_differs() -> None:
    model = made(deepseek(num_nextn_predict_layers=1))
    tokens = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        ours = model(tokens, torch.arange(20).expand(2, -1), with_mtp=True).mtp_hidden_BTD
    assert ours is not None
    torch.testing.assert_close(ours, their_mtp(model, swap=False), atol=1e-5, rtol=0)
    assert (ours - their_mtp(model, swap=True)).abs().max() > 1e-2


def test_published_copies_in_the_mtp_layer_are_skipped() -> None:
    model = made(deepseek(num_nextn_predict_layers=1))
    disk = to_disk_names(model.config, model.state_dict())
    disk["model.layers.3.embed_tokens.weight"] = disk["model.embed_tokens.weight"]
    disk["model.layers.3.shared_head.head.weight"] = disk["lm_head.weight"]
    other = Decoder(model.config, seed=9)
    load_state(other, disk, "test")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
