r"""模型真的学会了，还是背下来了？——用它没见过的文字来量：留出集（held-out set）上的平均损失。

训练损失只说明模型记住了多少；留出的那一份从不参加训练，量出来的才是「见到新东西时猜得多准」。

$$L_{\text{val}} = \frac{\sum_b S_b}{\sum_b n_b}, \qquad
  \text{bits per byte} = \frac{L_{\text{val}}}{\ln 2 \cdot \text{bytes per token}}$$

    训练损失  ╲___                    两条线一起降：还在学
    验证损失  ╲_____╱                 训练的还降、验证的回升：开始背书了（overfitting）
                   └ 该停在这里：提前停（early stop）与「最好的存档」都看它

三件容易做错的事：
    关掉 dropout         评估时不该随机丢东西：model.eval()，量完再换回来  # 关掉 dropout
    不动训练的随机数     否则「隔多少步评估一次」就会改变权重；放在 kept_random_state() 里做
    按题数平均           最后一批往往不满；先求各批的平均再平均，那几道题就重了许多

为什么换算成每字节比特：词元越长越难猜，损失就越高，可它也代表了更多的文字。
按字节算，字符级与 BPE 的模型才能放在一起比；它也就是「用这个模型压缩，每字节要几个比特」。

论文：语言模型即压缩 — Shannon, *Prediction and Entropy of Printed English*, 1951。

改哪里：量别的（准确率、困惑度）→ 另写一个同样签名的函数；
        整篇文章滑动着量 → evaluation/perplexity.py。
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foundation.demonstration import run_demo
from foundation.devices import autocast_context
from training.accumulation import LossFunction
from training.hook_base import bits_per_byte
from training.random_state import kept_random_state
from training.train_step import fetch

__all__ = ["HeldOutLoss", "held_out_loss"]


class HeldOutLoss(NamedTuple):
    """每道题的平均损失，与一共几道题。"""

    loss: float  # 自然对数，每道题的平均；困惑度是它的指数
    n_targets: int  # 题数：数字有多可信，看它


@torch.no_grad()
def held_out_loss(
    model: nn.Module,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    *,
    device: torch.device,
    precision: str = "fp32",
    limit: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> HeldOutLoss | None:
    """把 batches 走一遍（至多 limit 批），返回平均损失；半路 should_stop() 为真就放弃，返回 None。

    公式：L = Σ S_b / Σ n_b；不是各批平均的平均
    类型：损失在设备上求和，取回之后用 Python 的双精度浮点数相加
    约定：model 出来时还在原来的模式（训练或评估），随机数也在原处，出了错也一样
    错误：一道题也没有 → ValueError

    为什么是 no_grad 而不是 inference_mode：后者里建的张量不能再求导，若模型趁评估时建了
    缓存（例如更长的旋转表），回去训练就会出错
    """
    was_training = model.training  # 调用者也许本来就在评估
    losses: list[Tensor] = []  # 每批一个标量，还在设备上
    counts: list[Tensor | int] = []  # 与 losses 一一对应
    model.eval()  # 对照的也不能丢
    try:
        with kept_random_state():
            for batch in islice(batches, limit):  # limit 为 None 就走完
                if should_stop():  # 留出集可能很大，等不到走完
                    return None  # 半份数据的平均不可比，宁可没有
                batch = batch.to(device)
                # 与训练同样的精度：两条曲线才能放在一起看
                with autocast_context(precision, device):
                    loss, n_targets = loss_fn(model, batch)
                # 先攒着，最后一次取回：逐批地取，GPU 每批都要停一下
                losses.append(loss)
                counts.append(n_targets)
    finally:
        # 出了错也要换回来，否则接着训练就没有 dropout 了
        model.train(was_training)
    sums, numbers, _ = fetch(losses, counts, None)
    total = sum(numbers)  # 全部题数，当分母
    if not total:
        raise ValueError("the held-out batches have no targets: nothing to evaluate on")
    # fsum 用足够的位数加：几千批的舍入误差不该积起来
    return HeldOutLoss(math.fsum(sums) / total, int(total))


def demo() -> None:
    """满批与半批：按题数平均才对；评估既不受 dropout 影响，也不影响 dropout。"""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 8), nn.Dropout(0.5), nn.Linear(8, 5))  # dropout 故意很大
    ids = torch.randint(5, (11,))
    pieces = [torch.arange(0, 8), torch.arange(8, 10)]  # 一批八道题，一批只有两道

    def loss_fn(model: nn.Module, places: Tensor) -> tuple[Tensor, int]:
        logits = model(ids[places])
        loss = nn.functional.cross_entropy(logits, ids[places + 1], reduction="sum")
        return loss, len(places)

    cpu = torch.device("cpu")
    found = held_out_loss(model, loss_fn, pieces, device=cpu)
    assert found is not None
    model.eval()
    with torch.no_grad():
        each = [loss_fn(model, piece)[0].item() / len(piece) for piece in pieces]
        whole = loss_fn(model, torch.arange(10))[0].item() / 10  # 不分批
    model.train()
    print("① 十道题分成 8 与 2 两批")
    print(f"   按题数平均 {found.loss:.4f}，一次算完 {whole:.4f}，平均的平均 {sum(each) / 2:.4f}")
    assert abs(found.loss - whole) < 1e-6  # 只差舍入
    assert abs(sum(each) / 2 - whole) > 1e-3  # 差的是做法，不是舍入

    print("② 评估两次，中间照样训练：数字不变，训练的随机数也不变")
    state = torch.get_rng_state()
    again = held_out_loss(model, loss_fn, pieces, device=cpu)
    assert again == found
    assert torch.equal(torch.get_rng_state(), state)  # 不影响以后的 dropout
    assert model.training
    print(f"   两次都是 {found.loss:.4f}；随机数还在原处，模型也换回了训练模式")

    print("③ 换算：同样的损失，词元越长，每字节的比特越少")
    for bytes_per_token in (1.0, 2.0, 4.0):
        bits = bits_per_byte(found.loss, bytes_per_token)
        print(f"   每词元 {bytes_per_token:.0f} 字节 → 每字节 {bits:.3f} 比特")


if __name__ == "__main__":
    run_demo(demo)
