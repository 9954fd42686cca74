r"""训练到一半停电，怎样从断掉的地方一个比特不差地接着训？

要接得上，光有权重不够。下一步会用到的一切都得存：

    权重               model.safetensors        也是一个完整的模型目录，可直接拿来生成
    优化器的 m 与 v     optimizer.safetensors    丢了它们，Adam 要重新估几十步，损失会跳一下
    走到第几步          trainer.json             学习率与数据次序都只取决于步数，不必另存
    最好的验证损失      trainer.json             否则续训后第一次验证总被当成「最好」
    随机数发生器        random.safetensors       dropout 接着原来的序列抽

一次训练的目录（run directory）：

    runs/my-run/
    ├── step-000200/    每一步的存档自成一体：清单最后写成，没有有效清单的不算存档
    ├── step-000400/
    ├── metrics.jsonl   loss.png
    └── .lock           有人正在这里训练

没有「latest」这样的指针文件：两份说法总有一天会不一致。哪份最新，看目录名就知道；
哪份是好的，核对清单就知道。最新的一份若坏了，退回前一份，并说出来。

存的次序：写在旁边 → 刷到磁盘 → 清单 → 改名。新的一份就位之后，才删旧的。

改哪里：多存一样东西 → write_state 与 read_state 成对地改；留几份 → prune。
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from foundation.demonstration import run_demo
from foundation.files import atomic_directory, read_json, verify_manifest, write_json
from gpt_model.model import GPT
from gpt_model.model_directory import WEIGHTS_FILE, read_weights, state_to_save, write_model_files
from tokenization.tokenizer import Tokenizer

__all__ = [
    "Checkpoint",
    "best_checkpoint",
    "latest_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "save_checkpoint",
]

CHECKPOINT_KIND = "checkpoint"
STEP_NAME = re.compile(r"step-(\d{6,})")
OPTIMIZER_FILE = "optimizer.safetensors"
RANDOM_FILE = "random.safetensors"
TRAINER_FILE = "trainer.json"


@dataclass(frozen=True)
class Checkpoint:
    """磁盘上的一份存档：第几步，在哪里，当时的验证损失（没验证过是 None）。"""

    step: int
    directory: Path
    val_loss: float | None


# ── 存 ──────────────────────────────────────────────────────────────────────────────


def save_checkpoint(
    run_dir: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None = None,
    val_loss: float | None = None,
    keep_last: int = 2,
) -> Path:
    """把第 step 步之后的一切存成 run_dir/step-000200/，然后清掉多余的旧存档。

    progress 是 JSON 能写的小东西（步数、配置、最好的损失），由训练循环决定
    错误：权重或优化器含 NaN → ValueError；磁盘满等 → OSError，说出最后一份好存档在哪里
    """
    target = run_dir / f"step-{step:06d}"
    facts = {"step": step, "val_loss": val_loss}
    try:
        with atomic_directory(target, kind=CHECKPOINT_KIND, extra=facts) as temporary:
            write_state(temporary, model, optimizer, progress, tokenizer)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch 与 safetensors 在磁盘满时抛的不是 OSError；统一成一句说得清的话
        good = list_checkpoints(run_dir)
        kept = f"the last good checkpoint is {good[-1].directory}" if good else "none was saved yet"
        raise OSError(f"could not save {target}: {error}; {kept}") from error
    prune(run_dir, keep_last)
    return target


def write_state(
    directory: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Mapping[str, Any],
    tokenizer: Tokenizer | None,
) -> None:
    """写出一份存档的全部文件；清单由 atomic_directory 最后写。"""
    # ① 权重：GPT 写成模型目录；别的模块（例如课上的小网络）只写张量
    if isinstance(model, GPT):
        write_model_files(model, directory, tokenizer)
    else:
        save_file(state_to_save(model), directory / WEIGHTS_FILE)
    # ② 优化器：张量归张量，其余的数归 JSON
    tensors, numbers = split_optimizer_state(optimizer)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"the optimizer state {name} holds NaN or infinite values")
    save_file(tensors, directory / OPTIMIZER_FILE)
    # ③ 随机数发生器的状态本身就是一串字节
    save_file(random_states(), directory / RANDOM_FILE)
    write_json(directory / TRAINER_FILE, {**progress, "optimizer": numbers})


def split_optimizer_state(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """把 state_dict 拆成 (张量, 其余)：「第几个参数.名字」→ 张量；其余是各组的设置。

    例：{"0.exp_avg": …, "0.exp_avg_sq": …, "0.step": …, "1.exp_avg": …}
    """
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.detach().contiguous()
        for index, entry in state["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }
    # 学习率由日程每步重设，但各组的 weight_decay、betas 要对得上
    groups = json.loads(json.dumps(state["param_groups"]))
    return tensors, {"param_groups": groups}


def random_states() -> dict[str, Tensor]:
    """CPU 与每块 CUDA 设备的随机数状态；CUDA 没用过就没有。"""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            states[f"cuda.{index}"] = torch.cuda.get_rng_state(index)
    return states


def prune(run_dir: Path, keep_last: int) -> None:
    """只留最新的几份与验证损失最低的一份；刚存好的总在其中。"""
    found = list_checkpoints(run_dir)
    kept = {checkpoint.directory for checkpoint in found[-keep_last:]}
    best = best_checkpoint(run_dir)
    if best is not None:
        kept.add(best.directory)
    for checkpoint in found:
        if checkpoint.directory not in kept:
            shutil.rmtree(checkpoint.directory, ignore_errors=True)


# ── 找 ──────────────────────────────────────────────────────────────────────────────


def list_checkpoints(run_dir: Path | str) -> list[Checkpoint]:
    """目录里写完了的存档，按步数从早到晚；没有清单的是写到一半的，不算。"""
    found = []
    for directory in Path(run_dir).glob("step-*"):
        match = STEP_NAME.fullmatch(directory.name)
        if match is None or not (directory / "manifest.json").is_file():
            continue
        try:
            loss = read_json(directory / "manifest.json").get("val_loss")
        except (ValueError, AttributeError):  # 清单本身坏了：留给核对时去报告
            loss = None
        found.append(Checkpoint(int(match[1]), directory, loss))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest_checkpoint(run_dir: Path | str) -> Checkpoint | None:
    """最新的一份完好的存档；坏的跳过并警告，一份都没有则 None。

    错误：有存档，但全都坏了 → ValueError，列出每一份坏在哪里
    """
    problems = []
    for checkpoint in reversed(list_checkpoints(run_dir)):
        try:
            verify_manifest(checkpoint.directory, kind=CHECKPOINT_KIND)
        except ValueError as error:
            problems.append(str(error))
            warnings.warn(f"{error}; trying the checkpoint before it", stacklevel=2)
        else:
            return checkpoint
    if problems:
        raise ValueError(f"every checkpoint in {run_dir} is damaged: {'; '.join(problems)}")
    return None


def best_checkpoint(run_dir: Path | str) -> Checkpoint | None:
    """验证损失最低的一份；都没验证过则 None。一样低时取较晚的。"""
    measured = [c for c in list_checkpoints(run_dir) if c.val_loss is not None]
    return min(reversed(measured), key=lambda c: c.val_loss or 0.0) if measured else None


# ── 读 ──────────────────────────────────────────────────────────────────────────────


def load_checkpoint(
    directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """把存档读回到已建好的模型与优化器里，恢复随机数，返回当时的 progress。

    错误：损坏、名字或形状对不上、优化器的分组不同 → ValueError，写明文件与差别
    """
    verify_manifest(directory, kind=CHECKPOINT_KIND)
    progress: dict[str, Any] = read_json(directory / TRAINER_FILE)
    load_model_state(model, read_weights(directory / WEIGHTS_FILE), directory)
    numbers = progress.pop("optimizer")
    load_optimizer_state(optimizer, read_weights(directory / OPTIMIZER_FILE), numbers, directory)
    # 随机数放在最后恢复：前面的步骤若用到了随机数，也不会打乱
    restore_random(read_weights(directory / RANDOM_FILE))
    return progress


def load_model_state(model: nn.Module, weights: dict[str, Tensor], directory: Path) -> None:
    """就地写入权重；只存了一个名字的共用矩阵，另一个名字不算缺少。"""
    expected = state_to_save(model)
    missing = sorted(set(expected) - set(weights))
    unexpected = sorted(set(weights) - set(expected))
    shapes = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{directory} was saved from another model: missing {missing[:3]}, "
            f"unexpected {unexpected[:3]}, shapes {shapes[:3]}"
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(weights[name])  # 与模型共用内存，写进去就是写进模型


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
    directory: Path,
) -> None:
    """拼回 state_dict；分组的参数个数必须相同，否则 m、v 会配错参数。"""
    now = [len(group["params"]) for group in optimizer.param_groups]
    saved = [len(group["params"]) for group in numbers["param_groups"]]
    if now != saved:
        raise ValueError(
            f"{directory} has optimizer groups of {saved} parameters, this run has {now}"
        )
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)  # "12.exp_avg" → 第 12 个参数的一阶矩
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": list(numbers["param_groups"])})


def restore_random(states: Mapping[str, Tensor]) -> None:
    """恢复随机数发生器；存档时有、现在没有的 CUDA 设备只好跳过。"""
    torch.set_rng_state(states["cpu"])
    for name, state in states.items():
        kind, _, index = name.partition(".")
        if kind == "cuda" and torch.cuda.is_available() and int(index) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(index))


def demo() -> None:
    """带 dropout 的小网络：连走六步，与「三步、存、读、再三步」逐比特对照；再弄坏一份。"""
    import tempfile

    from training.optimizer import build_optimizer
    from training.train_config import TrainConfig

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        return model, build_optimizer(model, TrainConfig(learning_rate=0.01))

    def walk(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            inputs = torch.full((4, 8), float(step))  # 数据只取决于步数
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

    straight, optimizer = fresh()
    walk(straight, optimizer, range(6))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        model, optimizer = fresh()
        for step in (1, 2, 3):
            walk(model, optimizer, range(step - 1, step))
            save_checkpoint(run, step, model, optimizer, {"step": step}, val_loss=1.0 / step)
        print(f"存了三次，留下最新的两份：{[c.directory.name for c in list_checkpoints(run)]}")
        resumed, optimizer = fresh()
        torch.manual_seed(999)  # 断电之后，随机数早已不在原处
        checkpoint = latest_checkpoint(run)
        assert checkpoint is not None
        progress = load_checkpoint(checkpoint.directory, resumed, optimizer)
        walk(resumed, optimizer, range(progress["step"], 6))
        same = all(map(torch.equal, straight.parameters(), resumed.parameters()))
        print(f"三步、存、读、再三步，与连走六步逐比特相等：{same}")
        assert same

        weights = checkpoint.directory / WEIGHTS_FILE
        damaged = bytearray(weights.read_bytes())
        damaged[-1] ^= 1
        weights.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            fallback = latest_checkpoint(run)
        assert fallback is not None
        message = str(heard[0].message).replace(folder, "run")
        print(f"最新的一份翻转一个比特 → {message[:60]}…\n退回 {fallback.directory.name}")
        assert fallback.step == 2


if __name__ == "__main__":
    run_demo(demo)
