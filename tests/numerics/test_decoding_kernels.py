"""The compiled decoding kernels against the model they stand for, over the configuration space.

Every way of writing the vectors (plain, AVX2, AVX-512) that this machine can run is compiled and
compared with the PyTorch model in float32: same logits, same keys and values, whatever the shape.
"""

import copy
import platform

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.compiled_code import CodeUnavailable
from gpt_model.config import GPTConfig
from gpt_model.model import GPT
from gpt_model.model_directory import save_model
from inference.kernel_interface import load_kernels
from inference.prepared import PreparedModel
from inference.quantization import quantize
from transformer_basics.kv_cache import ModelCache, StaticCache
from transformer_basics.quantized_linear import quantized_parts

X86 = platform.machine() in ("x86_64", "AMD64")
LEVEL = torch.backends.cpu.get_cpu_capability()
WAYS = {"native": None, "plain": ("-O1",)}
if X86 and LEVEL in ("AVX2", "AVX512"):
    WAYS["avx2"] = ("-O1", "-mavx2", "-mfma")
PROFILE = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(params=WAYS)
def kernels(request):
    try:
        return load_kernels(WAYS[request.param])
    except CodeUnavailable as error:
        pytest.skip(str(error))


def test_the_ways_differ():
    """Otherwise three names would test one and the same code."""
    try:
        widths = {name: load_kernels(flags).vector_width() for name, flags in WAYS.items()}
    except CodeUnavailable as error:
        pytest.skip(str(error))
    assert widths["plain"] == 8
    assert widths.get("avx2", 8) == 8
    assert widths["native"] == (16 if LEVEL == "AVX512" else 8)


@st.composite
def configs(draw):
    """Any family, and none that exists: fields are drawn one by one."""
    heads = draw(st.sampled_from([1, 2, 4, 6]))
    position = draw(st.sampled_from(["learned", "sinusoidal", "rope", "none"]))
    head_dim = draw(st.sampled_from([2, 6, 8, 16, 20, 32, 72]))
    gated = draw(st.booleans())
    return GPTConfig(
        vocab_size=draw(st.sampled_from([5, 16, 33])),
        max_seq_len=24,
        dim=draw(st.sampled_from([8, 12, 16, 36, 64])) * 2,
        n_layers=draw(st.integers(1, 3)),
        n_heads=heads,
        n_kv_heads=draw(st.sampled_from([g for g in (1, 2, 3, 6) if heads % g == 0])),
        head_dim=head_dim,
        ffn_dim=draw(st.sampled_from([7, 16, 40, 65])),
        norm=draw(st.sampled_from(["layernorm", "rmsnorm"])),
        norm_position=draw(st.sampled_from(["pre", "post"])),
        qk_norm=draw(st.booleans()),
        position=position,
        sliding_window=draw(st.sampled_from([None, 1, 3, 40])),
        token_shift=draw(st.booleans()),
        bigram_rows=draw(st.sampled_from([None, 11])),
        activation=draw(st.sampled_from(["relu", "relu2", "silu", "gelu_tanh", "gelu"])),
        gated_ffn=gated,
        qkv_bias=draw(st.booleans()),
        proj_bias=draw(st.booleans()),
        tie_embeddings=draw(st.booleans()),
        logit_softcap=draw(st.sampled_from([None, 2.0])),
        init_std=0.2,
    )


def noisy(config, seed):
    """A model none of whose parameters is 0 or 1: a forgotten bias or gain would show."""
    torch.manual_seed(seed)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def cache_for(model, n_rows, dtype):
    c = model.config
    layers = [StaticCache(n_rows, c.kv_heads, 20, c.head_size, dtype) for _ in range(c.n_layers)]
    return ModelCache(layers)


def run(model, ids, real, pieces, cache):
    """The logits of every position, fed in pieces."""
    found, start = [], 0
    for piece in ids.split(pieces, dim=1):
        mask = None if real is None else real[:, : start + piece.shape[1]]
        found.append(model(piece, attention_mask=mask, cache=cache).logits)
        start += piece.shape[1]
    return torch.cat(found, dim=1)


@PROFILE
@given(
    config=configs(),
    seed=st.integers(0, 99),
    n_rows=st.integers(1, 5),
    pieces=st.sampled_from([[5, 1, 1], [1, 6], [6], [2, 1, 4]]),
    padding=st.booleans(),
    half=st.booleans(),
    n_threads=st.sampled_from([1, 3]),
)
def test_logits_and_cache_equal_the_models(
    kernels, config, seed, n_rows, pieces, padding, half, n_threads
):
    model = noisy(config, seed)
    dtype = torch.bfloat16 if half else torch.float32
    model.to(dtype)
    ids = torch.randint(config.vocab_size, (n_rows, sum(pieces)))
    real = None
    if padding:
        real = torch.arange(sum(pieces)) >= torch.randint(3, (n_rows, 1))
    # the oracle computes in float32 with the very same weights
    oracle = GPT(config).eval()
    oracle.load_state_dict(model.float().state_dict())
    ready = PreparedModel(model.to(dtype), kernels)
    assert ready.plan is not None
    caches = cache_for(oracle, n_rows, torch.float32), cache_for(model, n_rows, dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        found = run(ready, ids, real, pieces, caches[1])
    finally:
        torch.set_num_threads(before)
    with torch.no_grad():
        wanted = run(oracle, ids, real, pieces, caches[0])
    visible = torch.ones_like(ids, dtype=torch.bool) if real is None else real
    # bfloat16: keys and values are rounded when stored; and the embeddings' extras are added in it
    allowed = 0.06 if half else 2e-5
    scale = float(wanted[visible].abs().max()) + 1.0
    assert float((found.float() - wanted)[visible].abs().max()) <= allowed * scale
    assert caches[1].length == caches[0].length == sum(pieces)
    for layer in range(config.n_layers):
        for got, want in zip(caches[1][layer].buffers, caches[0][layer].buffers, strict=True):
            at = visible[:, None, :, None].expand_as(want[:, :, : sum(pieces)])
            gap = (got[:, :, : sum(pieces)].float() - want[:, :, : sum(pieces)])[at].abs().max()
            assert float(gap) <= allowed * (1.0 + float(want.abs().max()))
            assert not got[:, :, sum(pieces) :].any(), "wrote beyond the new tokens"


@PROFILE
@given(
    config=configs(),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([None, 32, 64, 96, 128]),
    zeros=st.booleans(),
    tables=st.sampled_from([None, 4, 8]),
    n_rows=st.sampled_from([1, 2, 5]),
    padding=st.booleans(),
)
def test_integer_weights_equal_their_restored_values(
    kernels, config, bits, group, zeros, tables, n_rows, padding
):
    """The oracle multiplies by Ŵ in float32: only sums and 16-bit activations differ."""
    torch.manual_seed(1)
    model = quantize(noisy(config, 0), bits, group, zero_points=zeros, embeddings=tables)
    oracle = copy.deepcopy(model)
    ready = PreparedModel(model, kernels)
    assert all(ready.plan.known)
    assert ready.plan.scores
    assert ready.integers
    ids = torch.randint(config.vocab_size, (n_rows, 7))
    real = torch.arange(7) >= torch.randint(3, (n_rows, 1)) if padding else None
    caches = cache_for(oracle, n_rows, torch.float32), cache_for(model, n_rows, torch.float32)
    found = run(ready, ids, real, [4, 1, 2], caches[1])
    with torch.no_grad():
        wanted = run(oracle, ids, real, [4, 1, 2], caches[0])
    visible = torch.ones_like(ids, dtype=torch.bool) if real is None else real
    gap = float((found - wanted)[visible].abs().max())
    assert gap <= 1e-3 * (1.0 + float(wanted[visible].abs().max()))


def medium(kernels, dtype=torch.float32, **changes):
    """Large enough for every unrolled loop, small enough to be quick."""
    sizes = {"dim": 96, "n_layers": 2, "n_heads": 6, "vocab_size": 301, "max_seq_len": 64}
    config = GPTConfig(**{**sizes, "init_std": 0.1, **changes})
    return PreparedModel(noisy(config, 0).to(dtype), kernels)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, 8, 4])
def test_a_row_is_the_same_alone_and_in_any_batch_and_with_any_threads(kernels, kind):
    """Bit for bit: what PyTorch's own products do not promise."""
    if isinstance(kind, int):
        ready = medium_integers(kernels, kind, position="rope", n_kv_heads=2)
    else:
        ready = medium(kernels, kind, position="rope", n_kv_heads=2)
    ids = torch.randint(301, (7, 4))
    found = []
    for n_threads in (1, 2, 5):
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        try:
            found.append(ready(ids, cache=ready.make_cache(7)).logits)
        finally:
            torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    for row in range(7):
        cache = ready.make_cache(1)
        steps = [ready(ids[row : row + 1, t : t + 1], cache=cache).logits for t in range(4)]
        assert torch.equal(torch.cat(steps, dim=1), found[0][row : row + 1])


def medium_integers(kernels, bits, group=32, **changes):
    """The same model with 8- or 4-bit weights and zero points, tables too."""
    model = medium(kernels, **changes).model
    return PreparedModel(quantize(model, bits, group, zero_points=True, embeddings=bits), kernels)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("dim", "group"), [(96, 32), (128, 96), (128, 128), (96, None)])
def test_the_integers_change_places_but_not_their_values(kernels, bits, dim, group):
    """Rearranged for the kernels, still read as before, also by a second preparation."""
    sizes = {"dim": dim, "n_heads": 4, "vocab_size": 45}
    model = quantize(medium(kernels, **sizes).model, bits, group, zero_points=True, embeddings=bits)
    before = {name: part.weight for name, part in quantized_parts(model).items()}
    ids = torch.randint(45, (2, 5))
    with torch.no_grad():
        wanted = model(ids).logits
    ready = PreparedModel(model, kernels)
    again = PreparedModel(model, kernels)
    for name, part in quantized_parts(model).items():
        assert torch.equal(part.weight, before[name])
        # one copy, where nothing had to be cut or padded
        if (group or dim) in (32, 64):
            assert part.packed in again.plan.block
    with torch.no_grad():
        assert torch.equal(model(ids).logits, wanted)
    found = ready(ids, cache=ready.make_cache(2)).logits
    assert torch.equal(found, again(ids, cache=again.make_cache(2)).logits)
    # the cache holds 16 bits
    assert float((found - wanted).abs().max()) <= 0.02 * (1.0 + float(wanted.abs().max()))


@pytest.mark.parametrize("tied", [True, False])
def test_a_prepared_model_is_saved_as_before(kernels, tmp_path, tied):
    """In the file the rows lie one after the other, whatever the processor likes."""
    model = medium(kernels, tie_embeddings=tied).model
    model = quantize(model, 4, 32, zero_points=True, embeddings=4)
    save_model(model, tmp_path / "before")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    PreparedModel(model, kernels)
    assert model.lm_head.packed.ndim == 5
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    save_model(model, tmp_path / "after")
    files = [tmp_path / which / "model.safetensors" for which in ("before", "after")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_long_prompt_is_its_pieces(kernels, bits):
    """Many rows are normalized and rounded together, by all threads: bit for bit the same."""
    ready = medium_integers(kernels, bits, activation="silu", gated_ffn=True)
    ids = torch.randint(301, (2, 24))
    whole = ready(ids, cache=ready.make_cache(2)).logits
    cache = ready.make_cache(2)
    pieces = [ready(piece, cache=cache).logits for piece in ids.split([3, 5, 16], dim=1)]
    assert torch.equal(torch.cat(pieces, dim=1), whole)


@pytest.mark.parametrize("activation", ["relu", "relu2", "silu", "gelu_tanh", "gelu"])
def test_activations_keep_their_precision_far_out(kernels, activation):
    """Inputs from −60 to 60: exponentials that overflow or vanish must do no harm."""
    ready = medium(kernels, activation=activation)
    with torch.no_grad():
        for block in ready.model.blocks:
            block.feed_forward.up_proj.weight *= 60.0
    ids = torch.randint(301, (2, 9))
    with torch.no_grad():
        wanted = ready.model(ids).logits
    found = ready(ids, cache=ready.make_cache(2)).logits
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("where", ["embedding", "q_proj", "v_proj", "up_proj"])
def test_a_nan_is_not_swallowed(kernels, where):
    ready = medium(kernels)
    model = ready.model
    with torch.no_grad():
        if where == "embedding":
            model.token_embedding.weight[7, 3] = torch.nan
        elif where == "up_proj":
            model.blocks[0].feed_forward.up_proj.weight[5, 5] = torch.nan
        else:
            getattr(model.blocks[0].attention, where).weight[5, 5] = torch.nan
    logits = ready(torch.tensor([[1, 7, 2]]), cache=ready.make_cache(1)).logits
    assert logits[0, -1].isnan().any()


def test_masks_with_holes_and_bad_positions_go_the_old_way(kernels):
    ready = medium(kernels, position="rope", max_seq_len=16)
    ids = torch.randint(301, (2, 6))
    holes = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 1, 1]]).bool()
    places = torch.tensor([0, 1, 2, 5, 900, 7])
    for given_ in ({"attention_mask": holes}, {"positions": places}):
        found = ready(ids, cache=ready.make_cache(2), **given_).logits
        with torch.no_grad():
            wanted = ready.model(ids, cache=ready.make_cache(2), **given_).logits
        assert torch.equal(found, wanted)


def test_given_positions_are_used(kernels):
    for position in ("rope", "learned"):
        ready = medium(kernels, position=position)
        ids = torch.randint(301, (2, 3))
        for places in (torch.tensor([4, 9, 2]), torch.tensor([[4, 9, 2], [0, 0, 30]])):
            found = ready(ids, positions=places, cache=ready.make_cache(2)).logits
            with torch.no_grad():
                wanted = ready.model(ids, positions=places).logits
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
