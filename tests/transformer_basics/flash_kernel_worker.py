"""Runs the kernels in Triton's interpreter, one case a line: JSON in, JSON out.

A process of its own: the interpreter is chosen when Triton is first imported.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch

from transformer_basics.attention import scaled_dot_product_attention
from transformer_basics.flash_attention import flash_attention
from transformer_basics.flash_kernel import (
    interpreting,
    kernel_attention,
    kernel_is_available,
    kernel_or_tiles,
)
from transformer_basics.heads import repeat_heads


def visible(case, documents):
    """The book's rules, right-bottom aligned; more queries than keys allowed."""
    n_queries, n_keys = case["queries"], case["keys"]
    mask = torch.ones(1, 1, n_queries, n_keys).bool()
    if case.get("causal", True):
        distance = torch.arange(n_queries)[:, None] + (n_keys - n_queries) - torch.arange(n_keys)
        mask = mask & (distance >= 0) & (distance < (case.get("window") or n_keys + n_queries))
    if documents is not None:
        own = documents[:, n_keys - n_queries :]
        mask = mask & (own[:, None, :, None] == documents[:, None, None, :])
    return mask


def relative_gap(mine, right):
    """The largest difference, measured against the largest value (1 at least)."""
    assert mine.shape == right.shape
    assert bool(mine.isfinite().all())
    return float((mine.double() - right.double()).abs().max()) / max(1.0, float(right.abs().max()))


def inputs_of(case):
    """Transposed views, as split_heads makes them; a peak makes some scores overflow exp."""
    torch.manual_seed(case.get("seed", 0))
    batch, heads, groups = case.get("batch", 1), case.get("heads", 1), case.get("groups", 1)
    size, wide = case.get("size", 16), case.get("wide", case.get("size", 16))
    shapes = (
        (batch, case["queries"], heads, size),
        (batch, case["keys"], groups, size),
        (batch, case["keys"], groups, wide),
    )
    dtype = getattr(torch, case.get("dtype", "float32"))
    query, key, value = (torch.randn(shape).transpose(1, 2) for shape in shapes)
    if case.get("peak"):
        key[:, :, case["peak"]] *= 100.0
    value_dtype = getattr(torch, case.get("value_dtype", case.get("dtype", "float32")))
    dtypes = dtype, dtype, value_dtype
    return [x.to(d).requires_grad_() for x, d in zip((query, key, value), dtypes, strict=True)]


def run(case):
    inputs = inputs_of(case)
    ids = case.get("documents")
    documents = None if ids is None else torch.tensor(ids)
    output = kernel_attention(
        *inputs,
        causal=case.get("causal", True),
        window=case.get("window"),
        scale=case.get("scale"),
        document_ids=documents,
        query_tile=case.get("query_tile", 16),
        key_tile=case.get("key_tile", 16),
    )
    assert output.dtype == inputs[2].dtype
    exact = [x.detach().double().requires_grad_() for x in inputs]
    copies = [repeat_heads(x, case.get("heads", 1)) for x in exact[1:]]
    right = scaled_dot_product_attention(
        exact[0], *copies, visible(case, documents), scale=case.get("scale")
    )[0]
    gaps = {"output": relative_gap(output.detach(), right.detach())}
    if case.get("backward", True):
        slope = torch.randn(right.shape).to(output.dtype)
        if case.get("broadcast_slope"):
            slope = torch.ones((), dtype=output.dtype).expand(right.shape)
        mine = torch.autograd.grad(output, inputs, slope)
        theirs = torch.autograd.grad(right, exact, slope.double())
        for name, x, a, b in zip(("query", "key", "value"), inputs, mine, theirs, strict=True):
            assert a.dtype == x.dtype
            gaps[name] = relative_gap(a, b)
    return gaps


def error_of(case):
    """The message of a refusal."""
    inputs = inputs_of(case)
    try:
        kernel_attention(*inputs, **case["options"])
    except ValueError as error:
        return {"error": str(error)}
    return {"error": None}


def facts():
    """What this process is, and that a CPU tensor keeps to the tiles of PyTorch."""
    inputs = inputs_of({"queries": 5, "keys": 5})
    same = torch.equal(kernel_or_tiles(*inputs, window=2), flash_attention(*inputs, window=2))
    return {"interpreting": interpreting(), "available": kernel_is_available(), "same": same}


JOBS = {"run": run, "error": error_of}

if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(facts()), flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        print(json.dumps(JOBS[case.pop("job", "run")](case)), flush=True)
