"""A run that can be killed anywhere, a disk that fails when told to, and how to compare runs."""

import builtins
import errno
import hashlib
import json
import os
import random
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import gpt_model.model_directory
import training.sharded_files
import training.trainer
from finetuning.lora import LoRAConfig, apply_lora
from gpt_model.config import preset
from gpt_model.model import GPT
from training.accumulation import language_model_loss
from training.dataset import TokenBatches, sequential_batches
from training.hook_base import Hook
from training.metrics import METRICS_FILE, MetricsHook, read_metrics
from training.random_state import random_state
from training.train_config import TrainConfig
from training.trainer import Trainer

TOKENS = [(step * step + step) % 13 for step in range(400)]
TINY = preset("gpt-micro", vocab_size=13, max_seq_len=8, n_layers=1, dim=16, n_heads=2, dropout=0.1)


def drawing_loss(model, batch):
    """Next-token loss that also draws from Python's generator, as a data augmentation would."""
    loss, count = language_model_loss(model, batch)
    return (loss * (1.0 + 0.1 * random.random()) if model.training else loss), count


def make_run(run_dir, *, steps=30, loss_fn=drawing_loss, hooks=(), kind="plain", **settings):
    """The run of these tests: dropout, two micro-batches a step, a checkpoint every three.

    kind: plain; lora (only adapters are trained and saved); fp16 (on a CPU, where overflows come
    from a loss scale that doubles every four steps).
    """
    torch.manual_seed(1)
    values = {"learning_rate": 1e-2, "eval_every": 6, "save_every": 3, "grad_accumulation": 2}
    model = GPT(TINY)
    if kind == "lora":
        apply_lora(model, LoRAConfig(r=2, dropout=0.1))
    before = training.trainer.resolve_precision
    if kind == "fp16":  # refused on CPUs, where it is of no use except to a test
        training.trainer.resolve_precision = lambda name, device: "fp16"
    try:
        trainer = Trainer(
            model,
            TokenBatches(TOKENS[:350], 2, 8, seed=5),
            loss_fn,
            TrainConfig(steps=steps, device="cpu", **{**values, **settings}),
            [MetricsHook(), *hooks],
            val_batches=lambda: sequential_batches(TOKENS[350:], 8, 8),
            run_dir=run_dir,
        )
    finally:
        training.trainer.resolve_precision = before
    trainer.take_step.scaler.growth_interval = 4
    return trainer


def continue_run(run_dir, **options):
    """Start, or go on from what is there, as a person would after a power cut."""
    resume = any(Path(run_dir).glob("step-*/manifest.json"))
    torch.manual_seed(random.SystemRandom().randrange(2**31))
    trainer = make_run(run_dir, **options)
    trainer.fit(resume=resume)
    return trainer


def digest(trainer):
    """SHA-256 of weights, optimizer state, random state, loss scale, spike windows, counters."""
    result = hashlib.sha256()
    for name, tensor in sorted(random_state().items()):
        result.update(name.encode() + tensor.numpy().tobytes())
    step = trainer.take_step
    result.update(json.dumps([step.scaler.state_dict(), step.spikes.state_dict()]).encode())
    for name, tensor in sorted(trainer.model.state_dict().items()):
        result.update(name.encode() + tensor.numpy().tobytes())
    for index, state in sorted(trainer.take_step.optimizer.state_dict()["state"].items()):
        for key in sorted(state):
            result.update(f"{index}{key}".encode() + state[key].numpy().tobytes())
    counted = (
        *("step", "tokens_seen", "best_loss", "best_step", "evaluations_without_gain"),
        *("skipped_steps", "skipped_in_a_row", "spike_steps", "last_spike"),
    )
    result.update(json.dumps([getattr(trainer.state, name) for name in counted]).encode())
    return result.hexdigest()


def numbers_of(run_dir):
    """Everything in metrics.jsonl but the clock."""
    records = read_metrics(Path(run_dir) / "metrics.jsonl")
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]


def die():
    """As `kill -9`: no clean-up, no flushing."""
    if hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(9)


def interrupt(what=None):
    """As Ctrl-C from somebody who does not wait: twice."""
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def full(what):
    raise OSError(errno.ENOSPC, "No space left on device", what)


ENDS = {"kill": lambda what=None: die(), "interrupt": interrupt, "full": full}


class EndAtStep(Hook):
    """Ends in the middle of a step: after the first micro-batch's backward pass, if it has two."""

    def __init__(self, step, end, loss_fn=drawing_loss):
        self.step, self.end, self.inner, self.seen = step, end, loss_fn, 0

    def loss_fn(self, model, batch):
        if model.training and self.trainer.state.step == self.step:
            self.seen += 1
            if self.seen == min(2, self.trainer.config.grad_accumulation):
                self.end("step")
        return self.inner(model, batch)

    def on_start(self, trainer):
        self.trainer = trainer


class Written:
    """A text file that tells the disk of every write."""

    def __init__(self, file, disk):
        self.file, self.disk = file, disk

    def write(self, data):
        def half():
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        self.disk.tick(f"write {Path(self.file.name).name}", half)
        return self.file.write(data)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


class FaultyDisk:
    """Counts what a save does to the disk; does `fault` at the k-th of it, half done.

    `before` is told of every operation just before it happens.
    """

    def __init__(self, k, fault, *, active=True, before=lambda what: None):
        self.k, self.fault, self.active, self.before = k, fault, active, before
        self.count, self.log = 0, []

    def tick(self, what, half=None):
        if not self.active:
            return
        self.active = False  # what `before` does is not counted
        self.before(what)
        self.active = True
        self.count += 1
        self.log.append(what)
        if self.count == self.k:
            if half is not None:
                half()
            self.fault(what)

    @contextmanager
    def installed(self):
        real = {"open": builtins.open, "fsync": os.fsync, "replace": os.replace}
        real |= {"mkdir": Path.mkdir, "unlink": os.unlink, "rmdir": os.rmdir}

        def open_(file, mode="r", *arguments, **options):
            if any(letter in mode for letter in "wax+"):
                self.tick(f"open {Path(str(file)).name}")
            opened = real["open"](file, mode, *arguments, **options)
            # the log of the run is not part of a save
            text = "w" in mode and "b" not in mode and Path(str(file)).name != METRICS_FILE
            return Written(opened, self) if text else opened

        def removal(name):
            def remove(path, *arguments, **options):
                self.tick(f"{name} {Path(path).name}")
                real[name](path, *arguments, **options)

            return remove

        def fsync(descriptor):
            self.tick("fsync")
            real["fsync"](descriptor)

        def replace(source, target):
            self.tick(f"rename to {Path(target).name}")
            real["replace"](source, target)

        def mkdir(path, *arguments, **options):
            self.tick(f"mkdir {path.name}")
            real["mkdir"](path, *arguments, **options)

        def write_tensors(tensors, path, *arguments, **options):
            def half():
                save_file(tensors, path, *arguments, **options)
                data = Path(path).read_bytes()
                with real["open"](path, "wb") as file:
                    file.write(data[: len(data) // 2])

            self.tick(f"write {Path(path).name}", half)
            save_file(tensors, path, *arguments, **options)

        patches = [
            (builtins, "open", open_),
            (os, "fsync", fsync),
            (os, "replace", replace),
            (os, "unlink", removal("unlink")),
            (os, "rmdir", removal("rmdir")),
            (Path, "mkdir", mkdir),
            (training.sharded_files, "save_file", write_tensors),
            (gpt_model.model_directory, "save_file", write_tensors),
        ]
        before = [(where, name, getattr(where, name)) for where, name, _ in patches]
        for where, name, patched in patches:
            setattr(where, name, patched)
        try:
            yield self
        finally:
            for where, name, original in before:
                setattr(where, name, original)


class EndInSave(Hook):
    """Ends at the k-th thing that the first save from step `step` on does to the disk."""

    def __init__(self, step, k, end):
        self.disk = FaultyDisk(k, end, active=False)
        self.step = step

    def on_step(self, trainer, report):
        self.disk.active = report.step >= self.step and report.step % 3 == 0

    def on_save(self, trainer, directory):
        self.disk.active = False


@pytest.fixture(scope="session")
def faults():
    """This file's helpers, for the tests beside it."""
    return sys.modules[__name__]
