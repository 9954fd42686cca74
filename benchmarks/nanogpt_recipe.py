"""Is the whole chain right? nanoGPT's CPU recipe for tinyshakespeare characters, run by our parts.

    python benchmarks/nanogpt_recipe.py --text tinyshakespeare.txt [--seeds 0 1 2] [--nanogpt DIR]

4 layers, 4 heads, width 128, context 64; 2000 steps of 12 x 64 characters; AdamW 1e-3 -> 1e-4,
warmup 100, beta2 0.99, weight decay 0.1, clipping 1.0. Reported: the loss on the whole validation
split (the last tenth of the text) in non-overlapping blocks of 64, for every seed.

`--nanogpt DIR` trains a checkout of github.com/karpathy/nanoGPT beside it with its own train.py
and measures its checkpoint in the same way. The text is not part of this project.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import torch

from foundation.demonstration import use_utf8
from foundation.files import read_text
from gpt_model.config import preset
from gpt_model.model import GPT
from tokenization.tokenizer import Tokenizer
from training.dataset import TokenBatches, sequential_batches
from training.train_config import TrainConfig
from training.trainer import Trainer

BLOCK, BATCH, STEPS = 64, 12, 2000

# Runs inside the peer's folder: its own classes, its own checkpoint, our way to measure.
MEASURE_PEER = """
import sys, numpy, torch
sys.path.insert(0, ".")
from model import GPT, GPTConfig
saved = torch.load("out-recipe/ckpt.pt", weights_only=True, map_location="cpu")
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
model.eval()
ids = numpy.fromfile("data/shakespeare_char/val.bin", dtype=numpy.uint16)
ids = torch.from_numpy(ids.astype(numpy.int64))
n = (len(ids) - 1) // 64
x, y = ids[: n * 64].view(n, 64), ids[1 : n * 64 + 1].view(n, 64)
with torch.no_grad():
    losses = [model(x[i : i + 1], y[i : i + 1])[1].item() for i in range(n)]
print(sum(losses) / n)
"""


def train_ours(text: str, seed: int) -> tuple[float, float]:
    """Train with one seed; return (validation loss, seconds)."""
    tokenizer = Tokenizer.characters([text], special_tokens=())
    ids = torch.tensor(tokenizer.encode(text))
    cut = int(0.9 * len(ids))
    torch.manual_seed(seed)
    model = GPT(preset("gpt-micro", vocab_size=tokenizer.vocab_size, max_seq_len=BLOCK))
    config = TrainConfig(
        steps=STEPS,
        learning_rate=1e-3,
        min_lr_ratio=0.1,
        warmup_steps=100,
        betas=(0.9, 0.99),
        weight_decay=0.1,
        grad_clip=1.0,
        precision="fp32",
        device="cpu",
        seed=seed,
        eval_every=STEPS,
    )
    trainer = Trainer(
        model,
        TokenBatches(ids[:cut], BATCH, BLOCK, seed=seed),
        config=config,
        val_batches=lambda: sequential_batches(ids[cut:], 64, BLOCK),
    )
    started = time.perf_counter()
    result = trainer.fit()
    assert result.val_loss is not None
    return result.val_loss, time.perf_counter() - started


def train_peer(folder: Path, text: str, seed: int) -> tuple[float, float]:
    """Train nanoGPT with its own script; return (validation loss, seconds)."""
    data = folder / "data" / "shakespeare_char"
    (data / "input.txt").write_text(text, encoding="utf-8", newline="\n")
    if not (data / "val.bin").is_file():
        run([sys.executable, "prepare.py"], data)
    settings = {
        "device": "cpu",
        "compile": False,
        "eval_iters": 1,
        "eval_interval": STEPS,
        "log_interval": 500,
        "block_size": BLOCK,
        "batch_size": BATCH,
        "n_layer": 4,
        "n_head": 4,
        "n_embd": 128,
        "max_iters": STEPS,
        "lr_decay_iters": STEPS,
        "dropout": 0.0,
        "always_save_checkpoint": True,
        "out_dir": "out-recipe",
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    started = time.perf_counter()
    # Its seed is fixed inside train.py; an offset shifts it.
    code = "import torch, runpy, sys; s = torch.manual_seed; "
    code += f"torch.manual_seed = lambda x: s(x + {seed}); "
    code += f"sys.argv = ['train.py', 'config/train_shakespeare_char.py', *{options!r}]; "
    code += "runpy.run_path('train.py', run_name='__main__')"
    run([sys.executable, "-c", code], folder)
    seconds = time.perf_counter() - started
    return float(run([sys.executable, "-c", MEASURE_PEER], folder).split()[-1]), seconds


def run(command: list[str], folder: Path) -> str:
    """Run a child process and return what it printed; its errors are shown."""
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(f"{command[:2]} failed in {folder}:\n{done.stderr[-2000:]}")
    return done.stdout


def report(name: str, results: list[tuple[float, float]]) -> None:
    """Print one line of the table."""
    losses = [loss for loss, _ in results]
    spread = f"± {stdev(losses):.4f}" if len(losses) > 1 else ""
    seconds = mean(seconds for _, seconds in results)
    each = " ".join(f"{loss:.4f}" for loss in losses)
    print(f"{name:<10} loss {mean(losses):.4f} {spread:<9} ({each})  {seconds:.0f} s each")


def main() -> None:
    """Train every seed, ours and the peer's alternating, and print the table."""
    use_utf8()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, required=True, help="tinyshakespeare as one file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT to run beside")
    options = parser.parse_args()
    text = read_text(options.text)
    ours, peer = [], []
    for seed in options.seeds:
        ours.append(train_ours(text, seed))
        if options.nanogpt is not None:
            peer.append(train_peer(options.nanogpt, text, seed))
    report("ours", ours)
    if peer:
        report("nanoGPT", peer)


if __name__ == "__main__":
    main()
