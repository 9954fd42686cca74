r"""模型给每个词元打了分，下一个词元选谁？——贪心、温度、top-k、top-p、min-p。

$$p_v = \frac{e^{z_v/\tau}}{\sum_u e^{z_u/\tau}}, \qquad v \in \text{留下的词元}$$

    分数 z (B, V)
      │ 偏置 → 重复惩罚 → 出现与次数惩罚     看说过什么，见 penalties.py
      │ ÷ 温度 τ                             整体变尖或变平，谁也不淘汰
      │ top-k → top-p → min-p                淘汰不像样的，记作 −∞
      ▼
    softmax → 抽一个 (B,)                    见 drawing.py；贪心则直接取最大

五种策略，一句话一种：
  · 贪心（greedy）         总取分数最高的；最稳，也最容易陷入循环
  · 温度（temperature）    τ < 1 保守，τ > 1 大胆，τ → 0 就是贪心
  · top-k                  只在最好的 k 个里抽；候选数固定，不管模型有没有把握
  · top-p（nucleus）       只在概率之和刚到 p 的最好几个里抽；有把握时少，没把握时多
  · 束搜索（beam search）  不抽，同时留几条路找总概率最高的一整句，见 beam_search.py
min-p 是后来者：门槛取「最好的那个的几分之几」，温度很高时也挡得住胡话。

为什么要淘汰？几万个词元各有一点点概率，加起来就不小；一百个词里抽中一个胡话，后文就跟着歪了。

次序是约定：惩罚依赖分数的零点，所以最先；淘汰看的是调过温度之后的概率，所以最后。
并列（ties）时一律先留编号小的：同样的分数，在任何机器上都得到同样的词。

从哪里开始试：
    想要稳妥          温度 0.7，top-p 0.9
    想要花样          温度 1.0 起，往上加；再加 min-p 挡住尾巴
    答案只有一个      贪心；翻译一类再试束搜索
    总在重复          重复惩罚 1.2；还不行，加次数惩罚
    胡言乱语          先看损失：采样只能挑，不能让没学会的模型变聪明

常见的错法：
    top-p 与 top-k 一起开到最严   后面的白开：前面已经淘汰完了
    先淘汰、后调温度              温度再高也没有新的候选，等于没调
    拿淘汰之后的概率当模型的概率  比较两个模型时要用原样的（见 continuation.py）

论文：Fan 等 2018 top-k (arXiv:1805.04833)；Holtzman 等 2020 top-p (arXiv:1904.09751)；
     Nguyen 等 2024 min-p (arXiv:2407.01082)。

改哪里：加一种策略 → 照 TopK 写一个小类，在 SamplingParams 里加字段与检查，
       在 processors() 里给它排次序；抽法 → drawing.py；束搜索 → beam_search.py。
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foundation.checks import check_float, check_int
from foundation.demonstration import new_figure, run_demo, save_figure
from inference.drawing import check_scores, draw
from inference.parameter_checks import check_parameters
from inference.penalties import (
    FrequencyPenalty,
    History,
    LogitBias,
    LogitsProcessor,
    RepetitionPenalty,
)
from inference.random_stream import RowRandom

__all__ = ["MinP", "SamplingParams", "Temperature", "TopK", "TopP", "best_tokens", "sample_next"]

LOWEST = torch.finfo(torch.float32).min
GREEDY_BELOW = torch.finfo(torch.float32).tiny  # 比这还小的温度，除法只会得到 0/0


def keep_best(logits: Tensor, border: Tensor, count: Tensor | int) -> Tensor:
    """每行恰好留下最好的 count 个，其余记作 −∞；border 是第 count 名的分数。

    形状：logits (B, V)、border 与 count (B, 1) → (B, V)
    并列：分数等于 border 的可能比空位多，按编号从小到大留，直到满额
    """
    # top-p 与 top-k 只差 count 从哪里来，真正动手的是同一段
    tied = logits == border
    room = count - (logits > border).sum(dim=-1, keepdim=True)  # 给并列者的空位
    # 写成「该丢的」而不是「该留的」：NaN 与谁比都是假，因此不会被丢掉，最后才报得出错
    dropped = (logits < border) | (tied & (tied.cumsum(dim=-1) > room))
    return logits.masked_fill(dropped, -math.inf)


class Temperature:
    """温度：把分数的差距整体放大或缩小。

    公式：z ← (z − max z) / τ；减去最大值不改变 softmax，却使 τ 很小时也不溢出
    名字：来自统计力学的 e^{−E/kT}；温度越高，粒子越不挑地方
    错误：τ ≤ 0 或不是有限数 → ValueError；τ = 0 是贪心，由 SamplingParams 处理
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = check_float("temperature", temperature, GREEDY_BELOW)

    def __call__(self, logits: Tensor, history: History | None = None) -> Tensor:
        """最好的变成 0，其余是负数；差距是原来的 1/τ 倍。"""
        # 全行 −∞ 时 (−∞) − (−∞) 会变成 NaN，说错了病因；夹住最大值，让它仍是 −∞
        largest = logits.amax(dim=-1, keepdim=True).clamp(min=LOWEST)  # (B, 1)
        return (logits - largest) / self.temperature


class TopK:
    """只留最好的 k 个；k ≥ V 时全留。

    公式：z_v ← −∞，若 v 不在前 k 名；第 k 名有并列时留编号小的，不多不少正好 k 个
    错误：k < 1 或不是整数 → ValueError
    """

    def __init__(self, k: int) -> None:
        self.k = check_int("top_k", k, 1)

    def __call__(self, logits: Tensor, history: History | None = None) -> Tensor:
        """形状 (B, V) → (B, V)。"""
        # 词表比 k 还小：没有谁要淘汰，也没有「第 k 名」可取
        if self.k >= logits.shape[-1]:
            return logits
        border = logits.topk(self.k, dim=-1).values[:, -1:]  # (B, 1)
        return keep_best(logits, border, self.k)


class TopP:
    """只留概率之和刚到 p 的最好几个：等于每行各用各的 k 的 top-k。

    公式：k = min{ n : p₍₁₎ + … + p₍ₙ₎ ≥ p }，p₍ᵢ₎ 是第 i 大的概率；p = 1 时全留
    错误：p 不在 (0, 1] → ValueError
    """

    FIRST = 512  # 多半不必给整个词表排队：先看这么多名，不够再全排
    SLACK = 1e-12  # 十个 0.1 相加略小于 1：舍入不该多放一个进来

    def __init__(self, p: float) -> None:
        self.p = check_float("top_p", p, exclusive_minimum=0.0, maximum=1.0)

    def __call__(self, logits: Tensor, history: History | None = None) -> Tensor:
        """形状 (B, V) → (B, V)。"""
        # p = 1 是「全要」。照公式算，舍入会让累加提前到 1，平白丢掉尾巴
        if self.p == 1.0:
            return logits
        # ① 分母要算整个词表；float32 就够分辨名次，累加却要更细（GPU 上没有时退而求其次）
        wide = logits if logits.device.type == "mps" else logits.double()
        largest = wide.amax(dim=-1, keepdim=True)  # (B, 1)
        total = (wide - largest).exp().sum(dim=-1, keepdim=True)  # (B, 1)
        n = min(self.FIRST, logits.shape[-1])
        while True:
            # ② 名次从高到低，排在它前面的概率之和还不到 p，它就留下
            ordered = wide.topk(n, dim=-1).values  # (B, n)
            reached = ((ordered - largest).exp() / total).cumsum(dim=-1)  # (B, n)
            if n == logits.shape[-1] or bool((reached[:, -1] >= self.p).all()):
                break
            n = logits.shape[-1]
        # ③ 最好的一个总要留下，哪怕 p 小得离谱
        count = 1 + (reached[:, :-1] < self.p - self.SLACK).sum(dim=-1, keepdim=True)  # (B, 1)
        border = ordered.gather(-1, count - 1).to(logits.dtype)  # (B, 1)
        return keep_best(logits, border, count)


class MinP:
    """只留概率不低于「最好者的 m 倍」的；m = 0 全留，m = 1 只留并列第一的。

    公式：z_v ← −∞，若 p_v < m · max p，即 z_v < max z + log m；不必算 softmax
    错误：m 不在 [0, 1] → ValueError
    """

    def __init__(self, min_p: float) -> None:
        self.min_p = check_float("min_p", min_p, 0.0, 1.0)

    def __call__(self, logits: Tensor, history: History | None = None) -> Tensor:
        """形状 (B, V) → (B, V)。"""
        if self.min_p == 0.0:  # log 0 没有定义
            return logits
        threshold = logits.amax(dim=-1, keepdim=True) + math.log(self.min_p)  # (B, 1)
        return logits.masked_fill(logits < threshold, -math.inf)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """怎样写：全部旋钮。默认值等于「照模型的概率抽」；建好后不能改。

    命令行、生成器、以后的服务都用这一个类，所以同一个词处处同一个意思
    错误：任何越界的值、没有意义的组合 → ValueError，写明给的值与允许的范围
    """

    max_new_tokens: int = 128  # 至多写这么多词元，「结束」也算一个
    temperature: float = 1.0  # 0 是贪心；束搜索不抽样，不看它
    top_k: int = 0  # 0 = 不用
    top_p: float = 1.0  # 1 = 不用
    min_p: float = 0.0  # 0 = 不用
    repetition_penalty: float = 1.0  # 1 = 不罚；提示与生成的都算
    presence_penalty: float = 0.0  # 只看生成的：出现过就减
    frequency_penalty: float = 0.0  # 只看生成的：出现几次减几份
    logit_bias: Mapping[int, float] | None = None  # 编号 → 加多少分；−∞ 是禁用
    num_beams: int = 1  # 大于 1 就是束搜索
    length_penalty: float = 1.0  # 束搜索：总分除以 长度^它；越大越偏爱长的
    num_return: int = 1  # 每条提示写几份
    stop: tuple[str, ...] = ()  # 写到其中任何一个就停，它本身不算在文本里
    seed: int | None = None  # 同一个种子永远写出同样的文本；None 时取自 torch 的全局随机源
    logprobs: bool = False  # 记下每个词元的对数概率
    top_logprobs: int = 0  # 另记每步最可能的几个候选

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    def is_greedy(self) -> bool:
        """温度是 0，或者小到与 0 没有差别。"""
        return self.temperature < GREEDY_BELOW

    @property
    def truncates(self) -> bool:
        """抽之前要不要淘汰。"""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def needs_history(self) -> bool:
        """要不要记下每行说过什么。"""
        plain = self.repetition_penalty == 1.0
        return not (plain and self.presence_penalty == self.frequency_penalty == 0.0)

    def penalties(self) -> list[LogitsProcessor]:
        """改分数的几步：贪心与束搜索也用得上。"""
        # 不起作用的不放进来：每一步少一次 (B, V) 的运算，没有惩罚时连账本也不必记
        found: list[LogitsProcessor] = []
        if self.logit_bias:
            found.append(LogitBias(self.logit_bias))
        if self.repetition_penalty != 1.0:
            found.append(RepetitionPenalty(self.repetition_penalty))
        if self.presence_penalty or self.frequency_penalty:
            found.append(FrequencyPenalty(self.presence_penalty, self.frequency_penalty))
        return found

    def processors(self) -> list[LogitsProcessor]:
        """全部步骤，按约定的次序；不起作用的不列。

        贪心只看谁最大，温度与淘汰都改变不了第一名，所以省去
        """
        found = self.penalties()
        if self.is_greedy:
            return found
        if self.temperature != 1.0:
            found.append(Temperature(self.temperature))
        if self.top_k:
            found.append(TopK(self.top_k))
        if self.top_p < 1.0:
            found.append(TopP(self.top_p))
        if self.min_p > 0.0:
            found.append(MinP(self.min_p))
        return found


def sample_next(
    logits: Tensor,
    processors: Sequence[LogitsProcessor] = (),
    history: History | None = None,
    keys: Sequence[int] | None = None,
) -> Tensor:
    """选出每行的下一个词元；给了 keys 就抽，没给就取最大。

    形状：logits (B, V) 的 float32，keys 每行一个整数，决定那一行的运气 → (B,) int64
    并列：贪心取编号最小的
    错误：某行有 NaN、+∞，或者一个能选的都没有 → ValueError，写明是第几行
    """
    # 每一步都返回新的分数；模型原来的那份不动，记对数概率时还要用
    for process in processors:
        logits = process(logits, history)
    check_scores(logits)
    return logits.argmax(dim=-1) if keys is None else draw(logits, keys)


def best_tokens(scores: Tensor, n: int) -> list[list[tuple[float, int]]]:
    """每行最好的 n 个（分数，编号），从高到低；并列时编号小的在前，取舍也是。

    形状：scores (B, V) → B 个列表，每个 min(n, V) 项
    """
    n = min(n, scores.shape[-1])
    # TopK 保证并列时留下谁，topk 却不保证：先用前者定下是哪几个，再用后者取出来
    values, tokens = TopK(n)(scores).topk(n, dim=-1)  # (B, n)
    rows = zip(values.tolist(), tokens.tolist(), strict=True)
    return [sorted(zip(*row, strict=True), key=lambda pair: (-pair[0], pair[1])) for row in rows]


def situation(steepness: float) -> Tensor:
    """演示用的分数：第 i 名的概率 ∝ i^(−s)，真实的词表大致如此（Zipf 律）；s 越大越有把握。"""
    return -steepness * torch.arange(1, 201).float().log()[None, :]  # (1, 200)


def demo() -> None:
    """五种策略与后来的几样，各把分布变成什么样；数字都是当场算的。"""
    confident, unsure = situation(2.5), situation(0.8)
    reshape_by_temperature(confident)
    what_is_left(confident, unsure)
    penalty_and_draws(confident)
    one_step_or_whole_sentence()


def reshape_by_temperature(logits: Tensor) -> None:
    """贪心与温度：同一个分布变尖、变平。"""
    print(f"① 贪心：词表 200，总取分数最高的，这里是 {int(sample_next(logits))} 号")
    assert int(sample_next(torch.tensor([[1.0, 3.0, 3.0]]))) == 1  # 并列取编号小的
    print("② 温度：前五名的概率；「相当于几个」是 e^熵，一样大的概率要几个才这么乱")
    spread = []
    for tau in (0.7, 1.0, 1.5):
        p = Temperature(tau)(logits).softmax(dim=-1)[0]  # (V,)
        spread.append(float(p.clamp(min=1e-30).log().mul(p).sum().neg().exp()))
        shown = "  ".join(f"{value:.3f}" for value in p[:5].tolist())
        print(f"   τ = {tau}   {shown}   相当于 {spread[-1]:4.1f} 个")
    assert spread == sorted(spread)  # 温度越高越平


def what_is_left(confident: Tensor, unsure: Tensor) -> None:
    """淘汰：top-k 留下的个数固定，top-p 与 min-p 随把握而变。"""
    print("③ 淘汰：留下几个、原来共占多少概率　有把握时　　　　没把握时")
    left = {}
    for name, process in (
        ("不淘汰　　", None),
        ("top-k 40　", TopK(40)),
        ("top-p 0.9 ", TopP(0.9)),
        ("min-p 0.05", MinP(0.05)),
    ):
        cells = []
        for logits in (confident, unsure):
            kept = (logits if process is None else process(logits)).isfinite()
            cells.append((int(kept.sum()), float(logits.softmax(dim=-1)[kept].sum())))
        left[name] = cells
        print(f"   {name}{'':22}" + "   ".join(f"{n:4} 个  {p:.3f}" for n, p in cells))
    assert [n for n, _ in left["top-k 40　"]] == [40, 40]
    assert left["top-p 0.9 "][0][0] < 5 < 100 < left["top-p 0.9 "][1][0]
    # 温度高时尾巴变厚：每步抽中末 100 名的机会不大，写 100 个词却几乎逃不掉
    hot = Temperature(1.5)(confident)
    for name, logits in (("不淘汰　　", hot), ("min-p 0.05", MinP(0.05)(hot))):
        tail = float(logits.softmax(dim=-1)[0, 100:].sum())
        print(f"   τ = 1.5，{name}：写 100 个词，抽中末 100 名的机会 {1 - (1 - tail) ** 100:.3f}")


def penalty_and_draws(logits: Tensor) -> None:
    """重复惩罚之后的概率；按概率抽，频率应当接近它。"""
    scores = logits + 6.0  # 惩罚看分数的正负：模型给的分数，好词多半是正的
    params = SamplingParams(repetition_penalty=1.2, temperature=1.5, top_k=40, top_p=0.9)
    print("④ 次序：" + " → ".join(type(step).__name__ for step in params.processors()))
    history = History([[0]], vocab_size=200)  # 第 0 号已经说过
    before, after = scores.softmax(dim=-1), RepetitionPenalty(1.2)(scores, history).softmax(-1)
    print(f"   重复惩罚 1.2：0 号说过，概率 {float(before[0, 0]):.3f} → {float(after[0, 0]):.3f}")
    assert after[0, 0] < before[0, 0]
    n, source, final = 5_000, RowRandom(seed=0), scores
    for step in params.processors():
        final = step(final, history)
    drawn = sample_next(final.expand(n, -1), keys=[source.at(t) for t in range(n)])
    counted, expected = torch.bincount(drawn, minlength=200) / n, final.softmax(dim=-1)[0]
    print(f"   四步之后还剩 {int((expected > 0).sum())} 个候选，抽 {n:,} 次：")
    for name, values in (("概率", expected), ("频率", counted)):
        print(f"   {name} " + "  ".join(f"{value:.3f}" for value in values[:5].tolist()))
    assert (counted - expected).abs().max() < 0.03
    assert counted[expected == 0].sum() == 0  # 淘汰的一次也抽不到


def one_step_or_whole_sentence() -> None:
    """束搜索不抽也不淘汰，而是多看几步。"""
    from inference.beam_search import TableSteps, beam_search  # 它要用本课，所以到用时才取

    # 0 → 1（0.6）或 2（0.4）；1 之后犹豫不决，2 之后必是 3
    table = torch.tensor([[0, 0.6, 0.4, 0], [0.4, 0.3, 0.3, 0], [0, 0, 0, 1], [1.0, 0, 0, 0]])
    print("⑤ 束搜索：从 0 出发走两步")
    found = []
    for b in (1, 2):
        best = beam_search(
            TableSteps(table, 0), num_beams=b, max_new_tokens=2, is_finished=lambda ids: False
        )[0]
        found.append(math.exp(best.total))
        print(f"   b = {b}：0 → {' → '.join(map(str, best.ids))}　整句概率 {found[-1]:.2f}")
    assert found[0] < found[1]  # 第一步的最好，未必通向整句的最好


def plot(path: Path) -> None:
    """画出同一个分布经过每种策略之后的样子；灰色是原来的。"""
    logits = situation(1.2)[:, :24]
    cases: list[tuple[str, LogitsProcessor]] = [
        ("temperature 0.7", Temperature(0.7)),
        ("temperature 1.5", Temperature(1.5)),
        ("top-k 8", TopK(8)),
        ("top-p 0.8", TopP(0.8)),
        ("min-p 0.1", MinP(0.1)),
        ("repetition penalty 1.2 (ids 0, 3)", RepetitionPenalty(1.2)),
    ]
    figure, axes = new_figure(2, 3, size=(11.0, 5.5))
    history = History([[0, 3]], vocab_size=24)
    for axis, (title, process) in zip(axes.flat, cases, strict=True):
        for values, color in ((logits, "0.8"), (process(logits + 4.0, history), "tab:blue")):
            axis.bar(range(24), values.softmax(dim=-1)[0].tolist(), color=color, alpha=0.8)
        axis.set(title=title, xlabel="token, best first", ylabel="probability")
    save_figure(figure, path)


if __name__ == "__main__":
    run_demo(demo, plot)
