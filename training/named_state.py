r"""存档里的每个数叫什么名字，放回时怎样知道没有放错？——按名字存，放回之前逐个对上。

模型与优化器在内存里是两种样子，在磁盘上都变成「名字 → 张量」：

    模型      blocks.0.attention.q_proj.weight                     (D, D)
    优化器    blocks.0.attention.q_proj.weight/exp_avg             (D, D)   m
              blocks.0.attention.q_proj.weight/exp_avg_sq          (D, D)   v
              blocks.0.attention.q_proj.weight/step                ()       走过几步

库的优化器按**序号**认参数：模型里多一层少一层，序号就全错位，m 被放到别人头上也不会报错
（形状多半一样）。名字不会错位，所以存的是名字，放回时再换成序号：

$$\text{序号} = \text{参数在各组里从头数起的位置}, \qquad
  \text{state}[\text{序号}] \leftarrow \{k : T[\text{名字}/k]\}$$

放回分两步：先全部核对，再动手写。读到一半才发现不符，就会留下半新半旧的模型。

    缺一个、多一个、形状差一点 ──▶ 一次列全，什么也不动
    都对上                      ──▶ 就地写进去（共用的矩阵不会被拆开，切成几片的只写自己的一片）

要存的只有「下一步用得到、又推不出来」的：冻结的参数由载入底座还原，优化器各组的设置（学习率、
衰减）由配置决定，都不存。buffer（例如 BatchNorm 的均值）不求梯度，训练却会改它，要存。

常见疑问：
    为什么不用 torch 的 state_dict 直接存？ 优化器那一半是嵌套的字典、按序号，写不成 safetensors。
    参数共用一块内存怎么办（词向量与 lm_head）？ 只存第一个名字，放回时就地写，两边一起变。

    为什么放回之前不看 NaN？ 存的时候看过了（refuse_non_finite），之后有清单的 SHA-256 担保。
    形状相同、意思不同的放得进吗？ 放得进：dropout、激活函数换了，形状看不出来。
                                   那是「是不是同一次训练」的事，见 run_description.py。

论文：按名字存优化器的状态 — Zhao et al., *PyTorch FSDP*, arXiv:2304.11277 §4。

改哪里：哪些要存 → trainable_state；优化器多一种状态 → 张量的自动收下，见 optimizer_state。
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foundation.demonstration import run_demo
from gpt_model.model_directory import state_to_save
from training.sharded_files import TensorSource
from training.sharding import like, own_piece

__all__ = [
    "fitting_optimizer_state",
    "fitting_weights",
    "optimizer_state",
    "plain_model",
    "refuse_non_finite",
    "trainable_state",
    "write_into",
]


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


def refuse_non_finite(tensors: Mapping[str, Tensor], target: str) -> None:
    """有一个 NaN 或无穷大就整个不存，并说出是哪一个。

    为什么 m、v 也要看：权重还好而 m、v 里已有 NaN，接着练，下一步权重就坏
    """
    for name, tensor in tensors.items():
        tensor = own_piece(tensor)  # 切成几片的，各看各的
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(
                f"{name} holds NaN or infinite values; {target} is not saved, "
                "the checkpoints before it are kept. Lower the learning rate and resume"
            )


def fitting_weights(source: TensorSource, model: nn.Module) -> dict[str, Tensor]:
    """读权重，并与模型逐个对上名字与形状；不对就一次列全，免得改一个错一个。

    形状：每个名字的形状都要相同，哪怕能广播：(1,) 写进 (D,) 不会报错，却已不是原来的权重
    错误：少了、多了、形状不符 → ValueError，写明文件与各处差别
    """
    saved, expected = source.shapes, trainable_state(model)
    problems = [f"missing {name}" for name in expected if name not in saved]  # 模型有、文件没有
    problems += [f"unexpected {name}" for name in saved if name not in expected]  # 反过来
    problems += [
        f"{name} has shape {saved[name]}, the model has {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in saved and saved[name] != tuple(tensor.shape)
    ]
    if problems:
        listed = "; ".join(problems[:6]) + (f"; … {len(problems)} in all" if problems[6:] else "")
        raise ValueError(f"{source.path} was saved from another model: {listed}")
    return source.read(expected)


def fitting_optimizer_state(
    source: TensorSource, model: nn.Module, optimizer: Optimizer
) -> dict[str, Any]:
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
    # ① 核对：名字认得、形状相符；顺便记下每一个要照谁的切法读
    targets: dict[str, Tensor] = {}
    for key, saved in source.shapes.items():
        name, _, part = key.rpartition("/")  # 参数名里只有点
        # 标量（走过的步数）没有形状可比
        index, shape = known.get(name, (-1, None))
        if shape is None or (saved and saved != shape):
            raise ValueError(
                f"{source.path} does not fit this run: it holds {key} {saved}, "
                f"the optimizer's parameter is {shape or 'not there'}"
            )
        # 切法与参数相同：FSDP 的每个进程只读自己的几行
        # 切法与参数相同：FSDP 的每个进程只读自己的几行；步数是标量，不切
        targets[key] = live[index] if saved else torch.empty(())
    # ② 读，换成库要的样子：序号 → {状态名: 张量}
    state: dict[int, dict[str, Tensor]] = {}
    # 读完才动手：source.read 抛错时，优化器还是原来的
    for key, tensor in source.read(targets).items():
        name, _, part = key.rpartition("/")
        # 上面核对过了，名字一定认得
        index = known[name][0]
        # clone：读出来的张量还映射着文件，Windows 上会使旧存档删不掉
        state.setdefault(index, {})[part] = like(tensor.clone(), live[index])
    # 各组的设置用现在的：与存下的是否相同，由配置的比对负责
    return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


@torch.no_grad()
def write_into(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """把张量写进模型。trainable_state 给出的与模型共用内存，写进它就是写进模型。

    为什么不整个换上：优化器认的是原来的参数；共用的矩阵换上后也会被拆成两份
    """
    for name, tensor in trainable_state(model).items():
        tensor.copy_(like(weights[name], tensor))  # 切成几片的，只写自己的一片


def demo() -> None:
    """两层的小网络：存下的名字；换了结构的放不进；NaN 不落盘。"""
    import tempfile
    from pathlib import Path

    from training.distributed import ALONE
    from training.optimizer import build_optimizer
    from training.sharded_files import write_tensors

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    # 冻结第一层：像 LoRA 的底座
    model[0].requires_grad_(False)
    optimizer = build_optimizer(model, learning_rate=0.01)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()  # 走过一步，才有 m、v
    print("① 冻结了第一层，要存的只有第二层：")
    # 存档里是两个文件，这里放在一起看
    tensors = {**trainable_state(model), **optimizer_state(model, optimizer)}
    for name, tensor in tensors.items():
        print(f"   {name:<20} {tuple(tensor.shape)}")
    # 冻结的没有梯度，也就没有 m、v
    assert not any(name.startswith("0.") for name in tensors)
    assert torch.equal(tensors["1.weight/step"], torch.tensor(1.0))

    # 文件里是第二层的 weight 与 bias
    print("② 写下来，放进另一个结构：一次列全")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trainable.safetensors")
        write_tensors(trainable_state(model), path, ALONE, sharded=False)
        # 第二层宽了一个，也没有了偏置
        other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3, bias=False))
        # 冻结的那一层不在文件里，也就不比
        other[0].requires_grad_(False)
        try:
            fitting_weights(TensorSource(path), other)
        except ValueError as error:
            print(f"   {str(error).split('model: ')[1]}")
        else:
            raise AssertionError("another model's weights must be refused")

    print("③ 有一个 NaN：不存")
    # 权重还好，m 里已经坏了：接着练，下一步权重就坏
    moments = optimizer.state[next(model[1].parameters())]
    moments["exp_avg"][0, 0] = float("nan")
    try:
        refuse_non_finite(optimizer_state(model, optimizer), "step-000001")
    except ValueError as error:
        print(f"   {str(error).split(';')[0]}")
    else:
        raise AssertionError("NaN must not be saved")


if __name__ == "__main__":
    run_demo(demo)
