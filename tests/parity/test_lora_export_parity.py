"""An adapter and its base leave together and still fit: PEFT on the exported base, both ways."""

import copy
import json
import shutil

import pytest
import torch
import transformers

from finetuning.adapter_files import load_adapter, save_adapter
from finetuning.adapters import adapted_layers
from finetuning.huggingface_adapter import export_adapter, import_adapter
from finetuning.lora import LoRAConfig, apply_lora
from gpt_model.config import GPTConfig
from gpt_model.huggingface_writing import save_huggingface
from gpt_model.model import GPT

peft = pytest.importorskip("peft")

SHAPE = {"vocab_size": 31, "max_seq_len": 16, "dim": 24, "n_layers": 2, "n_heads": 3}
MODERN = {**SHAPE, "norm": "rmsnorm", "position": "rope", "gated_ffn": True, "n_kv_heads": 1}
MODERN |= {"activation": "silu", "qkv_bias": False, "proj_bias": False, "ffn_dim": 40}
BASES = {"gpt2": SHAPE, "llama": MODERN, "qwen3": {**MODERN, "qk_norm": True, "head_dim": 10}}
IDS = torch.randint(31, (3, 12), generator=torch.Generator().manual_seed(7))
OURS = {
    "plain": {},
    "one projection": {"target": ("k_proj", "down_proj")},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"up_proj": 5, r"blocks\.1\.attention\.q_proj": 1},
        "alpha_pattern": {"down_proj": 3, r".*\.0\..*k_proj": 11},
    },
    "dora": {"use_dora": True, "target": ("up_proj", "down_proj", "out_proj")},
}
THEIRS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"],
    "qwen3": ["k_proj", "up_proj"],
}


def randomized(model):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(params=BASES)
def base(request, tmp_path):
    """(family, our model, the same as transformers loads it from what we export)."""
    torch.manual_seed(3)
    ours = GPT(GPTConfig(**BASES[request.param], init_std=0.2)).eval()
    assert save_huggingface(ours, tmp_path / "base") == request.param
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    return request.param, ours, theirs


@pytest.mark.parametrize("variant", OURS)
def test_our_adapter_fits_the_exported_base(base, variant, tmp_path):
    family, plain, theirs = base
    options = {"target": ("q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj")}
    config = LoRAConfig(r=3, alpha=7, **{**options, **OURS[variant]})
    ours = randomized(apply_lora(copy.deepcopy(plain), config))
    save_adapter(ours, tmp_path / "ours")
    n_layers = export_adapter(tmp_path / "ours", tmp_path / "theirs", plain.config)
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "theirs")
    # PEFT would put it right, with a warning
    stored = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text(encoding="utf-8"))
    assert stored["fan_in_fan_out"] == (family == "gpt2")
    with torch.no_grad():
        expected, found = ours(IDS).logits, adapted(IDS).logits
        assert not torch.allclose(expected, plain(IDS).logits, atol=1e-2)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(
            adapted.merge_and_unload()(IDS).logits, expected, atol=2e-5, rtol=1e-5
        )
    # and home again, to the same base: the fingerprint that it remembers is that of our model
    assert import_adapter(tmp_path / "theirs", tmp_path / "again", plain.config) >= n_layers
    again = load_adapter(copy.deepcopy(plain), tmp_path / "again")
    torch.testing.assert_close(again(IDS).logits, expected, atol=2e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="was trained on another base"):
        load_adapter(randomized(copy.deepcopy(plain)), tmp_path / "again")


@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_an_adapter_of_theirs_fits_the_imported_base(base, variant, tmp_path):
    family, plain, theirs = base
    config = peft.LoraConfig(
        r=3, lora_alpha=7, target_modules=THEIRS[family], task_type="CAUSAL_LM", **variant
    )
    adapted = randomized(peft.get_peft_model(theirs, config)).eval()
    adapted.save_pretrained(tmp_path / "theirs")
    import_adapter(tmp_path / "theirs", tmp_path / "ours", plain.config)
    ours = load_adapter(copy.deepcopy(plain), tmp_path / "ours")
    with torch.no_grad():
        expected, found = adapted(IDS).logits, ours(IDS).logits
    assert not torch.allclose(expected, plain(IDS).logits, atol=1e-2)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    if family == "gpt2":
        assert "blocks.1.attention.v_proj" in adapted_layers(ours)


def test_what_does_not_fit_is_refused(base, tmp_path):
    family, plain, theirs = base
    config = plain.config
    target = ("q_proj", "v_proj")
    ours = randomized(apply_lora(copy.deepcopy(plain), LoRAConfig(target=target, use_dora=True)))
    save_adapter(ours, tmp_path / "dora")
    if family == "gpt2":
        with pytest.raises(ValueError, match="DoRA .* does not fit the one c_attn of gpt2"):
            export_adapter(tmp_path / "dora", tmp_path / "out", config)
    softcap = config.replace(logit_softcap=10.0)
    with pytest.raises(ValueError, match="logit_softcap is 10.0"):
        export_adapter(tmp_path / "dora", tmp_path / "out", softcap)
    with pytest.raises(ValueError, match="not for this base: it changes blocks.1.attention"):
        export_adapter(tmp_path / "dora", tmp_path / "out", config.replace(n_layers=1))
    # ours where one of theirs is expected
    with pytest.raises(ValueError, match="not for this base: it changes blocks.0.attention.q_proj"):
        import_adapter(tmp_path / "dora", tmp_path / "out", config)
    with pytest.raises(ValueError, match="adapter directory .* does not exist"):
        export_adapter(tmp_path / "nowhere", tmp_path / "out", config)
    # a flipped byte: translating it would give it a manifest that says it is whole
    shutil.copytree(tmp_path / "dora", tmp_path / "flipped")
    path = tmp_path / "flipped" / "adapter_model.safetensors"
    flipped = bytearray(path.read_bytes())
    flipped[-2] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors is damaged: SHA-256"):
        export_adapter(tmp_path / "flipped", tmp_path / "out", config)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="out already exists"):
        export_adapter(tmp_path / "dora", tmp_path / "out", config)
