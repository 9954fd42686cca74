"""What every process of these tests trains: a tiny GPT on padded rows of unequal lengths."""

import dataclasses
import math
import os

import torch

from gpt_model.config import preset
from gpt_model.model import GPT
from training.dataset import TokenBatches, sequential_batches
from training.hook_base import Hook
from training.train_config import TrainConfig
from training.trainer import Trainer, language_model_loss

TOKENS = [(step * step + step) % 13 for step in range(600)]
TINY = preset("gpt-micro", vocab_size=13, max_seq_len=8, n_layers=2, dim=16, n_heads=2, dropout=0.0)


class Padded:
    """Batches whose rows end at different places, so that no two batches have as many targets."""

    def __init__(self, poison=None):
        self.inner, self.poison = TokenBatches(TOKENS[:500], 3, 8, seed=0), poison

    def __call__(self, index):
        batch = self.inner(index)
        targets = batch.targets.clone()
        for row in range(len(targets)):
            targets[row, 1 + (5 * index + 3 * row) % 8 :] = -100
        # window ids tell which batch it was; that of the poisoned one is negative
        number = -1 if index == self.poison else index
        return dataclasses.replace(batch, targets=targets, window_ids=(number,))


def loss_fn(model, batch):
    loss, n_targets = language_model_loss(model, batch)
    return (loss * math.nan if -1 in batch.window_ids else loss), n_targets


class Recorder(Hook):
    def __init__(self):
        self.steps, self.warnings = [], []

    def on_step(self, trainer, report):
        self.steps.append(report)

    def on_warning(self, trainer, message):
        self.warnings.append(message)

    @property
    def losses(self):
        return [report.loss for report in self.steps]


def make_trainer(hook, *, run_dir=None, poison=None, model=None, **changes):
    """Each process draws other weights: only when rank 0's are handed out can they agree."""
    # AdamW divides by the gradient's own size: where that is nearly 0, another order of adding
    # shows as a share of the learning rate; a small one keeps it below the tests' 1e-6
    settings = {"steps": 6, "learning_rate": 1e-3, "eval_every": 3, "grad_accumulation": 4}
    torch.manual_seed(1 + int(os.environ.get("RANK", "0")))
    return Trainer(
        GPT(TINY.replace(**(model or {}))),
        Padded(poison),
        loss_fn,
        TrainConfig(**{**settings, "device": "cpu", "precision": "fp32", **changes}),
        [hook],
        val_batches=lambda: sequential_batches(TOKENS[500:], 4, 8),
        run_dir=run_dir,
    )
