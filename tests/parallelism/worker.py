"""What runs inside torchrun: `worker.py FOLDER SCENARIO…` writes SCENARIO-RANK.json into FOLDER."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from task import Recorder, make_trainer

from training.sharding import whole

RANK = int(os.environ.get("RANK", "0"))
SCENARIOS = {}
# what torch calls the operation, in several versions
SCATTERS = ("c10d::_reduce_scatter_base_", "c10d::reduce_scatter_tensor")


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


def outcome(trainer, hook, **more):
    """Weights in whole numbers of bits, so that they can be compared exactly."""
    state = whole({name: p.detach() for name, p in trainer.model.named_parameters()})
    return {
        "losses": hook.losses,
        "norms": [report.grad_norm for report in hook.steps],
        "tokens": [report.n_tokens for report in hook.steps],
        "problems": [report.problem for report in hook.steps],
        "windows": [report.window_ids for report in hook.steps],
        "warnings": hook.warnings,
        "weights": {name: tensor.flatten().tolist() for name, tensor in state.items()},
        "step": trainer.state.step,
        "skipped": trainer.state.skipped_steps,
        "val_loss": trainer.state.val_loss,
        **more,
    }


def train(resume=False, **options):
    hook = Recorder()
    trainer = make_trainer(hook, **options)
    trainer.fit(resume=resume)
    return outcome(trainer, hook)


def counted(kind):
    """Train, and count what goes over the wire for the gradients."""
    hook = Recorder()
    trainer = make_trainer(hook, parallel=kind, steps=6, eval_every=100)
    if kind == "ddp":
        buckets = []

        def count(_, bucket):
            buckets.append(bucket.index())
            work = dist.all_reduce(bucket.buffer().div_(2), async_op=True)
            return work.get_future().then(lambda future: future.value()[0])

        trainer.take_step.model.register_comm_hook(None, count)
        trainer.fit()
        return outcome(trainer, hook, calls=len(buckets))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        trainer.fit()
    calls = sum(event.count for event in profile.key_averages() if event.key in SCATTERS)
    return outcome(trainer, hook, calls=calls)


@scenario
def ddp(_):
    return train(parallel="ddp")


@scenario
def fsdp(_):
    return train(parallel="fsdp")


@scenario
def clipped_fsdp(_):
    return train(parallel="fsdp", grad_clip=0.05)


@scenario
def count_ddp(_):
    return counted("ddp")


@scenario
def count_fsdp(_):
    return counted("fsdp")


@scenario
def poisoned(_):
    """Batch 9 (step 2, rank 1) gives NaN."""
    return train(parallel="ddp", poison=9)


@scenario
def poisoned_fsdp(_):
    return train(parallel="fsdp", poison=9)


@scenario
def stopped(_):
    """Only rank 1 hears the signal, after its second step."""

    class Stop(Recorder):
        pass

    hook = Stop()
    trainer = make_trainer(hook, parallel="ddp")
    take = trainer.take_step

    def step(number):
        if number == 2 and RANK == 1:
            signal.raise_signal(signal.SIGINT)
        return take(number)

    step.scaler, step.spikes, step.optimizer = take.scaler, take.spikes, take.optimizer
    step.parameters = take.parameters
    trainer.take_step = step
    result = trainer.fit()
    return outcome(trainer, hook, interrupted=result.interrupted)


def saved(folder, name, **options):
    """Six steps with dropout, saved after three; then on from there, as after an interruption."""
    changes = {"model": {"dropout": 0.1}, **options}
    straight = train(run_dir=folder / f"straight-{name}", save_every=3, **changes)
    resumed = folder / f"resumed-{name}"
    if RANK == 0:
        keep_first_checkpoint(folder / f"straight-{name}", resumed)
    # and once without dropout, for one process to go on from
    train(run_dir=folder / f"plain-{name}", steps=6, save_every=3, **options)
    if RANK == 0:
        shutil.rmtree(folder / f"plain-{name}" / "step-000006")
    dist.barrier()
    return {"straight": straight, "resumed": train(resume=True, run_dir=resumed, **changes)}


def keep_first_checkpoint(run_dir, target):
    target.mkdir()
    shutil.copytree(run_dir / "step-000003", target / "step-000003")


@scenario
def saved_ddp(folder):
    return saved(folder, "ddp", parallel="ddp")


@scenario
def saved_fsdp(folder):
    return saved(folder, "fsdp", parallel="fsdp")


@scenario
def saved_shards(folder):
    return saved(folder, "shards", parallel="fsdp", sharded_checkpoints=True)


@scenario
def bf16(_):
    return train(parallel="fsdp", precision="bf16")


def from_one(folder, name, **options):
    """Go on from the checkpoint that the test has saved in one process."""
    if RANK == 0:
        keep_first_checkpoint(folder / "one", folder / f"from-one-{name}")
    dist.barrier()
    return train(resume=True, run_dir=folder / f"from-one-{name}", **options)


@scenario
def from_one_ddp(folder):
    return from_one(folder, "ddp", parallel="ddp")


@scenario
def from_one_fsdp(folder):
    return from_one(folder, "fsdp", parallel="fsdp")


@scenario
def no_room_for_shards(folder):
    """Only rank 1 finds the disk full, at the second checkpoint."""
    import safetensors.torch as module

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    run, original = folder / "full-shards", module.save
    trainer = make_trainer(
        Recorder(), run_dir=run, parallel="fsdp", sharded_checkpoints=True, save_every=3
    )
    take = trainer.take_step

    def step(number):
        if number == 4 and RANK == 1:
            module.save = full
        return take(number)

    step.scaler, step.spikes, step.optimizer = take.scaler, take.spikes, take.optimizer
    step.parameters = take.parameters
    trainer.take_step = step
    try:
        trainer.fit()
    except OSError as error:
        dist.barrier()  # until rank 0 has cleaned up
        return {"error": str(error), "left": sorted(path.name for path in run.glob("step-*"))}
    finally:
        module.save = original
    return {"error": ""}


@scenario
def no_room(folder):
    """Rank 0 cannot save: everyone hears of it."""
    import training.sharded_files as module

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    original, module.save_file = module.save_file, full
    try:
        train(parallel="ddp", run_dir=folder / "full")
    except OSError as error:
        return {"error": str(error)}
    finally:
        module.save_file = original
    return {"error": ""}


@scenario
def indivisible(_):
    try:
        train(parallel="ddp", grad_accumulation=3)
    except ValueError as error:
        return {"error": str(error)}
    return {"error": ""}


@scenario
def different(folder):
    """Each process is started with another learning rate."""
    try:
        train(parallel="ddp", learning_rate=1e-3 * (1 + RANK))
    except ValueError as error:
        (folder / f"error-{RANK}.txt").write_text(str(error), encoding="utf-8")
        dist.barrier()  # torchrun ends the others as soon as one has failed
        raise


@scenario
def separate(_):
    train(parallel="none")


def main():
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        found = SCENARIOS[name](folder)
        text = json.dumps(found, default=str)
        (folder / f"{name}-{RANK}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
