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

几个进程一起存（FSDP 把模型切开了）有两种写法，清单与改名都归 rank 0：

    凑齐    一个一个张量地凑到 rank 0，写成上面那样的文件；与一个进程存的一样
    分片    各写各的一片，model.safetensors 变成 model-shards/ 里的 W 个文件（sharded_files.py）

两种都认不出是几个进程存的：换了进程数照样接得上，也都可以直接拿来生成。

没有 pickle：张量是 safetensors，其余是 JSON，读它们不会执行任何代码。优化器的状态按参数的
**名字**存，而不按序号：模型里多一层少一层，序号就全错位了，名字不会。

哪一步存的、验证损失多少，写两处（清单与 trainer.json），互相作证：清单里每个文件都有 SHA-256，
清单自己却没有；两处说法不同，就是清单坏了。

常见疑问：
    存的时候训练停着吗？     停着。存一次要几秒到几分钟，隔多久存一次划算，见 restart.py。
    为什么不边练边存？       边存边改，存下的就不是任何一步的状态；另存一份副本又要一倍的内存。
    坏了一个存档怎么办？     续训时自动退回前一个，并说出坏的是哪个文件，见 checkpoint_list.py。
    清单为什么 rank 0 写？   它要读遍每一片来算 SHA-256；几台机器时，目录要在共享的磁盘上。

论文：可重现地续训 — Biderman et al., *Pythia*, arXiv:2304.01373；先写旁边再改名 — Pillai et al.,
      *All File Systems Are Not Created Equal*, OSDI 2014。

改哪里：多存一样东西 → save_checkpoint 与 load_checkpoint 成对地改，或在钩子里写 write_files；
        张量的名字与核对 → named_state.py；各进程写各的 → sharded_files.py；
        列表、最新、最好、删旧 → checkpoint_list.py；随机数 → random_state.py。
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from foundation.demonstration import run_demo
from foundation.files import atomic_directory, write_json
from gpt_model.model import GPT
from gpt_model.model_directory import WEIGHTS_FILE, read_weights, write_config_and_tokenizer
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
from training.named_state import (
    fitting_optimizer_state,
    fitting_weights,
    optimizer_state,
    plain_model,
    refuse_non_finite,
    trainable_state,
    write_into,
)
from training.optimizer import build_optimizer
from training.random_state import everyones_random_state, set_own_random_state
from training.sharded_files import TensorSource, write_tensors
from training.sharding import whole

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
    sharded: bool = False,
) -> Path:
    """把第 step 步之后的一切存成 run_dir/step-000200/，核对，再清掉多余的旧存档。

    参数：progress 是 JSON 写得下的小东西，由训练循环决定；write_more 往同一个目录里再写些文件
    约定：返回之后，存档已在磁盘上，且读回来核对过；模型与优化器不变
    约定：几个进程一起调用，rank 0 写，切成几片的先凑齐；sharded 则各写各的一片，谁也不凑齐
    约定：val_loss 写进清单，找「最好的」只看它；没有量过就是 None，不参加比较
    错误：权重或优化器含 NaN → ValueError；磁盘满等 → OSError，说出最后一个好存档在哪里
    """
    run_dir = Path(run_dir)
    # 名字里不带 torch.compile、DDP 的前缀
    target, model = step_directory(run_dir, step), plain_model(model)  # 改名之后的样子
    weights, moments = trainable_state(model), optimizer_state(model, optimizer)
    # 凑齐是集体的：别人也要调用，只是不留。没有切的原样还在设备上
    if not sharded:
        weights = whole(weights, keep=processes.is_main)
        moments = whole(moments, keep=processes.is_main)
    generators = everyones_random_state(processes)
    facts = {"step": step, "val_loss": val_loss}  # 清单与 trainer.json 各写一份，互相作证

    def write() -> None:
        # 这里面每一句都是集体的：一个进程失败，人人都从同一句出来，没有人干等
        with ExitStack() as stack:
            # ① 坏数不落盘：存下了，以后每次续训都从 NaN 开始
            processes.together(lambda: refuse_non_finite({**weights, **moments}, target.name))
            # ② 先写在旁边；任何一处出错，旁边的被删掉，已有的存档都还在
            beside = atomic_directory(target, kind=CHECKPOINT_KIND, extra=facts)
            # 名字里有随机的一段，由 rank 0 起；人人要写进同一个目录
            opened: list[Path] = []
            processes.on_main(lambda: opened.append(stack.enter_context(beside)))
            temporary = Path(processes.broadcast(str(*opened)))
            _write_weights(temporary, model, weights, tokenizer, processes, sharded)
            write_tensors(moments, temporary / OPTIMIZER_FILE, processes, sharded)
            # 随机数不大，人人的都在 rank 0 手里了
            write_tensors(generators, temporary / RANDOM_FILE, processes, sharded=False)

            def write_rest() -> None:
                # facts 放在后面：progress 里若有同名的，以真正存的这一步为准
                write_json(temporary / TRAINER_FILE, {**progress, **facts})
                if write_more is not None:
                    write_more(temporary)  # 钩子的，同样受清单担保
                # 人人都写完了，才轮到清单与改名：少一片的不会被当成存档
                stack.close()
                # ③ 从磁盘读回来核对过，才敢删旧的
                verify_checkpoint(target)
                remove_old_checkpoints(run_dir, keep_last)

            processes.on_main(write_rest)

    # 坏数的 ValueError 原样抛出：那不是磁盘的错
    try:
        write()
    except (OSError, RuntimeError, SafetensorError) as error:  # 磁盘满的三种说法
        raise _disk_error(run_dir, target, error) from error
    return target


def _disk_error(run_dir: Path, target: Path, error: Exception) -> OSError:
    """存不下时说的话：哪一个没存成、为什么、还剩哪一个可以接着练。

    为什么统一成 OSError：torch 与 safetensors 在磁盘满时抛的不是它，接的人要记三种
    """
    others = [found for found in list_checkpoints(run_dir) if found.directory != target]
    # 最先想知道的是：以前练的还在不在
    kept = f"the last good one is {others[-1].directory}" if others else "there is no other one"
    return OSError(
        f"could not save the checkpoint {target}: {error}; {kept}. "
        "Free some space or choose another directory, then resume"
    )


def _write_weights(
    directory: Path,
    model: nn.Module,
    weights: dict[str, Tensor],
    tokenizer: Tokenizer | None,
    processes: Processes,
    sharded: bool,
) -> None:
    """权重的三种写法：整个 GPT、整个别的模块、只有要训练的一部分。

    约定：只有整个 GPT 的存档同时是模型目录，可以直接载入；另两种要先建好模型
    约定：集体的
    """
    name = WEIGHTS_FILE  # 整个别的模块：没有 config.json 可写
    if any(not parameter.requires_grad for parameter in model.parameters()):
        # LoRA：底座不变，用不着每次存一遍
        name = TRAINABLE_FILE
    elif isinstance(model, GPT):
        # 模型目录的文件；清单由 atomic_directory 最后写，把这里所有的文件一并记下
        # 另起一个名字：类型检查知道它是 GPT，进了 lambda 也还知道
        gpt = model
        processes.on_main(lambda: write_config_and_tokenizer(gpt, directory, tokenizer))
    write_tensors(weights, directory / name, processes, sharded)


# ── 读 ──────────────────────────────────────────────────────────────────────────────


def load_checkpoint(
    directory: Path, model: nn.Module, optimizer: Optimizer, processes: Processes = ALONE
) -> dict[str, Any]:
    """把存档放回已经建好的模型与优化器，恢复随机数，返回当时的 progress。

    错误：损坏、名字或形状对不上 → ValueError，写明文件与差别；此时模型与优化器都还没有动
    约定：model 与 optimizer 要先照原来的样子建好；这里只填数，不造结构
    约定：设备可以与存的时候不同，张量会搬到参数所在的地方
    """
    # 每个文件都读一遍；几个进程时人人都核对，谁也不信谁
    progress = verify_checkpoint(directory)
    # ① 全部读出来、核对好，再动手：读到一半才发现不符，会留下半新半旧的模型
    model = plain_model(model)
    # fitting_ 开头的只读不写：要抛错，都在动手之前抛
    weights = fitting_weights(weights_in(directory), model)
    packed = fitting_optimizer_state(TensorSource(directory / OPTIMIZER_FILE), model, optimizer)
    # ② 库的 load_state_dict 负责搬到参数所在的设备
    # 就地写，共用的矩阵不会被拆开，优化器认的也还是原来的参数
    write_into(model, weights)
    optimizer.load_state_dict(packed)
    # ③ 随机数最后放回：前面若抽过，也不会打乱
    set_own_random_state(read_weights(directory / RANDOM_FILE), processes)
    return progress


def load_weights(directory: Path, model: nn.Module) -> None:
    """只放回权重，就地写入；练完之后取回最好的一个时用它。

    错误：缺少、多出、形状不符 → ValueError，一次列全，模型不动
    约定：优化器与随机数不动，所以不能用它来续训
    """
    # 练完之后也要核对：磁盘不因为练完了就可靠
    verify_checkpoint(directory)
    model = plain_model(model)
    write_into(model, fitting_weights(weights_in(directory), model))


def weights_in(directory: Path) -> TensorSource:
    """权重在哪个文件里：只存了一部分的（LoRA），或整个的。"""
    return TensorSource(directory / TRAINABLE_FILE, otherwise=directory / WEIGHTS_FILE)


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
    # 停过的：三步、存；后三步由下面的新进程走
    with tempfile.TemporaryDirectory() as folder:
        model, optimizer = fresh()  # 与没停过的同一个起点
        walk(model, optimizer, range(3))  # 停在一半
        saved = save_checkpoint(folder, 3, model, optimizer, {"lesson": "checkpoint"}, val_loss=0.5)
        # 没有 config.json：它不是 GPT，只有张量
        print("① 一个存档里的文件")
        for file in sorted(saved.iterdir()):
            print(f"   {file.name:<22} {file.stat().st_size:>6,} 字节")

        print("② 三步、存、关机、读、再三步；与连走六步比，权重最多差多少")
        # 三次都从同一个存档来，只差放回了什么
        for forgotten in ("", "random", "optimizer"):
            resumed, optimizer = fresh()  # 像是新开的进程
            torch.manual_seed(999)  # 关机之后，随机数早已不在原处
            progress = load_checkpoint(saved, resumed, optimizer)
            if forgotten == "random":  # 以为存了权重就够
                torch.manual_seed(999)
            if forgotten == "optimizer":
                optimizer = build_optimizer(resumed, learning_rate=0.01)
            walk(resumed, optimizer, range(progress["step"], 6))
            # 恰好为 0 才算接上，「很小」不算
            gap = difference(straight, resumed)
            what = {"": "全部放回", "random": "忘了随机数", "optimizer": "忘了优化器"}[forgotten]
            print(f"   {what:　<6} {gap:.1e}")
            assert (gap == 0) == (forgotten == "")  # 恰好为 0，缺一样就不是

        print("③ 放进另一个模型：说出差别，什么也不动")
        # 层数相同、宽度不同：名字都对得上，形状对不上
        other = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        try:
            load_checkpoint(saved, other, build_optimizer(other))
        except ValueError as error:
            print(f"   {str(error).replace(folder, '…')}")
        else:
            raise AssertionError("another model's checkpoint must be refused")


if __name__ == "__main__":
    run_demo(demo)
