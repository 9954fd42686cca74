r"""模型错得有多离谱？交叉熵（cross-entropy）：看它给正确答案留了多少概率。

    loss_t = −log p(正确的下一个词元 | 前文) = −log softmax(logits_t)[target_t]
    loss   = (1/n) Σ_t loss_t，n 是有标签的位置数

几把尺子，量的是同一件事：

    瞎猜     loss = log V                  V 个词一样可能；刚初始化的模型就该在这里
    困惑度   perplexity = exp(loss)        「相当于在几个词里随便挑」
    每字节比特  bpb = loss / ln 2 · (词元数 / 字节数)   换了分词器也能比较，见 training/

标签从哪来：文本自己。第 t 个位置看到 x_≤t，要猜 x_{t+1}，所以标签就是输入左移一位：

    输入  白 日 依 山
    标签  日 依 山 尽

不想计入的位置（填充、对话里用户说的话）标签写成 ignore_index，它既不进分子也不进分母。

论文：Shannon 1948（熵的来历）；Bengio et al. 2003（神经语言模型）。

改哪里：标签平滑（label smoothing）、z-loss → language_modeling_loss；
       每个词元不同的权重 → 用 reduction="none" 自己加权。
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from foundation.checks import check_choice
from foundation.demonstration import run_demo

__all__ = ["language_modeling_loss"]

REDUCTIONS = ("mean", "sum", "none")


def language_modeling_loss(
    logits: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """交叉熵：正确的下一个词得到的概率越高，损失越小。

    公式：loss_t = logsumexp(logits_t) − logits_t[target_t]；target = ignore_index 的位置不算
    形状：logits (B, T, V)，targets (B, T) → 标量；reduction="none" → (B, T)，不算处为 0
    类型：一律在 float32 中计算：bf16 只有 8 个有效二进制位，几万项相加早就不准了
    错误：reduction 不认识 → ValueError
    """
    check_choice("reduction", reduction, REDUCTIONS)
    # ① 摊平成一长串「V 选一」的题：位置之间早已由注意力交流过，打分时互不相干
    flat = logits.flatten(0, 1).float()  # (B·T, V)
    # ② 库函数把 log-softmax 与取数合成一步，不会先算出溢出的 exp
    loss = F.cross_entropy(flat, targets.flatten(), ignore_index=ignore_index, reduction=reduction)
    return loss.view(targets.shape) if reduction == "none" else loss


def written_out_loss(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """同一个平均损失，逐步写出来；它是上面那个函数的对照。

    公式：减去最大值再取指数，和不变而不溢出：log Σ exp z = m + log Σ exp(z − m)
    形状：logits (B, T, V)，targets (B, T) → 标量
    """
    z = logits.float()  # (B, T, V)
    largest = z.amax(dim=-1, keepdim=True)  # (B, T, 1)
    log_total = largest + (z - largest).exp().sum(dim=-1, keepdim=True).log()  # (B, T, 1)
    log_probability = z - log_total  # (B, T, V)
    counted = targets != ignore_index  # (B, T)
    picked = log_probability.gather(-1, targets.clamp(min=0)[..., None])[..., 0]  # (B, T)
    # 分母是有标签的位置数，不是 B·T：否则填充越多，损失看起来越小
    return -(picked * counted).sum() / counted.sum()


def demo() -> None:
    """五个词的语言，手算一遍，再看瞎猜、自信地对、自信地错。"""
    words = ["白", "日", "依", "山", "尽"]
    ids = torch.tensor([[0, 1, 2, 3, 4]])
    inputs, targets = ids[:, :-1], ids[:, 1:]  # (1, 4)
    print("输入 " + " ".join(words[i] for i in inputs[0]))
    print("标签 " + " ".join(words[i] for i in targets[0]) + "   ← 输入左移一位\n")

    uniform = torch.zeros(1, 4, 5)  # 五个词一样可能
    right = F.one_hot(targets, 5) * 4.0  # 给正确的词多 4 分
    wrong = F.one_hot(inputs, 5) * 4.0  # 给上一个词多 4 分，猜的全是错的
    print("              损失    困惑度   给正确词的概率")
    for name, logits in (("均匀瞎猜", uniform), ("自信地对", right), ("自信地错", wrong)):
        loss = language_modeling_loss(logits, targets)
        assert torch.allclose(loss, written_out_loss(logits, targets))
        print(f"  {name}   {loss:6.3f}   {loss.exp():7.2f}   {(-loss).exp():.3f}")
    guess = language_modeling_loss(uniform, targets).item()
    assert abs(guess - math.log(5)) < 1e-6
    assert language_modeling_loss(right, targets) < guess < language_modeling_loss(wrong, targets)
    print(f"  log 5 = {math.log(5):.3f}，正是瞎猜的损失；自信地错比瞎猜更糟\n")

    masked = targets.clone()
    masked[0, :2] = -100
    each = language_modeling_loss(right, masked, reduction="none")
    print(f"前两个位置不计：逐位置损失 {[round(value, 3) for value in each[0].tolist()]}")
    assert torch.allclose(language_modeling_loss(right, masked), each.sum() / 2)


if __name__ == "__main__":
    run_demo(demo)
