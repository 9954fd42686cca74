r"""模型「看得见」一篇长文章，就等于「找得到」里面的一句话吗？——大海捞针（needle in a haystack）。

在一片废话里埋一根针（键与值），走到最后再问：那个键，对应的值是什么？

    废话 … 记 k₃ v₃ … 废话 … 记 k₁ v₁ … 废话 … 问 k₁ ▢        ▢ 应当是 v₁
           └─别的针─┘        └─ 这一根 ─┘
    深度 (depth)  0 = 埋在最开头，1 = 紧挨着问题      长度 (length)  从几十到训练长度的几倍

$$\text{得分}(T, \text{深度}) = \frac{1}{n} \sum_{i=1}^{n}
  \big[\arg\max_v p(v \mid \text{第 } i \text{ 篇}) = v_i\big], \qquad
  \text{瞎猜} = \frac{1}{\text{值的种数}}$$

为什么用编号而不用真的文章？ 真的大海捞针（Kamradt 2023）要一个读得懂英文的大模型；这里的模型
几十秒就练成，只会一件事：按键找值。于是得分只反映一样东西：**位置**能不能让它看到那么远。
别的针是干扰：只找「记」后面的词元不够，键也要对上。

在训练长度之内，它应当满分；超过之后，看各种办法：

    none     照原来的频率往后转：没见过的角度，越远越找不准
    linear、ntk、dynamic、yarn、llama3   换一套频率，见 transformer_basics/rope_scaling.py
    sliding  只留开头几个与最近 W 个：窗口里的照样找到，窗口外的一个也找不到；它从不假装看得见

静态的几种（linear、ntk、yarn、llama3）按最长的那一档打开，短的也用它；dynamic 按眼前的长度打开。

读这张图要小心三点：这里的针是训练过的样子，真文章里没有「记」这个记号；两层的小模型不等于大模型；
满分只说明找得到，不说明读得懂。所以它是必要条件：这都不过，就不必谈长文章。

常见疑问：
    开头的针，滑动有时也找得到？
        它恰好埋在汇里（开头 4 个词元），汇从不忘掉；再往后挪一格就不行了
    静态的拉长法，为什么短文也受影响？
        按最长的打开，频率就换了，短文也跟着换了读法；短文要紧，用 dynamic，或按需要的长度打开
    为什么不直接看困惑度？
        困惑度多半由近处的词决定：看不见远处的模型，困惑度照样不差；两样都要看
    在真的模型上怎样用？
        把 NeedleTask 换成用分词器拼的句子，score 与 draw 不必改
    一个格子要考多少篇？
        n 篇的标准误差是 √(p(1 − p)/n)：64 篇、答对一半时约 6 个百分点，差这么多不必当真

训练时怎样学得快？ 一篇里把全部的键都埋下、都问一遍，一次前向就有几十道题；只算「问」后面的损失，
废话不学。损失先停在「在见过的值里瞎猜」，某一刻忽然学会按键去找，几步之内降到零。

论文：Kamradt 2023 (github.com/gkamradt/LLMTest_NeedleInAHaystack)；Arora 等 2023《Zoology》
     (arXiv:2312.04927) 的多键联想回忆；Hsieh 等 2024《RULER》(arXiv:2404.06654)

改哪里：换一种藏法 → NeedleTask.bury；多一种办法 → score；练得更久、更大 → train_retriever。
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foundation.checks import check_choice, check_float, check_int
from foundation.demonstration import new_figure, run_demo, save_figure
from gpt_model.caches import CacheSettings
from gpt_model.config import preset
from gpt_model.longer_context import LONGER, extend_context, trained_length
from gpt_model.model import GPT
from training.batch import IGNORE_INDEX
from training.optimizer import build_optimizer, set_learning_rate

__all__ = ["METHODS", "NeedleTask", "Scores", "draw", "needle_scores", "score", "train_retriever"]

METHODS = (*LONGER, "sliding")
# 两个常数只管滑动的那一种
N_SINKS = 4  # 滑动时留几个开头的；窗口是训练长度减去它
PIECE = 128  # 滑动时一段喂几个

# 办法 → 长度 → 每个深度的得分
Scores = dict[str, dict[int, list[float]]]


@dataclass(frozen=True)
class NeedleTask:
    """编号的分法：废话在前，然后是键、值，最后两个是「记」与「问」。

    形状：一根针占三格「记 k v」，一个问题占三格「问 k v」，最后那个 v 是要猜的
    错误：一篇放不下要埋的针 → ValueError，写明两个数
    """

    n_filler: int = 32  # 废话的种数
    n_keys: int = 16  # 键的种数：训练时一篇里全都埋下
    n_values: int = 16  # 值的种数：瞎猜是它分之一

    @property
    def vocab_size(self) -> int:
        """全部的编号。

        词表多大，模型就建多大；它只认得这些编号，没有分词器
        """
        return self.n_filler + self.n_keys + self.n_values + 2

    def training_batch(self, size: int, length: int, generator: torch.Generator) -> Batch:
        """全部的键埋下，再全部问一遍；只有每个 v 有标签。

        形状：→ inputs、targets (size, length)；别的位置是 IGNORE_INDEX
        """
        n, tail = self.n_keys, 3 * self.n_keys
        # 长度 + 1 个编号，前一半当输入、后一半当标签
        # ① 先埋：问题占去末尾 3n 格，多出的一格是左移用的
        ids, keys, values = self.bury(size, length + 1 - tail, n, None, generator)
        #    全部的键都用上：一篇里有 n_keys 道题
        # ② 换一个次序问：若按埋的次序问，数着数也能答对
        order = torch.rand(size, n, generator=generator).argsort(dim=1)
        asked = (torch.full_like(keys, self.vocab_size - 1), keys.gather(1, order))
        questions = torch.stack((*asked, values.gather(1, order)), dim=-1).flatten(1)  # 问 k v …
        #    k 后面就是 v：答完一题，正确的答案也成了前文，不妨碍后面的题
        whole = torch.cat((ids, questions), dim=1)  # (size, length + 1)
        # ③ 左移一格：标签在 k 的位置上，值是下一格的 v
        targets = torch.full((size, length), IGNORE_INDEX)
        places = torch.arange(length + 1 - tail + 2, length + 1, 3)
        targets[:, places - 1] = whole[:, places]
        return whole[:, :-1], targets

    def questions(
        self,
        size: int,
        length: int,
        depth: float,
        generator: torch.Generator,
        n_needles: int | None = None,
    ) -> Batch:
        """每篇只问一根针，它埋在 depth 处；别的针随便埋，一共 n_needles 根，缺省八根。

        形状：→ ids (size, length)，末尾是「问 k」；answers (size,)
        """
        # 与训练时不同：只问一根，而且知道它埋在哪里
        check_float("depth", depth, 0.0, 1.0)
        # 键不够八种的，就全用上
        n_needles = min(8, self.n_keys) if n_needles is None else n_needles
        check_int("n_needles", n_needles, 1, self.n_keys)
        ids, keys, values = self.bury(size, length - 2, n_needles, depth, generator)
        # 别的针是干扰：它们也跟在「记」后面，只是键不同
        question = torch.stack((torch.full((size,), self.vocab_size - 1), keys[:, 0]), dim=1)
        return torch.cat((ids, question), dim=1), values[:, 0]

    def bury(
        self, size: int, length: int, n: int, depth: float | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """一片废话里埋 n 根针；depth 给了，第 0 根就在那里。

        形状：→ ids (size, length)，键、值 (size, n)
        约定：格子从末尾往前每三格一个，所以深度 1 正好挨着问题
        """
        # 一根针占三格，所以一片废话分成 room 个格子
        room = length // 3
        if room < n:
            raise ValueError(f"{n} needles of 3 tokens do not fit into {length} tokens")
        # 废话是独立的随机数：没有规律可学，猜也猜不中
        ids = torch.randint(self.n_filler, (size, length), generator=generator)
        # ① 键不重复，值可以；次序随机
        keys = torch.rand(size, self.n_keys, generator=generator).argsort(dim=1)[:, :n]
        values = torch.randint(self.n_values, (size, n), generator=generator)
        keys, values = keys + self.n_filler, values + self.n_filler + self.n_keys
        # ② 格子也不重复：第 0 根的格子排在最前，别的从剩下的里取
        rank = torch.rand(size, room, generator=generator)
        if depth is not None:
            rank[:, round(depth * (room - 1))] = -1.0
        slots = rank.argsort(dim=1)[:, :n]
        places = length - 3 * room + 3 * slots  # (size, n)
        # ③ 写进去：记、键、值各占一格
        notes = torch.full_like(keys, self.vocab_size - 2)
        for offset, part in enumerate((notes, keys, values)):
            ids.scatter_(1, places + offset, part)
        return ids, keys, values


Batch = tuple[Tensor, Tensor]


def train_retriever(
    task: NeedleTask,
    length: int,
    *,
    steps: int = 200,
    batch_size: int = 32,
    dim: int = 64,
    n_layers: int = 2,
    seed: int = 0,
) -> GPT:
    """练一个只会按键找值的小模型；length 是它的训练长度。

    token_shift 把「前一个是谁」直接递给值所在的位置，于是找值一层就能做到（见 previous_token.py）；
    输出词表不与输入共用：键与值各有各的方向，学得快
    """
    # 初始权重与题目各用各的随机源：换一个步数，前面的题目不变
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    sizes = {"vocab_size": task.vocab_size, "max_seq_len": length, "dim": dim}
    # 一个头 32 维：频率有 16 个，快的管近处，慢的管远处
    sizes |= {"n_layers": n_layers, "n_heads": max(1, dim // 32)}
    model = GPT(preset("modern-micro", **sizes, token_shift=True, tie_embeddings=False))
    # 矩阵用 Muon：同样的步数，「忽然学会」来得早得多
    optimizer = build_optimizer(model, name="muon", learning_rate=0.01, weight_decay=0.0)
    for step in range(steps):
        # 先升后降：最后四成的步数降到零
        rate = min(1.0, (step + 1) / 20, (steps - step) / (0.4 * steps))
        set_learning_rate(optimizer, 0.01 * rate)
        # 每步都是新题，背不下来，只能学会「按键找值」
        loss = model(*task.training_batch(batch_size, length, generator)).loss
        assert loss is not None
        # 没有别的花样：一个进程、float32、不裁剪
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.inference_mode()
def score(
    model: GPT,
    task: NeedleTask,
    length: int,
    depth: float,
    method: str,
    *,
    longest: int | None = None,
    n_texts: int = 64,
    seed: int = 0,
) -> float:
    """一种办法、一个长度、一个深度的得分：答对的占几成。

    longest：静态的拉长法按多长打开，缺省就是 length；dynamic 总是按 length
    约定：每次都从同样的种子出题，各种办法答的是同样的卷子；用完把模型恢复原状
    """
    # 拉长过的也认得回去：训练长度记在配置里
    check_choice("method", method, METHODS)
    trained = trained_length(model.config)
    generator = torch.Generator().manual_seed(seed)
    ids, answers = task.questions(n_texts, length, depth, generator)
    ids = ids.to(model.device)
    # ① 滑动：模型不动，缓存一段一段地喂
    if method == "sliding":
        #    n + W 正好是训练长度：每个距离都是见过的
        settings = CacheSettings("sliding", N_SINKS, trained - N_SINKS)
        cache = model.make_cache(n_texts, kind=settings)
        for piece in torch.split(ids, PIECE, dim=1):
            logits = model(piece, cache=cache, last_only=True).logits
    # ② 其余：按要看的长度打开，一次读完
    else:
        opened = length if method == "dynamic" else max(length, longest or length)
        extend_context(model, max(opened, trained), method)
        logits = model(ids, last_only=True).logits
        # 用完换回来：频率只是一张表，换来换去不损失什么
        extend_context(model, trained, "none")
    # ③ 在整个词表里选：选成废话、选成键，都算错
    found = logits[:, -1].argmax(dim=-1).cpu()
    return float((found == answers).float().mean())


def needle_scores(
    model: GPT,
    task: NeedleTask,
    lengths: Sequence[int],
    depths: Sequence[float],
    methods: Sequence[str] = METHODS,
    *,
    n_texts: int = 64,
) -> Scores:
    """各种办法在各个长度、各个深度的得分；静态的拉长法按最长的那一档打开。"""
    # 键是办法，值是「长度 → 每个深度的得分」：画图与打表都从这里取
    longest = max(lengths)
    return {
        method: {
            length: [
                score(model, task, length, depth, method, longest=longest, n_texts=n_texts)
                for depth in depths
            ]
            for length in lengths
        }
        for method in methods
    }


def table(scores: Scores, trained: int) -> str:
    """各种办法一行，各个长度一列，深度取平均。"""
    lengths = list(next(iter(scores.values())))
    # 表头是训练长度的几倍：1× 以内应当满分
    rows = ["method".ljust(9) + "".join(f"{length / trained:8g}×" for length in lengths)]
    for method, by_length in scores.items():
        # 深度取平均：一行看大势，细处看图
        means = [sum(found) / len(found) for found in by_length.values()]
        rows.append(method.ljust(9) + "".join(f"{mean:9.0%}" for mean in means))
    return "\n".join(rows)


def draw(scores: Scores, depths: Sequence[float], trained: int, path: Path) -> None:
    """每种办法一张图：横轴长度，纵轴深度，颜色越深得分越高；红线是训练长度。"""
    # 各种办法用同样的长度与深度，取第一种的就行
    lengths = list(next(iter(scores.values())))
    figure, axes = new_figure(1, len(scores), size=(2.3 * len(scores), 3.2))
    # 只有一张图时，返回的不是列表
    axes = [axes] if len(scores) == 1 else axes
    for axis, (method, by_length) in zip(axes, scores.items(), strict=True):
        # 行是深度，列是长度
        grid = torch.tensor([by_length[length] for length in lengths]).T.numpy()  # (深度, 长度)
        axis.imshow(grid, cmap="Greens", vmin=0.0, vmax=1.0, aspect="auto")
        axis.set(title=method, xlabel="length")
        axis.set_xticks(range(len(lengths)), [str(length) for length in lengths], rotation=60)
        axis.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        # 深度 0 在最上面：从上往下，就是从文章开头到结尾
        # 红线右边的，训练时没有见过
        inside = sum(length <= trained for length in lengths)
        axis.axvline(inside - 0.5, color="tab:red")
    # 纵轴各图相同，写一次就够
    axes[0].set_ylabel("depth of the needle")
    save_figure(figure, path)


def small_retriever() -> tuple[GPT, NeedleTask]:
    """演示用：几秒练成，训练长度 64。

    一层、键值各八种：小到可以在课上练；要紧的是它在训练长度之内满分
    """
    task = NeedleTask(n_filler=16, n_keys=8, n_values=8)
    return train_retriever(task, 64, steps=200, batch_size=24, n_layers=1), task


def demo() -> None:
    """练一个，在训练长度之内考满分，再看超过之后各种办法怎样。"""
    model, task = small_retriever()
    # 编号 0…15 是废话，16…23 是键，24…31 是值
    # 两根针，只问埋在正中间的那一根
    # 一篇长什么样
    ids, answers = task.questions(1, 24, 0.5, torch.Generator().manual_seed(1), n_needles=2)
    print(f"① 一篇 24 个词元：{ids[0].tolist()}")
    print(f"   键是 {int(ids[0, -1])}，答案是 {int(answers[0])}；记 = 32，问 = 33")
    assert ids[0, -2] == task.vocab_size - 1
    depths, lengths = (0.0, 0.5, 1.0), (32, 64, 128, 256)
    # 一个格子 32 篇：满分与瞎猜分得清，差几个百分点的不必当真
    scores = needle_scores(model, task, lengths, depths, n_texts=32)
    print("② 得分（三个深度的平均）；训练长度是 1×，瞎猜是 12%：")
    print("   " + table(scores, 64).replace("\n", "\n   "))
    # 这三种在训练长度之内与没有拉长完全一样，所以应当满分
    for method in ("none", "dynamic", "sliding"):
        assert min(scores[method][32] + scores[method][64]) > 0.9
    # 滑动的窗口是 60：挨着问题的找得到，四倍长文章开头的早忘了
    # 差的不是本事，是看不见：这正是「能一直写」与「读得懂长文」的分别
    far, near = scores["sliding"][256][0], scores["sliding"][256][-1]
    print(f"③ 滑动，4 倍长：针在开头 {far:.0%}，紧挨着问题 {near:.0%}")
    assert near > 0.9 > 0.5 > far


def plot(path: Path) -> None:
    """演示的那个小模型，六个长度、五个深度；各种办法的样子一眼就分得开。"""
    model, task = small_retriever()
    # 篇数少一些：只看大势
    depths, lengths = (0.0, 0.25, 0.5, 0.75, 1.0), (32, 64, 96, 128, 192, 256)
    draw(needle_scores(model, task, lengths, depths, n_texts=16), depths, 64, path)


if __name__ == "__main__":
    run_demo(demo, plot)
