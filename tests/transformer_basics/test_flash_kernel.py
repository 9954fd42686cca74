"""The Triton kernels against the written-out formula: in the interpreter, and on a GPU if any."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from transformer_basics import flash_kernel, flash_programs
from transformer_basics.attention import CausalSelfAttention
from transformer_basics.flash_budget import padded, sram_bytes, tile_sizes
from transformer_basics.flash_kernel import kernel_attention, kernel_is_available, kernel_or_tiles

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("flash_kernel_worker.py")


class Interpreter:
    """The worker process: `ask` sends one case and waits for its answer."""

    def __init__(self):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            cwd=ROOT,
            env=environment,
        )
        self.facts = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the worker died:\n{self.process.communicate()[1][-3000:]}")
        return json.loads(line)

    def ask(self, **case):
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def interpreter():
    triton = pytest.importorskip("triton")
    if not flash_kernel.interpreter_works():
        pytest.skip(f"the interpreter of Triton {triton.__version__} is too old for this NumPy")
    worker = Interpreter()
    yield worker
    worker.close()


CASES = {
    "one tile": {"queries": 16, "keys": 16},
    "odd length": {"queries": 37, "keys": 37, "batch": 2, "heads": 2, "groups": 2},
    "one query": {"queries": 1, "keys": 33},
    "both ways": {"queries": 20, "keys": 35, "causal": False},
    "more queries than keys": {"queries": 35, "keys": 18},
    "more queries, both ways": {"queries": 35, "keys": 18, "causal": False},
    "grouped heads": {"queries": 19, "keys": 19, "batch": 2, "heads": 6, "groups": 2},
    "one group": {"queries": 19, "keys": 40, "heads": 3, "groups": 1},
    "cache offset": {"queries": 21, "keys": 50},
    "window": {"queries": 50, "keys": 50, "window": 7},
    "window across tiles": {"queries": 50, "keys": 70, "window": 33},
    "window of one": {"queries": 33, "keys": 33, "window": 1},
    "padded heads": {"queries": 18, "keys": 18, "size": 20},
    "narrow heads": {"queries": 18, "keys": 18, "size": 4, "wide": 8},
    "values wider": {"queries": 18, "keys": 18, "size": 16, "wide": 40},
    "widest heads": {"queries": 18, "keys": 18, "size": 128},
    "scale": {"queries": 18, "keys": 18, "scale": 1.0},
    "unequal tiles": {"queries": 70, "keys": 70, "query_tile": 32, "window": 20},
    "unequal tiles, wide keys": {"queries": 70, "keys": 75, "key_tile": 64, "window": 20},
    "broadcast slope": {"queries": 18, "keys": 18, "broadcast_slope": True},
    "documents": {
        "queries": 34,
        "keys": 40,
        "batch": 2,
        "heads": 2,
        "documents": [[0] * 17 + [5] * 23, [3] * 5 + [-1] * 30 + [3] * 5],
    },
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_the_formula(interpreter, case):
    gaps = interpreter.ask(**case)
    assert gaps.keys() == {"output", "query", "key", "value"}
    assert max(gaps.values()) < 2e-6, gaps


@pytest.mark.parametrize("seed", range(6))
def test_equals_the_formula_at_random(interpreter, seed):
    draw = random.Random(seed)
    groups, share = draw.choice([(1, 1), (2, 1), (1, 2), (2, 2)])
    causal = draw.random() < 0.7
    case = {
        "queries": draw.randint(1, 50),
        "keys": draw.randint(1, 50),
        "heads": groups * share,
        "groups": groups,
        "size": draw.choice([5, 16, 24]),
        "causal": causal,
        "window": draw.choice([None, draw.randint(1, 40)]) if causal else None,
        "query_tile": draw.choice([16, 32]),
        "key_tile": draw.choice([16, 32]),
        "seed": seed,
    }
    gaps = interpreter.ask(**case)
    assert max(gaps.values()) < 2e-6, (case, gaps)


def test_scores_too_large_for_exp(interpreter):
    """e^s overflows past 88, and L is in the hundreds: its last bit is worth 3e-5 of P."""
    gaps = interpreter.ask(queries=40, keys=40, peak=25, scale=1.0)
    assert max(gaps.values()) < 1e-4, gaps


def test_half_precision_is_one_rounding_away(interpreter):
    """P, dS and the results are rounded to 16 bits; the sums are not: 5 tiles, still one step."""
    case = {"queries": 70, "keys": 75, "heads": 2, "groups": 1, "size": 16}
    gaps = interpreter.ask(**case, dtype="float16")
    assert 0.0 < max(gaps.values()) < 1.5e-3, gaps


def test_values_may_be_narrower(interpreter):
    """Mixed precision with normalised queries and keys: they are float32, the values are not."""
    gaps = interpreter.ask(queries=20, keys=20, value_dtype="float16")
    assert 0.0 < max(gaps.values()) < 1.5e-3, gaps
    message = interpreter.ask(job="error", queries=4, keys=4, value_dtype="float64", options={})
    assert "float64" in message["error"]


def test_chosen_tiles(interpreter):
    """No tiles given: the sizes a GPU would use, larger than the whole."""
    gaps = interpreter.ask(queries=40, keys=40, size=24, query_tile=None, key_tile=None)
    assert max(gaps.values()) < 2e-6, gaps


def test_refusals_name_the_value_and_the_limit(interpreter):
    assert interpreter.facts == {"interpreting": True, "available": True, "same": True}

    def refusal(options=None, **case):
        case = {"queries": 18, "keys": 18, **case}
        return interpreter.ask(job="error", options=options or {}, **case)["error"]

    assert "up to 128" in refusal(size=129)
    assert "129" in refusal(size=129)
    assert "float64" in refusal(dtype="float64")
    assert "no bfloat16 in the interpreter" in refusal(dtype="bfloat16")
    assert "powers of two from 16 up, got 24, 16" in refusal({"query_tile": 24, "key_tile": 16})
    assert "powers of two from 16 up, got 16, 8" in refusal({"query_tile": 16, "key_tile": 8})
    assert "window=3 needs causal=True" in refusal({"window": 3, "causal": False})
    assert "H a multiple of G" in refusal(heads=3, groups=2)
    assert refusal() is None


@pytest.mark.parametrize(
    ("triton_version", "numpy_version", "works"),
    [("3.5.1", "2.3.9", True), ("3.6.0", "2.4.0", False), ("3.7.0", "2.10.1", True)],
)
def test_which_interpreters_work(triton_version, numpy_version, works, monkeypatch):
    module = type("Triton", (), {"__version__": triton_version})
    monkeypatch.setattr(flash_kernel, "triton", module)
    monkeypatch.setattr(flash_kernel.np, "__version__", numpy_version)
    assert flash_kernel.interpreter_works() == works


def test_without_triton_or_a_gpu_it_says_so(monkeypatch):
    """The page imports everywhere; what cannot run says why and what runs instead."""
    inputs = [torch.randn(1, 1, 4, 16) for _ in range(3)]
    if not (kernel_is_available() and flash_kernel.interpreting()):
        with pytest.raises(ValueError, match="tensors on cpu; flash_attention runs everywhere"):
            kernel_attention(*inputs)
    monkeypatch.setattr(flash_kernel, "triton", None)
    assert not kernel_is_available()
    with pytest.raises(ValueError, match="Triton \\(found: False\\)"):
        kernel_attention(*inputs)
    assert kernel_or_tiles(*inputs).shape == inputs[0].shape


def test_the_pages_import_where_triton_is_not_installed():
    """A finder that refuses triton stands for Windows and macOS; the demonstrations still run."""
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"  # makes `import triton` raise ImportError
        "from transformer_basics import flash_kernel, flash_programs\n"
        "assert not flash_kernel.kernel_is_available()\n"
        "flash_programs.demo(); flash_kernel.demo()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        encoding="utf-8",
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "flash_attention.py" in result.stdout


KERNELS = ["forward_kernel", "query_gradient_kernel", "key_value_gradient_kernel"]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("capability", "dtype", "size"), [(80, "bf16", 128), (90, "fp16", 64), (89, "fp32", 80)]
)
def test_compiles_for_gpus_that_are_not_here(name, capability, dtype, size, monkeypatch, tmp_path):
    """The compiler needs no GPU; the shared memory it reports is what flash_budget.py reckons."""
    triton = pytest.importorskip("triton")
    if flash_kernel.interpreting():
        pytest.skip("TRITON_INTERPRET is set for the whole run")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    backward, itemsize = name != "forward_kernel", 4 if dtype == "fp32" else 2
    tiles = tile_sizes(size, size, itemsize, backward)
    pad = padded(size)
    constants = {"CAUSAL": True, "D": size, "E": size, "D_PAD": pad, "E_PAD": pad}
    constants |= {"BQ": tiles[0], "BK": tiles[1]}
    types = dict.fromkeys(constants, "constexpr")
    types |= dict.fromkeys(("n_heads", "n_groups", "n_queries", "n_keys", "window"), "i32")
    types |= {"scale": "fp32", "logsumexp": "*fp32", "inner": "*fp32", "documents": "*i64"}
    kernel = getattr(flash_programs, name)
    signature = {argument: types.get(argument, f"*{dtype}") for argument in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True},
    )
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    reckoned = sram_bytes(size, size, itemsize, tiles, backward)
    slack = 4 * 8 * tiles[0]  # a row's maximum and sum cross the warps
    assert 0.3 * reckoned < compiled.metadata.shared <= reckoned + slack


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [16, 64, 80, 128])
def test_equals_the_library_on_a_gpu(dtype, size):
    pytest.importorskip("triton")
    torch.manual_seed(0)
    shapes = (2, 8, 300, size), (2, 2, 333, size), (2, 2, 333, size)
    inputs = [
        torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True) for shape in shapes
    ]
    distance = torch.arange(33, 333)[:, None] - torch.arange(333)
    for window in (None, 100):
        mask = ((distance >= 0) & (distance < (window or 333))).cuda()
        mine = kernel_attention(*inputs, window=window)
        exact = [x.detach().double().requires_grad_() for x in inputs]
        right = F.scaled_dot_product_attention(*exact, attn_mask=mask, enable_gqa=True)
        slope = torch.randn_like(mine)
        got = (mine, *torch.autograd.grad(mine, inputs, slope))
        want = (right, *torch.autograd.grad(right, exact, slope.double()))
        tolerance = 1e-5 if dtype is torch.float32 else 2e-2
        for a, b in zip(got, want, strict=True):
            gap = float((a.double() - b).abs().max()) / max(1.0, float(b.abs().max()))
            assert gap < tolerance


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_layer_uses_the_kernel_on_a_gpu(monkeypatch):
    pytest.importorskip("triton")
    calls = []
    monkeypatch.setattr(
        flash_kernel,
        "kernel_attention",
        lambda *a, **k: calls.append(1) or kernel_attention(*a, **k),
    )
    layer = CausalSelfAttention(64, 4, n_kv_heads=2, sliding_window=20).cuda()
    x = torch.randn(2, 50, 64, device="cuda")
    fast = layer(x)
    layer.implementation = "flash"
    torch.testing.assert_close(layer(x), fast, atol=1e-4, rtol=1e-4)
    assert calls
