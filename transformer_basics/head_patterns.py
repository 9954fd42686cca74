r"""训练之后，每个头在看哪里？——把注意力图（attention map）练出来、画出来。

随机的权重画不出花样，所以先出一道小题，逼两个头分工：读一串随机符号，第 t 个位置要报出
它前面第 1 个、第 3 个符号各是什么，

$$\mathcal{L} = -\log p\,(s_{t-1} \mid s_{\le t}) - \log p\,(s_{t-3} \mid s_{\le t})$$

    符号 s (B, T) ─► 嵌入 (B, T, D) ─► 注意力（两个头，RoPE）─► 读出 (B, T, 2, V) ─► 损失

题目里的三处用心，缺一处就看不到分工：
  · 符号是随机的，所以猜不出来，只能去看；
  · 每步换新的串，所以背不下来；
  · 符号的种数比维数多，所以一个头没法把两个答案叠在一起带走，两个头只好各管一个。

几百步之后，注意力图从一片灰变成两条斜线：一条在对角线下 1 格，一条在下 3 格。
真的语言模型里也长着这样的「前一词头」（previous-token head）：它是「见过 A B，再见 A 就猜 B」
这种归纳头（induction head）的零件，而后者是上下文学习的来源之一。

论文：Olsson 等 2022《In-context Learning and Induction Heads》(arXiv:2209.11895)；
     Clark 等 2019《What Does BERT Look At?》(arXiv:1906.04341)

改哪里：
  · 想让头看别的距离——OFFSETS；几个距离就有几个头（维数 DIM 要除得尽，每头是偶数维）。
  · 想看分工变得含糊——把 N_SYMBOLS 改到比 DIM 小：一个头带得下两个答案，就不必分得那么清。
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foundation.demonstration import new_figure, run_demo, save_figure
from transformer_basics.attention import CausalSelfAttention
from transformer_basics.rotary import RotaryEmbedding

__all__ = ["LookBack", "look_back_loss", "mean_weight_at", "train"]

N_SYMBOLS, DIM, LENGTH = 64, 32, 24
OFFSETS = (1, 3)


class LookBack(nn.Module):
    """嵌入、一层注意力、读出；头数等于要找的距离数。

    形状：ids (B, T) → 打分 (B, T, 距离数, 符号数)
    约定：没有残差也没有前馈，答案只能由注意力从别处搬来
    """

    def __init__(self, *, with_rotary: bool = True) -> None:
        super().__init__()
        n_heads = len(OFFSETS)
        rotary = RotaryEmbedding(DIM // n_heads) if with_rotary else None
        # 嵌入只说「是什么符号」；「在第几个」全靠 RoPE，不给它就没有
        self.embedding = nn.Embedding(N_SYMBOLS, DIM)
        self.attention = CausalSelfAttention(DIM, n_heads, rotary=rotary)
        self.readout = nn.Linear(DIM, N_SYMBOLS * n_heads)

    def forward(self, ids: Tensor) -> Tensor:
        """一次给出每个位置、每个距离的打分。"""
        batch, length = ids.shape
        scores: Tensor = self.readout(self.attention(self.embedding(ids)))  # (B, T, 2·V)
        return scores.view(batch, length, len(OFFSETS), N_SYMBOLS)  # (B, T, 2, V)

    def weights(self, ids: Tensor) -> Tensor:
        """看一眼注意力：(B, H, T, T)，不带梯度。"""
        return self.attention.attention_weights(self.embedding(ids)).detach()


def look_back_loss(scores: Tensor, ids: Tensor) -> Tensor:
    """各距离的交叉熵之和。

    公式：第 n 个距离 o 的答案是把 ids 右移 o 格：位置 t 对应 ids[t − o]
    约定：最前面几个位置没有那么远的前文，不算分
    """
    first = max(OFFSETS)
    losses = []
    for n, offset in enumerate(OFFSETS):
        answers = ids[:, first - offset : ids.shape[1] - offset]  # (B, T − first)
        # cross_entropy 要类别在第 1 维，所以换轴
        losses.append(F.cross_entropy(scores[:, first:, n].transpose(1, 2), answers))
    return torch.stack(losses).sum()


def train(model: LookBack, n_steps: int) -> None:
    """最朴素的训练循环：抽一批新串、算损失、求梯度、走一步。

    完整的循环（精度、裁剪、检查点……）在 training/ 里；这里只要让头学会看
    """
    # 学习率取得大：题目小，又没有别的层要照顾
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(n_steps):
        ids = torch.randint(N_SYMBOLS, (32, LENGTH))
        loss = look_back_loss(model(ids), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def mean_weight_at(weights: Tensor, offset: int) -> float:
    """平均把多少权重放在前面第 offset 个词元上。

    公式：mean_t A[t, t − offset]，即对角线下第 offset 条斜线的平均
    """
    return float(weights.diagonal(-offset, -2, -1).mean())


def demo() -> None:
    """训练之前、训练之后、去掉位置编码：同一道题，看三次。

    每行五个数，是一个头平均放在前面第 0、1、2、3、4 个词元上的权重
    """
    ids = torch.randint(N_SYMBOLS, (64, LENGTH))  # 不参加训练，只用来看
    losses, looks = {}, {}
    for title, n_steps, with_rotary in (
        ("训练之前", 0, True),
        ("训练之后", 250, True),
        ("训练之后，但没有位置编码", 250, False),
    ):
        # 三次都从同一个种子出发，差别只来自标题里说的那一处
        torch.manual_seed(0)
        model = LookBack(with_rotary=with_rotary)
        train(model, n_steps)
        with torch.no_grad():
            losses[title] = float(look_back_loss(model(ids), ids))
        # 每个头一行：放在前面第 0…4 个词元上的平均权重
        looks[title] = [
            [mean_weight_at(weights, offset) for offset in range(5)]
            for weights in model.weights(ids).unbind(dim=1)
        ]
        print(f"{title}：损失 {losses[title]:.3f}（瞎猜是 2·ln 64 = 8.318）")
        for h, shares in enumerate(looks[title]):
            print(f"   头 {h}：" + "  ".join(f"{share:.3f}" for share in shares))

    # 哪个头管哪个距离由初始值的偶然决定，所以比集合，不比次序。
    # 分工：两个头各认领一个距离，谁也没有被冷落
    trained = looks["训练之后"]
    favourites = {shares.index(max(shares)) for shares in trained}
    print(f"两个头最爱看的距离：{sorted(favourites)}，正是要找的 {list(OFFSETS)}")
    assert favourites == set(OFFSETS)
    assert min(max(shares) for shares in trained) > 0.7
    # 没有位置编码，词元只知道「在我前面」，不知道「前面第几个」，怎么练也认不准
    assert losses["训练之后"] < 0.5 < 3.0 < losses["训练之后，但没有位置编码"]


def plot(path: Path) -> None:
    """同一串符号上的注意力图：上排训练之前，下排训练之后。

    横轴是被看的键，纵轴是在看的查询；越亮，放的权重越多，每一行的和都是 1
    """
    # 种子写死在这里：同一条命令，永远画出同一张图
    torch.manual_seed(0)
    model = LookBack()
    ids = torch.randint(N_SYMBOLS, (1, LENGTH))
    # 同一个模型接着练，两排看的是同一串符号、同样的两个头
    figure, axes = new_figure(2, len(OFFSETS), size=(8.0, 7.6))
    for row, (title, n_steps) in enumerate((("before training", 0), ("after training", 250))):
        train(model, n_steps)
        for h, weights in enumerate(model.weights(ids)[0]):
            axis = axes[row][h]
            image = axis.imshow(weights, cmap="viridis", vmin=0.0, vmax=1.0)
            axis.set(title=f"head {h}, {title}", xlabel="key j", ylabel="query i")
    figure.colorbar(image, ax=axes, label="attention weight", shrink=0.6)
    save_figure(figure, path)


if __name__ == "__main__":
    run_demo(demo, plot)
