"""The child process of train_throughput.py and lora_step.py: one contender, steps on demand.

    python benchmarks/step_worker.py NAME SHAPE DEVICE [NANOGPT]

On stdout a first JSON line (loss of the first step, peak bytes above the imports, bytes kept for
the backward pass); then, for each line "N" on stdin, N steps and the JSON list of their seconds.
NAME is one of train_throughput.py's or lora_step.py's contenders, or "peak": matrix products
instead of steps. With STEP_CLOCK=cpu in the environment the seconds are those of the processor.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from foundation.allocator import keep_freed_memory
from gpt_model.config import preset
from gpt_model.model import GPT
from transformer_basics.speed_ups import SPEED_UPS


@dataclass(frozen=True)
class Shape:
    n_layers: int
    n_heads: int
    dim: int
    length: int
    vocab: int
    batch: int

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def flops_per_token(self) -> float:
        """6 per weight of a product, and the attention scores (not halved for causality)."""
        weights = 12 * self.n_layers * self.dim**2 + self.vocab * self.dim
        return 6 * weights + 12 * self.n_layers * self.dim * self.length


SHAPES = {
    "micro12": Shape(4, 4, 128, 64, 65, 12),
    "micro64": Shape(4, 4, 128, 64, 65, 64),
    "mini": Shape(6, 6, 384, 256, 65, 16),
    "gpt2": Shape(12, 12, 768, 512, 50257, 2),
    "lora": Shape(12, 12, 768, 256, 50257, 4),
}
Step = Callable[[], float]
CLOCK = time.process_time if os.environ.get("STEP_CLOCK") == "cpu" else time.perf_counter


def build(name: str, shape: Shape, nanogpt: str | None, device: str) -> tuple[Any, Any]:
    """The model and a function of its loss."""
    ids = torch.randint(shape.vocab, (shape.batch, shape.length), device=device)
    targets = torch.randint(shape.vocab, (shape.batch, shape.length), device=device)
    if name.startswith("hf"):
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=shape.vocab,
            n_positions=shape.length,
            n_embd=shape.dim,
            n_layer=shape.n_layers,
            n_head=shape.n_heads,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
        return GPT2LMHeadModel(config).to(device), lambda net: net(ids, labels=targets).loss
    sys.path.insert(0, str(nanogpt))
    from model import GPT as NanoGPT  # noqa: N811 - the peer's own names
    from model import GPTConfig as NanoConfig

    with contextlib.redirect_stdout(io.StringIO()):
        model = NanoGPT(
            NanoConfig(
                block_size=shape.length,
                vocab_size=shape.vocab,
                n_layer=shape.n_layers,
                n_head=shape.n_heads,
                n_embd=shape.dim,
                dropout=0.0,
                bias=False,
            )
        )
    return model.to(device), lambda net: net(ids, targets)[1]


def trainer_step(name: str, shape: Shape, device: str) -> Step:
    """The step that Trainer takes, with its NaN guard and its report."""
    from training.accumulation import language_model_loss
    from training.batch import Batch
    from training.train_config import TrainConfig
    from training.train_step import TrainStep

    torch.manual_seed(0)
    ids = torch.randint(shape.vocab, (shape.batch, shape.length), device=device)
    batch = Batch(inputs=ids, targets=ids.roll(-1, 1))
    config = preset(
        "gpt2",
        vocab_size=shape.vocab,
        max_seq_len=shape.length,
        dim=shape.dim,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        activation="gelu",
        qkv_bias=False,
        proj_bias=False,
    )
    model = GPT(config).to(device)
    if name.endswith(("-selective", "-block")):
        model.use_checkpointing(name.split("-")[2])
    without = name.partition("-without-")[2]
    if without in SPEED_UPS:
        SPEED_UPS[without] = False
    loss_of = language_model_loss
    if without == "chunks":

        def loss_of(net: Any, batch: Batch) -> Any:
            return net(batch.inputs, batch.targets, reduction="sum").loss, batch.n_targets

    take = TrainStep(
        model,
        lambda index: batch,
        loss_of,
        TrainConfig(steps=10**6, learning_rate=1e-4, betas=(0.9, 0.99)),
        device=torch.device(device),
        precision=name.split("-")[1],
    )
    if without == "fused":
        for group in take.optimizer.param_groups:
            group["fused"] = False
    numbers = itertools.count()
    return lambda: take(next(numbers)).loss


def adapted(name: str, shape: Shape, device: str) -> Step:
    """LoRA of rank 8 on attention and feed-forward; all of it as the command line does it."""
    from finetuning.fused_lora import halve_frozen
    from finetuning.lora import LoRAConfig, apply_lora
    from inference.quantization import quantize
    from training.accumulation import language_model_loss
    from training.batch import Batch
    from training.train_config import TrainConfig
    from training.train_step import TrainStep

    torch.manual_seed(0)
    ids = torch.randint(shape.vocab, (shape.batch, shape.length), device=device)
    sizes = dict(max_seq_len=shape.length, dim=shape.dim, n_layers=shape.n_layers)
    model = GPT(preset("gpt2", vocab_size=shape.vocab, n_heads=shape.n_heads, dropout=0.0, **sizes))
    if name.startswith("lora-ours-qlora"):
        quantize(model)
    layers = ("q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj")
    apply_lora(model, LoRAConfig(r=8, target=layers))
    precision = name.rpartition("-")[2]
    if precision == "bf16":
        halve_frozen(model)
    batch = Batch(inputs=ids, targets=ids.roll(-1, 1))
    take = TrainStep(
        model.to(device),
        lambda index: batch,
        language_model_loss,
        TrainConfig(steps=10**6, learning_rate=1e-4),
        device=torch.device(device),
        precision=precision,
    )
    numbers = itertools.count()
    return lambda: take(next(numbers)).loss


def adapted_by_peft(name: str, shape: Shape, device: str) -> Step:
    """The same with transformers and PEFT: autocast, fused AdamW, clipping."""
    import peft
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    ids = torch.randint(shape.vocab, (shape.batch, shape.length), device=device)
    dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    config = GPT2Config(
        vocab_size=shape.vocab,
        n_positions=shape.length,
        n_embd=shape.dim,
        n_layer=shape.n_layers,
        n_head=shape.n_heads,
        **dropout,
    )
    lora = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True
    )
    model = peft.get_peft_model(GPT2LMHeadModel(config), lora).to(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=name.endswith("bf16")):
            loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def make_step(name: str, shape: Shape, nanogpt: str | None, device: str) -> Step:
    if name.startswith("lora"):
        make = adapted_by_peft if "peft" in name else adapted
        return make(name, shape, device)
    if name.startswith("ours"):
        return trainer_step(name, shape, device)
    torch.manual_seed(0)
    model, loss_of = build(name, shape, nanogpt, device)
    fast = name.endswith("compile")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.99), weight_decay=0.1, fused=fast
    )
    net = torch.compile(model) if name.endswith("compile") else model
    half = "bf16" in name

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = loss_of(net)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())  # waits for the device

    return step


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def worker(name: str, shape: Shape, nanogpt: str | None, device: str) -> None:
    """A child process: for each line "N" on stdin, N steps; their seconds as JSON on stdout."""
    ours = name.startswith(("ours", "lora-ours"))
    if ours and device == "cpu" and not name.endswith("without-memory"):
        keep_freed_memory()  # as Trainer does
    if name.startswith(("hf", "lora-peft")):
        import transformers  # noqa: F401 - imports do not count as memory of training
    if name.startswith("lora-peft"):
        import peft  # noqa: F401
    if name == "peak":
        step: Step | None = None
    else:
        before = peak_bytes(device) if device == "cpu" else 0
        step = make_step(name, shape, nanogpt, device)
        loss = [step() for _ in range(3)][0]
        told = {"loss": loss, "ln_vocab": math.log(shape.vocab)}
        told |= {"bytes": peak_bytes(device) - before}
        told["kept"] = kept_by_autograd(step) if ours else 0
        print(json.dumps(told), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            began = CLOCK()
            if step is None:
                print(json.dumps(matrix_peaks(device)), flush=True)
                break
            step()
            seconds.append(CLOCK() - began)
        else:
            print(json.dumps(seconds), flush=True)


def kept_by_autograd(step: Step) -> int:
    """Bytes stored for the backward pass of one step, the parameters left out."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(kept.values())


def matrix_peaks(device: str) -> dict[str, float]:
    """FLOP/s of the best square product of each type, here and now."""
    size = 2048 if device == "cpu" else 8192
    best = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        seconds = []
        for _ in range(6):
            began = CLOCK()
            product = left @ right
            float(product[0, 0])  # waits for the device
            seconds.append(CLOCK() - began)
        best[name] = 2 * size**3 / min(seconds[1:])
    return best


if __name__ == "__main__":
    worker(sys.argv[1], SHAPES[sys.argv[2]], sys.argv[4] if sys.argv[4:] else None, sys.argv[3])
