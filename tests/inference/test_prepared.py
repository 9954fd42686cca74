"""A prepared model writes what the model writes, whatever was done to the model before."""

import ctypes
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from foundation import large_pages
from foundation.compiled_code import load_code
from foundation.large_pages import WeightBlock
from gpt_model.config import preset
from gpt_model.model import GPT
from inference import kernel_interface
from inference.generator import SamplingParams, TextGenerator
from inference.kernel_plan import KernelPlan
from inference.prepared import MOST_ROWS, PreparedModel, prepare_for_inference
from tokenization.tokenizer import Tokenizer
from transformer_basics.kv_cache import GrowingCache, ModelCache
from transformer_basics.linear import Linear

LETTERS = Tokenizer.characters(["abcdefghijklmnopqrstuvwxyz "])
V = LETTERS.vocab_size


def make(name="modern-micro", **changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "max_seq_len": 48, "dim": 32, "n_heads": 4, "init_std": 0.2}
    return GPT(preset(name, **{**sizes, **changes})).eval()


def fast_equals_plain(model, kernels, expected=None):
    """Feed a few tokens both ways; say which stretches the kernels took."""
    ready = PreparedModel(model, kernels)
    ids = torch.randint(V, (2, 9))
    caches = ready.make_cache(2), model.make_cache(2)
    for piece in ids.split([6, 1, 2], dim=1):
        found = ready(piece, cache=caches[0]).logits
        with torch.no_grad():
            wanted = model(piece, cache=caches[1]).logits
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert caches[0].length == caches[1].length == 9
    if expected is not None:
        assert ready.stretches == expected
    return ready


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0, max_new_tokens=20),
        SamplingParams(temperature=1.2, max_new_tokens=20, seed=4, num_return=3),
        SamplingParams(num_beams=3, temperature=0, max_new_tokens=12),
        SamplingParams(temperature=0, max_new_tokens=60, logprobs=True),
    ],
    ids=["greedy", "sampled", "beams", "to the end of the context"],
)
@pytest.mark.parametrize("name", ["gpt-micro", "modern-micro"])
def test_the_generator_writes_the_same(kernels, name, params):
    model = make(name)
    prompts = ["the quick", "a", "brown fox jumps over it"]
    plain = TextGenerator(model, LETTERS)
    wanted = plain.generate(prompts, params)
    streamed = None
    if params.num_return == params.num_beams == 1:
        streamed = "".join(plain.stream(prompts[0], params))
    ready = TextGenerator(PreparedModel(model, kernels), LETTERS)
    found = ready.generate(prompts, params)
    assert [text.ids for text in found] == [text.ids for text in wanted]
    if streamed is not None:
        assert "".join(ready.stream(prompts[0], params)) == streamed
    sliding = ready.generate("the quick", params, sliding=True)
    unsliding = plain.generate("the quick", params, sliding=True)
    assert getattr(sliding, "ids", None) == getattr(unsliding, "ids", None)


def test_truncated_and_reordered_caches_go_on(kernels):
    """Speculation takes tokens back; beams copy rows and change how many there are."""
    model = make()
    ready = PreparedModel(model, kernels)
    caches = ready.make_cache(2), model.make_cache(2)
    for cache, one in zip(caches, (ready, model), strict=True):
        with torch.no_grad():
            one(torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), cache=cache)
            cache.truncate(2)
            one(torch.tensor([[9], [10]]), cache=cache)
            cache.reorder(torch.tensor([1, 1, 0]))
    new = torch.tensor([[3], [4], [5]])
    found = ready(new, cache=caches[0]).logits
    with torch.no_grad():
        torch.testing.assert_close(found, model(new, cache=caches[1]).logits, rtol=1e-4, atol=1e-4)


class Doubled(Linear):
    """Anybody's layer: a Linear by inheritance, not by what it computes."""

    def forward(self, x):
        return 2.0 * super().forward(x)


def double(block):
    block.attention.v_proj = Doubled(32, 32, bias=False)


def hook(block):
    block.feed_forward.register_forward_hook(lambda module, inputs, output: 3.0 * output)


def pre_hook(block):
    block.attention.out_proj.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1.0,))


def activation(block):
    block.feed_forward.activation = "relu"


def parametrized(block):
    nn.utils.parametrizations.weight_norm(block.attention.q_proj)


@pytest.mark.parametrize("change", [double, hook, pre_hook, activation, parametrized])
@pytest.mark.parametrize("where", [0, 1, 3])
def test_a_changed_block_is_left_to_pytorch(kernels, change, where):
    model = make(n_layers=4)
    change(model.blocks[where])
    stretches = [(0, where, True), (where, where + 1, False), (where + 1, 4, True)]
    fast_equals_plain(model, kernels, [s for s in stretches if s[0] < s[1]])


def test_changed_ends_are_left_to_pytorch(kernels):
    model = make(logit_softcap=3.0)
    model.final_norm.register_forward_hook(lambda module, inputs, output: output + 1.0)
    assert not fast_equals_plain(model, kernels).plan.scores
    model = make("gpt-micro")
    model.token_embedding.register_forward_hook(lambda module, inputs, output: output + 1.0)
    assert not fast_equals_plain(model, kernels).plan.embeds
    fast_equals_plain(make(token_shift=True, bigram_rows=7), kernels)


def test_lora_is_left_to_pytorch_and_merged_lora_is_not(kernels):
    from finetuning.lora import apply_lora, merge_lora
    from finetuning.lora_config import LoRAConfig

    model = make()
    apply_lora(model, LoRAConfig(r=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    ready = fast_equals_plain(model, kernels)
    assert not any(ready.plan.known)
    assert all(fast_equals_plain(merge_lora(model), kernels).plan.known)


def test_the_weights_move_but_neither_change_nor_double(kernels):
    model = make("gpt-micro", n_layers=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ready = PreparedModel(model, kernels)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert model.lm_head.weight is model.token_embedding.weight
    memory = ready.plan.block.memory
    inside = range(memory.data_ptr(), memory.data_ptr() + memory.nbytes)
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert all(layer.weight.data_ptr() in inside for layer in linears)
    assert model.token_embedding.weight.data_ptr() in inside
    # a second time, and saving, work as ever
    assert all(KernelPlan(model).known)


def test_saving_a_prepared_models_model(kernels, tmp_path):
    model = make()
    PreparedModel(model, kernels)
    model.save(tmp_path / "saved", LETTERS)
    again = GPT.load(tmp_path / "saved")
    for left, right in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_old_way_for_everything_else(kernels):
    """Long prompts, no cache, other caches, targets, packed documents, training with dropout."""
    model = make(max_seq_len=128)
    ready = PreparedModel(model, kernels)
    ids = torch.randint(V, (2, MOST_ROWS))
    with torch.no_grad():
        assert torch.equal(ready(ids).logits, model(ids).logits)
        long = ready(ids, cache=ready.make_cache(2)).logits
        assert torch.equal(long, model(ids, cache=model.make_cache(2)).logits)
        growing = ModelCache([GrowingCache() for _ in model.blocks])
        assert torch.equal(ready(ids[:, :4], cache=growing).logits, model(ids[:, :4]).logits)
        assert growing.length == 4
        found, wanted = ready(ids, ids), model(ids, ids)
        assert torch.equal(found.loss, wanted.loss)
        documents = torch.arange(MOST_ROWS)[None].expand(2, -1) // 10
        packed = ready(ids, document_ids=documents).logits
        assert torch.equal(packed, model(ids, document_ids=documents).logits)
    assert not ready(ids[:, :2], cache=ready.make_cache(2)).logits.requires_grad
    noisy = make(dropout=0.5)
    ready = PreparedModel(noisy, kernels).train()
    first, second = (ready(ids[:, :8], cache=ready.make_cache(2)).logits for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[3, V]]), f"token id {V} is outside the vocabulary"),
        (torch.tensor([[-1, 3]]), "token id -1 is outside the vocabulary"),
        (torch.ones(1, 49, dtype=torch.int64), "do not fit into max_seq_len 48"),
        (torch.ones(2, 1, dtype=torch.int64), "the cache was made for 1 rows, got 2"),
        (torch.ones(1, 9, dtype=torch.int64), "the cache holds 8 tokens"),
        (torch.ones(3, dtype=torch.int64), "ids must have shape"),
    ],
)
def test_bad_input_gets_the_models_own_words(kernels, ids, message):
    ready = PreparedModel(make(), kernels)
    cache = ready.make_cache(1, capacity=8)
    with pytest.raises(ValueError, match=message):
        ready(ids, cache=cache)
    assert cache.length == 0


def test_a_mask_of_the_wrong_length_is_refused(kernels):
    ready = PreparedModel(make(), kernels)
    ids, mask = torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="attention_mask must cover cached 0"):
        ready(ids, attention_mask=mask, cache=ready.make_cache(1))


def test_without_kernels_it_says_why_once_and_works(monkeypatch, capsys):
    monkeypatch.setenv("FROMZERO_KERNELS", "0")
    load_code.cache_clear()
    model = make()
    ready = prepare_for_inference(model)
    load_code.cache_clear()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "FROMZERO_KERNELS=0" in said[0]
    ids = torch.randint(V, (1, 5))
    with torch.no_grad():
        found = ready(ids, cache=ready.make_cache(1)).logits
        assert torch.equal(found, model(ids, cache=model.make_cache(1)).logits)


def test_the_structs_are_those_of_the_header():
    """Same names in the same order: a field moved on one side only would read garbage."""
    header = Path(kernel_interface.__file__).parent / "kernels" / "interface.h"
    text = re.sub(r"//.*", "", header.read_text(encoding="utf-8"))
    for struct in ("Matrix", "Norm", "Block", "Model", "Step"):
        body = re.search(rf"struct {struct} \{{(.*?)\}};", text, flags=re.S)[1]
        names = [re.sub(r"^.*[\s*]", "", name.strip()) for name in re.split("[;,]", body)]
        python = getattr(kernel_interface, f"{struct}Struct")
        assert [name for name, _ in python._fields_] == [name for name in names if name]
    assert ctypes.sizeof(kernel_interface.MatrixStruct) == 64


def test_a_full_block_says_both_numbers():
    block = WeightBlock(1000)
    placed = block.place(torch.arange(100.0))
    assert torch.equal(placed, torch.arange(100.0))
    assert placed.data_ptr() % large_pages.ALIGNMENT == 0
    with pytest.raises(ValueError, match=r"holds 1,064 bytes; 448 are used and 4,000 more"):
        block.place(torch.zeros(1000))
