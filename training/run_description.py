r"""续训时，怎么知道接上的还是同一次训练？——把「决定结果的一切」记下来，续训时逐项比对。

学习率改了、数据换了、多了一层 dropout，程序照样能跑，曲线也许看不出来，可是接上的已经是另一次
训练：它既不等于没停过的那一次，也不等于从头练的那一次，谁也没法重现。

    存档时 ── 描述（description）──▶ trainer.json
                                        │
    续训时 ── 再描述一遍 ───────────────┴─▶ 逐项比对
                                            ├ 算术、数据的次序不同 ─▶ 拒绝，列出每一项的新旧值
                                            └ 机器、版本不同 ───────▶ 警告：末几位会不同

描述分五栏：
    config        超参数里影响权重的（ARITHMETIC_FIELDS），没有给的先算出真正用的值再比
    model         模型的配置：dropout、激活函数换了，权重的形状照样对得上，只有这里看得出
    data          刚用过的那一批的指纹：batches 是编号的纯函数，同一编号给出不同的内容，
                  就是语料、种子或批的大小变了
    tokenizer     词表的指纹：编号的意思变了，权重就全错了
    environment   设备、线程数、torch 与 Python 的版本：浮点加法的次序变了，末几位不同

真想改（例如延长步数），就明说 allow_changes：差别变成警告，记录在案，结果不再等于没停过的那次。

$$\text{resumable} \iff \text{description}_{\text{saved}} = \text{description}_{\text{now}}$$

论文：可重现性 — Biderman et al., *Pythia*, arXiv:2304.01373；Pineau et al., arXiv:2003.12206。

改哪里：哪些超参数算「影响权重」→ train_config.py 的 ARITHMETIC_FIELDS；
        多描述一样东西 → describe_run 添一栏；不同时只警告的栏 → WARNED。
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from foundation.demonstration import run_demo
from tokenization.tokenizer import Tokenizer
from training.train_config import ARITHMETIC_FIELDS, TrainConfig

__all__ = ["batch_fingerprint", "compare_runs", "describe_run"]

WARNED = ("environment",)  # 这一栏不同只警告，其余拒绝


def describe_run(
    config: TrainConfig,
    model: nn.Module,
    device: torch.device,
    precision: str,
    *,
    tokenizer: Tokenizer | None,
    batches: Callable[[int], Any],
    batch_index: int,
    n_processes: int = 1,
) -> dict[str, Any]:
    """描述这次训练；全是 JSON 写得下的值，随存档存下。

    参数：batch_index 是用来取指纹的那一批的编号，存档时取刚用过的一批
    约定：同一次训练在同一步描述几遍都相同；不抽随机数，不动模型
    类型：嵌套的字典，第一层是五栏，第二层是每一栏的各项
    """
    # ① 超参数：没有给的、"auto" 的，换成真正用的值；不然两种写法同一个意思，也会被当成不同
    resolved = {name: config.to_dict()[name] for name in ARITHMETIC_FIELDS}  # 影响权重的那些
    resolved |= {"warmup_steps": config.warmup, "precision": precision}
    # decay_steps 只有 WSD 用得着
    resolved["decay_steps"] = config.decay if config.schedule == "wsd" else None
    # 跳高只有 skip 时才影响权重；只说一句的，怎样说都行
    watched = (config.spike_factor, config.spike_window) if config.spike_action == "skip" else None
    resolved["skip_spikes"] = watched
    description = {
        "config": resolved,
        "model": describe_model(model),  # 结构，不含权重的数值
        "data": {
            "batch": batch_fingerprint(batches(batch_index)),
            # 语料自己有指纹的（见 token_shard.py），连这一批没碰到的地方也担保了
            "corpus": getattr(batches, "fingerprint", None),
        },
        "tokenizer": {"fingerprint": None if tokenizer is None else tokenizer.fingerprint},
        # 唯一只警告的一栏；确定模式换的是算子，只差末几位
        "environment": {
            **describe_environment(device),
            "deterministic": config.deterministic or None,
            # 几个进程分着加，次序不同，只差末几位；一个进程的旧存档里没有这一项
            "processes": None if n_processes == 1 else n_processes,
        },
    }
    # ② 从 JSON 走一遭：元组变成列表，与存过再读的那份才可比
    plain: dict[str, Any] = json.loads(json.dumps(description))
    return plain


def describe_model(model: nn.Module) -> dict[str, Any]:
    """模型里影响结果而权重的形状看不出的东西：dropout、激活函数、LoRA 的 α……

    有配置的（GPT）逐个字段地记，差别说得出名字；没有的记整个结构的指纹
    """
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)  # 不认类名，只看有没有
    if callable(to_dict):
        described = dict(to_dict())  # 一个字段一项
    else:
        # repr 里写着每一层的类型与尺寸；说不出差在哪里，但看得出有差别
        # 切没切成几片不算差别：FSDP 给类名加了这个前缀
        described = {"structure": sha256(repr(model).replace("FSDP", "").encode()).hexdigest()}
    # 零件自己的配置（例如每个 LoRA 适配器的），相同的只记一次
    parts = {
        repr(part)
        for part in (getattr(m, "config", None) for m in model.modules())
        if is_dataclass(part) and part is not getattr(model, "config", None)
    }
    # 排好序：集合的次序每次启动都可能不同
    return {**described, "parts": sorted(parts)}


def describe_environment(device: torch.device) -> dict[str, Any]:
    """机器与版本：它们不同，浮点加法的次序就可能不同。

    约定：不写主机名与时间：它们变了，结果并不变
    """
    name = device.type
    if device.type == "cuda":
        name = f"cuda: {torch.cuda.get_device_name(device)}"  # 型号也算：不同的卡，算子的切法不同
    return {
        "device": name,
        "threads": torch.get_num_threads(),  # 求和怎样分段，取决于它
        "torch": torch.__version__,  # 算子的实现会换
        "python": platform.python_version(),
        "machine": platform.machine(),  # 指令集
    }


def batch_fingerprint(batch: Any) -> str:
    """一批的内容的 SHA-256：其中每个张量的形状、类型与全部数值。

    什么样的批都行：张量、字典、列表、dataclass；不是张量的东西（编号、说明）不算
    约定：差一个数值、一个形状或一种类型，指纹就不同；在哪个设备上则不要紧
    """
    digest = sha256()
    for tensor in _tensors_in(batch):
        # 形状与类型也要算进去：同样的字节可以是 (2, 8)，也可以是 (4, 4)
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(
            # 看作字节：bfloat16 在 numpy 里没有对应的类型
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """一层层打开，按固定的次序取出所有的张量。"""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):  # 字典按放入的次序
        for key in value:
            yield from _tensors_in(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
    elif hasattr(value, "__dict__"):  # dataclass 与一般的对象
        yield from _tensors_in(vars(value))


def compare_runs(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """比较两份描述 → (要拒绝的差别, 只警告的差别)，每条写明名字与新旧值。

    例："config.learning_rate: 0.001 in the checkpoint, 0.0003 now"
    约定：以 now 的栏为准；旧存档里没有的栏，凡有值的项都算差别，不会悄悄放过
    """
    refused: list[str] = []  # 算术会变的
    warned: list[str] = []  # 只变末几位的
    for section in now:
        before, after = saved.get(section, {}), now[section]
        # 两边的键都要看：少了一项也是差别
        for key in {**before, **after}:
            old, new = before.get(key), after.get(key)
            if old != new:  # JSON 走过一遭，直接比就行
                note = f"{section}.{key}: {_short(old)} in the checkpoint, {_short(new)} now"
                (warned if section in WARNED else refused).append(note)
    return refused, warned


def _short(value: Any) -> str:
    """指纹太长，给人看前十二位就够了。"""
    text = repr(value)  # 字符串带引号，与数分得清
    return f"{text[:13]}…'" if isinstance(value, str) and len(value) == 64 else text


def demo() -> None:
    """同一次训练描述两遍相同；改学习率、换种子、换线程数，各自怎样说。"""
    model = nn.Linear(4, 4)
    cpu = torch.device("cpu")  # 换了设备就是另一种差别

    def batches(seed: int) -> Callable[[int], Tensor]:
        # 编号的纯函数：种子由 seed 与 index 定，取几遍都一样
        return lambda index: torch.randint(
            100, (2, 4), generator=torch.Generator().manual_seed(1000 * seed + index)
        )

    def describe(config: TrainConfig, seed: int = 0) -> dict[str, Any]:
        return describe_run(
            config, model, cpu, "fp32", tokenizer=None, batches=batches(seed), batch_index=41
        )

    config = TrainConfig(steps=500)
    saved = describe(config)  # 就当它是从存档里读出来的
    print("① 描述的五栏，各有几项")
    print("   " + "，".join(f"{section} {len(values)}" for section, values in saved.items()))

    print("② 与它比，哪些拒绝、哪些只警告")
    other_threads = {**saved, "environment": {**saved["environment"], "threads": 64}}
    cases = {  # 只改一处，看得出各归哪一类
        "什么都没变　　": describe(config),  # 重新算一遍
        "明写默认的预热": describe(config.replace(warmup_steps=50)),  # 说法不同
        "改学习率　　　": describe(config.replace(learning_rate=1e-3)),
        "多练一百步　　": describe(config.replace(steps=600)),
        "换数据的种子　": describe(config, seed=1),
        "评估得勤些　　": describe(config.replace(eval_every=7)),  # 只看不动
        "换了线程数　　": other_threads,
    }
    for what, now in cases.items():
        refused, warned = compare_runs(saved, now)  # 每次只变一样
        verdict = "拒绝" if refused else "警告" if warned else "可以"
        notes = "；".join([*refused, *warned]).replace(" in the checkpoint", "")
        print(f"   {what} {verdict}  {notes}")
    # 写法不同、意思相同的，不算差别；看与存的设置，随便改
    for what in ("什么都没变　　", "明写默认的预热", "评估得勤些　　"):
        assert compare_runs(saved, cases[what]) == ([], [])
    # 多练一百步，预热的步数与余弦的形状都跟着变，所以不只是「多走一段」
    assert len(compare_runs(saved, cases["多练一百步　　"])[0]) >= 1
    assert compare_runs(saved, cases["换数据的种子　"])[0][0].startswith("data.batch")
    assert compare_runs(saved, cases["换了线程数　　"])[0] == []


if __name__ == "__main__":
    run_demo(demo)
