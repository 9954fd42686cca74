r"""训练到一半停电，怎样从断掉的地方一个比特也不差地接着训？

要接得上，光有权重不够。下一步会用到的一切都得存：

    权重               model.safetensors       与 config.json 等一起，是一个完整的模型目录，
                                               可以直接拿来生成
    优化器的 m 与 v    optimizer.safetensors   丢了它们，Adam 要重新估几十步，损失会跳一下
    随机数             random.safetensors      丢了它，dropout 抽到的位置就变了
    走到第几步、最好的验证损失、连着跳过了几步、配置
                       trainer.json            学习率与数据的次序只取决于步数，不必另存

一条等式说明什么叫「接得上」；右边是存了 100 步、关机、读回、再走 100 步：

$$\text{train}_{200}(\theta_0) \;=\; \text{train}_{100}\big(\text{load}(\text{save}(
  \text{train}_{100}(\theta_0)))\big) \qquad\text{逐比特相等}$$

存的次序（每一步都可能断电，所以哪一步断都不能留下一个「看起来像存档」的半成品）：

    写在旁边 step-000200.tmp-3f2a/ → 逐个刷到磁盘 → 最后写清单 → 改名 → 核对 → 才删旧的

只有一部分参数要训练时（LoRA），只存那一部分，叫 trainable.safetensors：底座没有变，
用不着每次存一遍；续训时先照原样载入底座，再放回这一部分。

没有 pickle：张量是 safetensors，其余是 JSON，读它们不会执行任何代码。优化器的状态按参数的
**名字**存，而不按序号：模型里多一层少一层，序号就全错位了，名字不会。

论文：可重现地续训 — Biderman et al., *Pythia*, arXiv:2304.01373；先写旁边再改名 — Pillai et al.,
      *All File Systems Are Not Created Equal*, OSDI 2014。

改哪里：多存一样东西 → _write_files 与 load_checkpoint 成对地改，或在钩子里写 write_files；
        列表、最新、最好、删旧 → checkpoint_list.py；随机数 → random_state.py。
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from foundation.demonstration import run_demo
from foundation.files import atomic_directory, write_json
from gpt_model.model import GPT
from gpt_model.model_directory import WEIGHTS_FILE, read_weights, state_to_save, write_model_files
from tokenization.tokenizer import Tokenizer
from training.checkpoint_list import (
    CHECKPOINT_KIND,
    TRAINER_FILE,
    Checkpoint,
    best_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    remove_old_checkpoints,
    step_directory,
    verify_checkpoint,
)
from training.distributed import ALONE, Processes
from training.optimizer import build_optimizer
from training.random_state import everyones_random_state, set_own_random_state
from training.sharding import like, whole

__all__ = [
    "Checkpoint",
    "best_checkpoint",
    "latest_checkpoint",
    "list_checkpoints",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
]

TRAINABLE_FILE = "trainable.safetensors"  # 冻结了一部分时，只存要训练的
OPTIMIZER_FILE = "optimizer.safetensors"  # 「参数名/状态名」→ 张量
RANDOM_FILE = "random.safetensors"  # 见 random_state.py


# ── 存 ──────────────────────────────────────────────────────────────────────────────


def save_checkpoint(
    run_dir: Path | str,
    step: int,
    model: nn.Module,
    optimizer: Optimizer,
    progress: Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None = None,
    val_loss: float | None = None,
    keep_last: int = 2,
    write_more: Callable[[Path], None] | None = None,
    processes: Processes = ALONE,
) -> Path:
    """把第 step 步之后的一切存成 run_dir/step-000200/，核对，再清掉多余的旧存档。

    参数：progress 是 JSON 写得下的小东西，由训练循环决定；write_more 往同一个目录里再写些文件
    约定：返回之后，存档已在磁盘上，且读回来核对过；模型与优化器不变
    约定：几个进程一起调用，rank 0 写；切成几片的先凑齐，存下的与一个进程存的一样
    约定：val_loss 写进清单，找「最好的」只看它；没有量过就是 None，不参加比较
    错误：权重或优化器含 NaN → ValueError；磁盘满等 → OSError，说出最后一个好存档在哪里
    """
    run_dir = Path(run_dir)
    target, model = step_directory(run_dir, step), plain_model(model)  # 改名之后的样子
    weights = whole(trainable_state(model), keep=processes.is_main)  # 没有切的还在设备上
    moments = whole(optimizer_state(model, optimizer), keep=processes.is_main)
    generators = everyones_random_state(processes)
    facts = {"step": step, "val_loss": val_loss}  # 清单与 trainer.json 各写一份，互相作证

    def write() -> None:
        # ① 坏数不落盘：存下了，以后每次续训都从 NaN 开始
        _refuse_non_finite({**weights, **moments}, target)
        # ② 先写在旁边；任何一处出错，旁边的被删掉，已有的存档都还在
        with atomic_directory(target, kind=CHECKPOINT_KIND, extra=facts) as temporary:
            _write_weights(temporary, model, weights, tokenizer)
            save_file(moments, temporary / OPTIMIZER_FILE)  # m、v
            save_file(generators, temporary / RANDOM_FILE)
            # facts 放在后面：progress 里若有同名的，以真正存的这一步为准
            write_json(temporary / TRAINER_FILE, {**progress, **facts})
            if write_more is not None:
                write_more(temporary)  # 钩子的，同样受清单担保
        # ③ 从磁盘读回来核对过，才敢删旧的
        verify_checkpoint(target)
        remove_old_checkpoints(run_dir, keep_last)

    try:
        processes.on_main(write)
    except (OSError, RuntimeError, SafetensorError) as error:  # 磁盘满的三种说法
        # torch 与 safetensors 在磁盘满时抛的不是 OSError；统一成一句说得清的话
        others = [found for found in list_checkpoints(run_dir) if found.directory != target]
        kept = f"the last good one is {others[-1].directory}" if others else "there is no other one"
        raise OSError(
            f"could not save the checkpoint {target}: {error}; {kept}. "
            "Free some space or choose another directory, then resume"
        ) from error
    return target


def plain_model(model: nn.Module) -> nn.Module:
    """脱掉 torch.compile 与多卡的外壳：存下的名字不该带着它们的前缀。

    约定：里外是同一批参数，只是名字不同；没有外壳就原样返回
    为什么：编译着练的存档，不编译也要放得回，反过来也一样
    """
    for shell in ("_orig_mod", "module"):
        inner = getattr(model, shell, None)
        if isinstance(inner, nn.Module):
            model = inner
    return model


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """要存的张量：全部状态，去掉冻结的参数；共用同一块内存的只留第一个名字。

    buffer（例如 BatchNorm 的均值）不求梯度，但训练会改它，所以也要存
    约定：不改模型，也不复制（不连续的张量除外）；要长久留着的人自己复制
    """
    frozen = {  # 续训时由载入底座还原
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)  # 每个别名都要查到
        if not parameter.requires_grad
    }
    return {name: value for name, value in state_to_save(model).items() if name not in frozen}


def optimizer_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """优化器的状态：「参数名/状态名」→ 张量，例如 blocks.0.….weight/exp_avg。

    形状：m、v 与参数同形；step 是标量。各组的设置不存：它们由配置决定，续训时另行比对
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # 对象 → 名字
    tensors = {}
    for parameter, values in optimizer.state.items():  # 没有过梯度的不在里面
        for key, value in values.items():
            # 只认张量；将来的优化器若存了别的，宁可当场发现，也不要悄悄丢掉
            if not isinstance(value, Tensor):
                raise ValueError(f"the optimizer's state {key!r} is not a tensor: {value!r}")
            tensors[f"{names[id(parameter)]}/{key}"] = value.detach().contiguous()
    return tensors


def _refuse_non_finite(tensors: Mapping[str, Tensor], target: Path) -> None:
    """有一个 NaN 或无穷大就整个不存，并说出是哪一个。

    为什么 m、v 也要看：权重还好而 m、v 里已有 NaN，接着练，下一步权重就坏
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(
                f"{name} holds NaN or infinite values; {target.name} is not saved, "
                "the checkpoints before it are kept. Lower the learning rate and resume"
            )


def _write_weights(
    directory: Path, model: nn.Module, weights: dict[str, Tensor], tokenizer: Tokenizer | None
) -> None:
    """权重的三种写法：整个 GPT、整个别的模块、只有要训练的一部分。

    约定：只有整个 GPT 的存档同时是模型目录，可以直接载入；另两种要先建好模型
    """
    if any(not parameter.requires_grad for parameter in model.parameters()):
        save_file(weights, directory / TRAINABLE_FILE)  # LoRA：底座不变
    elif isinstance(model, GPT):
        # 模型目录的文件；清单由 atomic_directory 最后写，把这里所有的文件一并记下
        write_model_files(model, directory, tokenizer, weights)
    else:
        save_file(weights, directory / WEIGHTS_FILE)  # 没有 config.json 可写


# ── 读 ──────────────────────────────────────────────────────────────────────────────


def load_checkpoint(
    directory: Path, model: nn.Module, optimizer: Optimizer, processes: Processes = ALONE
) -> dict[str, Any]:
    """把存档放回已经建好的模型与优化器，恢复随机数，返回当时的 progress。

    错误：损坏、名字或形状对不上 → ValueError，写明文件与差别；此时模型与优化器都还没有动
    约定：model 与 optimizer 要先照原来的样子建好；这里只填数，不造结构
    约定：设备可以与存的时候不同，张量会搬到参数所在的地方
    """
    progress = verify_checkpoint(directory)  # 每个文件都读一遍
    # ① 全部读出来、核对好，再动手：读到一半才发现不符，会留下半新半旧的模型
    model = plain_model(model)
    # _fitting_ 开头的只读不写：要抛错，都在动手之前抛
    weights = _fitting_weights(directory, model)
    packed = _fitting_optimizer_state(directory / OPTIMIZER_FILE, model, optimizer)
    # ② 库的 load_state_dict 负责搬到参数所在的设备
    _write_into(model, weights)  # 就地，共用的矩阵不会被拆开
    optimizer.load_state_dict(packed)
    # ③ 随机数最后放回：前面若抽过，也不会打乱
    set_own_random_state(read_weights(directory / RANDOM_FILE), processes)
    return progress


def load_weights(directory: Path, model: nn.Module) -> None:
    """只放回权重，就地写入；练完之后取回最好的一个时用它。

    错误：缺少、多出、形状不符 → ValueError，一次列全，模型不动
    约定：优化器与随机数不动，所以不能用它来续训
    """
    verify_checkpoint(directory)
    model = plain_model(model)
    _write_into(model, _fitting_weights(directory, model))


@torch.no_grad()
def _write_into(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """把张量写进模型。trainable_state 给出的与模型共用内存，写进它就是写进模型。

    为什么不整个换上：优化器认的是原来的参数；共用的矩阵换上后也会被拆成两份
    """
    for name, tensor in trainable_state(model).items():
        tensor.copy_(like(weights[name], tensor))  # 切成几片的，只写自己的一片


def _fitting_weights(directory: Path, model: nn.Module) -> dict[str, Tensor]:
    """读权重，并与模型逐个对上名字与形状；不对就一次列全，免得改一个错一个。

    形状：每个名字的形状都要相同，哪怕能广播：(1,) 写进 (D,) 不会报错，却已不是原来的权重
    错误：少了、多了、形状不符 → ValueError，写明文件与各处差别
    """
    path = directory / TRAINABLE_FILE  # 先看是不是只存了一部分
    if not path.is_file():
        path = directory / WEIGHTS_FILE
    saved, expected = read_weights(path), trainable_state(model)
    problems = [f"missing {name}" for name in expected if name not in saved]  # 模型有、文件没有
    problems += [f"unexpected {name}" for name in saved if name not in expected]  # 反过来
    problems += [
        f"{name} has shape {tuple(saved[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    if problems:
        listed = "; ".join(problems[:6]) + (f"; … {len(problems)} in all" if problems[6:] else "")
        raise ValueError(f"{path} was saved from another model: {listed}")
    return saved


def _fitting_optimizer_state(path: Path, model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """按名字的张量 → 库要的「序号 → {状态名: 张量}」。

    从来没有过梯度的参数没有状态，所以不要求个个都有；多出来的、形状不符的则不收
    公式：序号 = 参数在各组里从头数起的位置；它随分组而变，所以只在内存里用
    形状：m、v 与参数同形
    错误：名字不认识、形状不符 → ValueError，写明是哪一个
    """
    parameters = {id(p): (name, tuple(p.shape)) for name, p in model.named_parameters()}
    order = [parameters[id(p)] for group in optimizer.param_groups for p in group["params"]]
    known = {name: (index, shape) for index, (name, shape) in enumerate(order)}
    live = [p for group in optimizer.param_groups for p in group["params"]]  # 同样的次序
    state: dict[int, dict[str, Tensor]] = {}  # 库要的样子
    for key, tensor in read_weights(path).items():
        name, _, part = key.rpartition("/")  # 参数名里只有点
        # 标量（走过的步数）没有形状可比
        index, shape = known.get(name, (-1, None))
        if shape is None or (tensor.ndim > 0 and tuple(tensor.shape) != shape):
            raise ValueError(
                f"{path} does not fit this run: it holds {key} {tuple(tensor.shape)}, "
                f"the optimizer's parameter is {shape or 'not there'}"
            )
        # clone：读出来的张量还映射着文件，Windows 上会使旧存档删不掉
        state.setdefault(index, {})[part] = like(tensor.clone(), live[index])
    # 各组的设置用现在的：与存下的是否相同，由配置的比对负责
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


# ── 演示 ────────────────────────────────────────────────────────────────────────────


def demo() -> None:
    """带 dropout 的小网络：连走六步，与「三步、存、读、再三步」逐比特对照；少放回一样会怎样。"""

    def fresh() -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(0)  # 每次同一个起点
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1))  # 用得着随机数
        return model, build_optimizer(model, learning_rate=0.01)

    def walk(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            inputs = torch.linspace(-1, 1, 32).view(4, 8) * step  # 数据只取决于步数
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

    def difference(one: nn.Module, other: nn.Module) -> float:
        pairs = zip(one.parameters(), other.parameters(), strict=True)  # 同一种结构
        return max(float((a - b).detach().abs().max()) for a, b in pairs)  # 最大的差

    straight, optimizer = fresh()
    walk(straight, optimizer, range(6))  # 没停过的
    with tempfile.TemporaryDirectory() as folder:
        model, optimizer = fresh()  # 与没停过的同一个起点
        walk(model, optimizer, range(3))  # 停在一半
        saved = save_checkpoint(folder, 3, model, optimizer, {"lesson": "checkpoint"}, val_loss=0.5)
        print("① 一个存档里的文件")
        for file in sorted(saved.iterdir()):
            print(f"   {file.name:<22} {file.stat().st_size:>6,} 字节")

        print("② 三步、存、关机、读、再三步；与连走六步比，权重最多差多少")
        for forgotten in ("", "random", "optimizer"):
            resumed, optimizer = fresh()  # 像是新开的进程
            torch.manual_seed(999)  # 关机之后，随机数早已不在原处
            progress = load_checkpoint(saved, resumed, optimizer)
            if forgotten == "random":  # 以为存了权重就够
                torch.manual_seed(999)
            if forgotten == "optimizer":
                optimizer = build_optimizer(resumed, learning_rate=0.01)
            walk(resumed, optimizer, range(progress["step"], 6))
            gap = difference(straight, resumed)
            what = {"": "全部放回", "random": "忘了随机数", "optimizer": "忘了优化器"}[forgotten]
            print(f"   {what:　<6} {gap:.1e}")
            assert (gap == 0) == (forgotten == "")  # 恰好为 0，缺一样就不是

        print("③ 放进另一个模型：说出差别，什么也不动")
        other = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        try:
            load_checkpoint(saved, other, build_optimizer(other))
        except ValueError as error:
            print(f"   {str(error).replace(folder, '…')}")
        else:
            raise AssertionError("another model's checkpoint must be refused")


if __name__ == "__main__":
    run_demo(demo)
