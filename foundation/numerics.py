"""这台设备算得对吗？矩阵乘法、注意力与梯度，逐一同 float64 的答案比较。

A wrong driver, a broken kernel or a fast-math setting does not crash: the model only learns worse.
Every check compares the device with a float64 reference computed on the CPU from written-out
formulas, and its bound follows from the unit roundoff u of the format (2⁻²⁴ for fp32, 2⁻⁸ for
bf16), so that a right device passes whatever the order of its sums, and TF32, a wrong tile or a
forgotten mask does not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "NumericsResult",
    "check_attention",
    "check_exact_integers",
    "check_gradients",
    "check_matmul",
    "check_numerics",
    "matmul_flops_per_second",
    "present_devices",
    "synchronize",
]

ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
SHORT_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
# (rows, inner, columns): one row as in decoding, odd sizes that leave ragged tiles, a long sum
MATMUL_SHAPES = ((1, 768, 300), (65, 33, 129), (257, 512, 130), (64, 4096, 48))


@dataclass(frozen=True)
class NumericsResult:
    """One check on one device: the worst error seen and the largest a right device may make."""

    name: str
    device: str
    error: float
    bound: float
    problem: str = ""  # why the check could not run, e.g. "bf16 is not supported"

    @property
    def ok(self) -> bool:
        """True when the error is within the bound; NaN never is."""
        return not self.problem and self.error <= self.bound


def present_devices() -> list[torch.device]:
    """Every device of this machine: the CPU, each CUDA device, Apple's GPU."""
    devices = [torch.device("cpu")]
    devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    return devices


def check_numerics(device: torch.device) -> Iterator[NumericsResult]:
    """Run every check on `device`; one that raises becomes a result with a `problem`."""
    checks: list[tuple[str, Callable[[], NumericsResult]]] = [
        ("matmul fp32", lambda: check_matmul(device, torch.float32)),
        ("matmul exact", lambda: check_exact_integers(device)),
        ("attention fp32", lambda: check_attention(device, torch.float32)),
        ("matmul bf16", lambda: check_matmul(device, torch.bfloat16)),
        ("attention bf16", lambda: check_attention(device, torch.bfloat16)),
        ("gradients", lambda: check_gradients(device)),
    ]
    for name, check in checks:
        try:
            yield check()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            problem = f"{type(error).__name__}: {first_line(error)}"
            yield NumericsResult(name, str(device), math.nan, 0.0, problem)


def check_matmul(device: torch.device, dtype: torch.dtype) -> NumericsResult:
    """Compare random products with float64; the error is relative to |row| · |column|.

    fp32: sums of rounding errors stay near u·|a||b|, TF32 makes errors a hundred times larger.
    bf16: rounding the result adds u·|c|; partial sums rounded to bf16 (split-K on GPUs) are
    allowed, a whole sum in bf16 is not.
    """
    generator = torch.Generator().manual_seed(1)
    cases: list[tuple[float, float]] = []
    for rows, inner, columns in MATMUL_SHAPES:
        left = torch.randn(rows, inner, generator=generator).to(dtype)
        right = torch.randn(columns, inner, generator=generator).to(dtype)
        # The transposed operand is how a linear layer reads its weight.
        found = torch.matmul(left.to(device), right.to(device).T).cpu().double()
        reference = torch.einsum("ik,jk->ij", left.double(), right.double())
        scale = left.double().norm(dim=1)[:, None] * right.double().norm(dim=1)
        bound = torch.full_like(scale, 32 * ROUNDOFF[torch.float32])
        if dtype == torch.bfloat16:
            u = ROUNDOFF[torch.bfloat16]
            bound += u * reference.abs() / scale + 4 * u / math.sqrt(inner)
        error = ((found - reference).abs() / scale).flatten().tolist()
        cases += zip(error, bound.flatten().tolist(), strict=True)
    return NumericsResult(f"matmul {SHORT_NAMES[dtype]}", str(device), *_tightest(cases))


def check_exact_integers(device: torch.device) -> NumericsResult:
    """Multiply small whole numbers, whose every partial sum fp32 holds exactly: no error at all.

    Whatever is wrong with indices, tiles, masks or lost terms shows here without any tolerance.
    """
    generator = torch.Generator().manual_seed(2)
    worst = 0.0
    for rows, inner, columns in MATMUL_SHAPES:
        left = torch.randint(-8, 9, (2, rows, inner), generator=generator).float()
        right = torch.randint(-8, 9, (2, inner, columns), generator=generator).float()
        found = torch.matmul(left.to(device), right.to(device)).cpu()
        reference = torch.einsum("bik,bkj->bij", left.double(), right.double())
        worst = _larger(worst, float((found.double() - reference).abs().max()))
    return NumericsResult("matmul exact", str(device), worst, 0.0)


def check_attention(device: torch.device, dtype: torch.dtype) -> NumericsResult:
    """Compare causal, masked, grouped and very peaked attention with float64.

    The output is a weighted mean of the values, so errors are relative to the largest value;
    an error of a score s is relative to |s|, hence the bound grows with the largest score.
    """
    generator = torch.Generator().manual_seed(3)
    cases: list[tuple[float, float]] = []
    for length, n_kv_heads, spread, causal in (
        (65, 4, 1.0, True),
        (130, 2, 1.0, True),
        (64, 4, 1.0, False),
        (48, 4, 6.0, True),  # scores near ±100: a softmax without its maximum gives NaN
    ):
        query = (spread * torch.randn(2, 4, length, 32, generator=generator)).to(dtype)
        key = (spread * torch.randn(2, n_kv_heads, length, 32, generator=generator)).to(dtype)
        value = torch.randn(2, n_kv_heads, length, 32, generator=generator).to(dtype)
        mask = None
        if not causal:  # any pattern, each query seeing at least its own position
            mask = torch.rand(length, length, generator=generator) < 0.5
            mask |= torch.eye(length, dtype=torch.bool)
        found = F.scaled_dot_product_attention(
            query.to(device),
            key.to(device),
            value.to(device),
            attn_mask=None if mask is None else mask.to(device),
            is_causal=causal,
            enable_gqa=n_kv_heads != 4,
        )
        seen = torch.ones(length, length).tril().bool() if mask is None else mask
        reference, top_score = _reference_attention(query, key, value, seen)
        top_value = float(value.double().abs().max())
        bound = ROUNDOFF[torch.float32] * (64 + 8 * top_score)
        if dtype == torch.bfloat16:
            bound += 4 * ROUNDOFF[torch.bfloat16]
        error = float((found.cpu().double() - reference).abs().max()) / top_value
        cases.append((error, bound))
    return NumericsResult(f"attention {SHORT_NAMES[dtype]}", str(device), *_tightest(cases))


def check_gradients(device: torch.device) -> NumericsResult:
    """Differentiate a small language model in fp32 and compare every gradient with float64.

    The float64 gradient itself is first compared with finite differences, so that autograd does
    not vouch for itself.
    """
    parameters = _small_model_parameters()
    reference = _small_model_gradients(parameters, torch.device("cpu"), torch.float64)
    slope_error = _finite_difference_error(parameters, reference)
    found = _small_model_gradients(parameters, device, torch.float32)
    total = math.sqrt(sum(float(gradient.pow(2).sum()) for gradient in reference.values()))
    worst = slope_error
    for name, gradient in reference.items():
        size = max(float(gradient.norm()), 1e-3 * total)
        worst = _larger(worst, float((found[name].cpu().double() - gradient).norm()) / size)
    return NumericsResult("gradients", str(device), worst, 2e-5)


def matmul_flops_per_second(
    device: torch.device, dtype: torch.dtype, *, size: int = 1024, seconds: float = 0.3
) -> float:
    """Measure the best speed of one square product within about `seconds`."""
    left = torch.ones(size, size, device=device, dtype=dtype)
    right = torch.ones(size, size, device=device, dtype=dtype)
    torch.matmul(left, right)
    synchronize(device)
    best, deadline = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == math.inf:
        start = time.perf_counter()
        torch.matmul(left, right)
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().split("\n", 1)[0]


def _tightest(cases: list[tuple[float, float]]) -> tuple[float, float]:
    """The (error, bound) whose error uses most of its bound; NaN is the worst of all."""
    return max(cases, key=lambda case: math.inf if math.isnan(case[0]) else case[0] / case[1])


def _larger(first: float, second: float) -> float:
    """The larger of two errors; NaN wins, unlike in max()."""
    return second if math.isnan(second) or second > first else first


def _reference_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor
) -> tuple[Tensor, float]:
    groups = query.shape[1] // key.shape[1]
    key = key.double().repeat_interleave(groups, dim=1)
    value = value.double().repeat_interleave(groups, dim=1)
    scores = torch.einsum("bhtd,bhsd->bhts", query.double(), key) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~seen, -math.inf).softmax(dim=-1)
    return torch.einsum("bhts,bhsd->bhtd", weights, value), float(scores.abs().max())


def _small_model_parameters() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (29, 24), "qkv": (72, 24), "out": (24, 24)}
    shapes |= {"up": (96, 24), "down": (24, 96), "norm": (24,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * shape[-1] ** -0.5
        for name, shape in shapes.items()
    }


def _small_model_loss(parameters: dict[str, Tensor]) -> Tensor:
    """One attention layer, one feed-forward, tied output: every kernel a GPT trains through."""
    ids = (torch.arange(34).view(2, 17) * 7 + 3) % 29
    ids = ids.to(parameters["embedding"].device)
    x = F.embedding(ids[:, :-1], parameters["embedding"])  # (2, 16, 24)
    normed = F.layer_norm(x, (24,), parameters["norm"])
    heads = F.linear(normed, parameters["qkv"]).view(2, 16, 3, 4, 6).permute(2, 0, 3, 1, 4)
    query, key, value = heads.unbind(0)  # (2, 4, 16, 6) each
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    x = x + F.linear(mixed.transpose(1, 2).reshape(2, 16, 24), parameters["out"])
    x = x + F.linear(F.gelu(F.linear(x, parameters["up"])), parameters["down"])
    logits = F.linear(x, parameters["embedding"])
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _small_model_gradients(
    parameters: dict[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    leaves = {
        name: tensor.to(dtype).to(device).clone().requires_grad_()
        for name, tensor in parameters.items()
    }
    gradients = torch.autograd.grad(_small_model_loss(leaves), list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


def _finite_difference_error(parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> float:
    """Relative gap between the gradient along one direction and a central difference there."""
    generator = torch.Generator().manual_seed(5)
    direction = {
        name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        for name, tensor in parameters.items()
    }
    step = 1e-5
    ahead, behind = (
        float(
            _small_model_loss(
                {name: p + signed * direction[name] for name, p in parameters.items()}
            )
        )
        for signed in (step, -step)
    )
    slope = (ahead - behind) / (2 * step)
    claimed = sum(float((gradients[name] * direction[name]).sum()) for name in gradients)
    return abs(slope - claimed) / max(abs(slope), abs(claimed), 1e-12)
