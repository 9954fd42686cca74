"""Integers restored to plain layers, and handed to llama.cpp without the loss of a bit."""

import gguf
import numpy as np
import pytest
import torch
from torch import nn

from gpt_model.config import GPTConfig
from gpt_model.dequantization import dequantize, float_type, scales_as_weights
from gpt_model.gguf_architecture import ARCHITECTURES
from gpt_model.gguf_blocks import decode_q8_0
from gpt_model.gguf_export import export_gguf
from gpt_model.gguf_integers import decode_q4_0, encode_integers, integers_of
from gpt_model.model import GPT
from inference.quantization import quantize
from transformer_basics.integer_weights import WeightFormat, decode, encode
from transformer_basics.quantized_linear import QuantizedLinear, quantized_parts

SHAPE = GPTConfig(vocab_size=37, max_seq_len=16, dim=64, n_layers=2, n_heads=4, ffn_dim=96)
CONFIGS = {
    "gpt2": SHAPE,
    "llama": SHAPE.replace(n_kv_heads=2, **ARCHITECTURES["llama"]),
    "qwen3": SHAPE.replace(n_kv_heads=2, tie_embeddings=False, **ARCHITECTURES["qwen3"]),
}


def quantized(name="llama", **options):
    torch.manual_seed(0)
    model = GPT(CONFIGS[name].replace(init_std=0.1)).eval()
    return quantize(model, **{"group_size": 32, "embeddings": 8, **options})


def parts_of(weight, form):
    stored, columns = encode(weight, form), weight.shape[1]
    wide = stored.scale.float().repeat_interleave(form.group_of(columns), dim=1)[:, :columns]
    return decode(stored, columns).numpy(), wide.numpy()


@pytest.mark.parametrize(
    ("form", "kind", "back"),
    [
        (WeightFormat(4, 32), "q4_0", decode_q4_0),
        (WeightFormat(4, 64), "q4_0", decode_q4_0),
        (WeightFormat(4, None), "q4_0", decode_q4_0),
        (WeightFormat(8, 96), "q8_0", decode_q8_0),
    ],
)
@pytest.mark.parametrize("columns", [32, 96, 160])
def test_integers_are_written_bit_for_bit(form, kind, back, columns):
    weight = torch.randn(6, columns, generator=torch.Generator().manual_seed(0)) * 0.05
    weight[2] = 0.0  # a row of zeros has a scale of zero
    values, scales = parts_of(weight, form)
    found = integers_of(values, scales)
    assert found is not None
    assert found[0] == kind
    data = encode_integers(*found, rows=6)
    np.testing.assert_array_equal(back(data), values)
    oracle = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.upper()])
    np.testing.assert_array_equal(oracle, values)


def test_every_code_at_both_edges():
    for form in (WeightFormat(4, 32), WeightFormat(8, 256)):
        codes = torch.arange(form.lowest, form.highest + 1.0).repeat(32 // (1 << form.bits) or 1)
        values, scales = parts_of(-0.25 * codes[None], form)
        kind, half, found = integers_of(values, scales)
        assert kind == f"q{form.bits}_0"
        assert sorted(set(found.ravel().tolist())) == list(range(form.lowest, form.highest + 1))
        data = encode_integers(kind, half, found, rows=1)
        oracle = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.upper()])
        np.testing.assert_array_equal(oracle, values)


@pytest.mark.parametrize(
    "form", [WeightFormat(4, 48), WeightFormat(8, 16), WeightFormat(4, 32, True)], ids=str
)
def test_formats_without_a_place_are_not_squeezed_in(form):
    weight = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
    values, scales = parts_of(weight, form)
    if form.zero_points:
        scales[:] = np.nan
    assert integers_of(values, scales) is None


def test_scales_beyond_float16_and_odd_rows_are_not_squeezed_in():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    for factor in (2.0**-30, 2.0**20):
        assert integers_of(*parts_of(weight * factor, WeightFormat(4, 32))) is None
    assert integers_of(*parts_of(weight[:, :40], WeightFormat(4, 32))) is None
    values, scales = parts_of(weight, WeightFormat(4, 32))
    assert integers_of(values * 1.01, scales) is None  # not what the scales say


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_holds_the_very_weights_that_the_layers_restore(tmp_path, name, bits):
    model = quantized(name, bits=bits)
    before = {n: part.packed.clone() for n, part in quantized_parts(model).items()}
    summary = export_gguf(model, tmp_path / "a.gguf", weight_type="stored")
    export_gguf(model, tmp_path / "b.gguf", weight_type="f32")
    assert all(torch.equal(p.packed, before[n]) for n, p in quantized_parts(model).items())
    # the restored model, exported as float32, is the oracle
    stored, plain = (gguf.GGUFReader(tmp_path / f"{x}.gguf") for x in "ab")
    wanted = {t.name: np.asarray(t.data) for t in plain.tensors}
    kinds = {}
    for tensor in stored.tensors:
        kind = tensor.tensor_type.name
        kinds[kind] = kinds.get(kind, 0) + 1
        data = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
        np.testing.assert_array_equal(data, wanted[tensor.name], err_msg=tensor.name)
        assert (kind == "F32") == (tensor.name.endswith("norm.weight") or "bias" in tensor.name
                                   or "position" in tensor.name)  # fmt: skip
    n_tables = 1 if model.config.tie_embeddings else 2
    per_block = {"gpt2": 4, "llama": 7, "qwen3": 7}[name]
    assert kinds.get("Q8_0", 0) == n_tables + (2 * per_block if bits == 8 else 0)
    assert kinds.get("Q4_0", 0) == (2 * per_block if bits == 4 else 0)
    assert summary.kinds == {kind.lower(): count for kind, count in kinds.items()}
    file_type = stored.fields["general.file_type"].contents()
    assert file_type == (2 if bits == 4 else 7)


def test_what_has_no_place_is_restored_to_f16(tmp_path):
    mixed = quantized("gpt2", skip=("lm_head", "q_proj"))  # one of three joined matrices
    summary = export_gguf(mixed, tmp_path / "a.gguf", weight_type="stored")
    assert summary.kinds == {"f32": summary.kinds["f32"], "f16": 2, "q4_0": 6, "q8_0": 1}
    odd = quantized("llama", group_size=16)
    summary = export_gguf(odd, tmp_path / "b.gguf", weight_type="stored")
    assert summary.kinds == {"f32": summary.kinds["f32"], "f16": 15}


def test_only_a_quantized_model_has_integers_to_keep(tmp_path):
    with pytest.raises(ValueError, match="keeps the integers of a quantized model, and this one"):
        export_gguf(GPT(SHAPE), tmp_path / "a.gguf", weight_type="stored")


def test_scales_stand_where_their_weights_stand():
    model = quantized(zero_points=False)
    scales, plain = scales_as_weights(model), dequantize(quantized())
    for name, part in quantized_parts(model).items():
        scale = scales.get_parameter(f"{name}.weight")
        codes = plain.get_parameter(f"{name}.weight") / scale
        lowest, highest = part.form.lowest, part.form.highest
        assert torch.equal(codes, codes.round().clamp(lowest, highest))
    others = {n for n, p in scales.named_parameters(remove_duplicate=False) if p.isnan().all()}
    assert others == {n for n, _ in plain.named_parameters(remove_duplicate=False)} - {
        f"{n}.weight" for n in quantized_parts(model)
    }
    assert (
        scales_as_weights(quantized(zero_points=True))
        .get_parameter("blocks.0.attention.q_proj.weight")
        .isnan()
        .all()
    )


def test_the_type_is_that_of_the_other_parameters():
    assert float_type(GPT(SHAPE).to(torch.bfloat16)) == torch.bfloat16
    bare = nn.Sequential(QuantizedLinear.from_linear(nn.Linear(4, 4, bias=False), WeightFormat()))
    assert float_type(bare) == torch.float32
    assert dequantize(bare)[0].weight.dtype == torch.float32
