r"""怎样划分训练集与验证集，才不会自己骗自己？——以文档为单位，由文本自己决定去哪边。

验证集（validation set）用来回答「模型对没见过的文本怎么样」。只要它与训练集有一点相同，
答案就偏乐观；而语料里的重复比想象的多：同一段许可证、同一篇转载。所以

$$\text{val} \iff h(\text{text}) < f \cdot 2^{64}, \qquad h = \mathrm{SHA256}(\text{text})_{0..63}$$

f 是验证集的比例。SHA-256 的输出与均匀随机数无从区分，于是约有 f 的文档落进验证集；
而同一段文本的 h 永远相同，由此白得三样好处：

    重复的文档    总在同一侧，不会一份拿去学、一份拿来考
    语料变大      旧文档不换边，两次训练的验证损失仍可比较
    换台机器      结果不变，与文件顺序、随机种子、划分时的先后都无关

    h 轴   0 ────────── f·2⁶⁴ ──────────────────────────────────── 2⁶⁴
             ■  ■   ■      □ □    □   □ □  □    □  □   □ □ □    □ □
             └─ 验证 ─┘    └──────────────── 训练 ────────────────┘

文档太少时，哈希是碰运气：三本书里或许一本也不落进去，或许落进最厚的那本。
规则：验证集占的字节数若不在 [f/2, 2f] 内，改为「切尾」（tail）：

    全文   │■■■■ 书一 ■■■■│■■ 书二 ■■│■■■■■■ 书三 ■■■■■■■■□□□□│
                                                         └ 末尾的 f 归验证集，切点所在的文档一分为二

切尾的份额精确、两边不会空，代价是验证的只是最后一段（例如小说的结局）。
单个文件的语料走的就是这条路，与 nanoGPT 的习惯相同。

常见疑问：
    为什么不随机抽？  随机抽要记住种子与顺序；语料一变，旧文档就会换边，前后的损失不能比。
    为什么按字节算份额？  文档有长有短；验证损失是按词元平均的，份额也该按长度算。
    近似的重复呢？    改了一个字，哈希就全变。去近似重复（MinHash）是语料清洗的事，应在这之前做。

论文：重复与泄漏的代价 — Lee et al., *Deduplicating Training Data Makes Language Models Better*,
      arXiv:2107.06499。

改哪里：换规则（例如按文件夹、按日期）→ choose_split，它只看数字，返回每篇归训练集的词元数；
        容忍多大的偏差 → TOLERANCE。
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np

from foundation.demonstration import run_demo

__all__ = ["MIN_TOKENS", "choose_split", "text_hash"]

# 没有一道「前文 → 下一个」的题，就不成一个分片。
MIN_TOKENS = 2
# 按哈希分出的份额与 f 最多差这么多倍，再多就改为切尾。
TOLERANCE = 2.0


def text_hash(data: bytes) -> int:
    """UTF-8 文本的 64 位哈希：SHA-256 的前八个字节，大端序。

    不用内置的 hash()：它每次启动 Python 都换一个种子，划分就不可重现了。
    """
    return int.from_bytes(sha256(data).digest()[:8], "big")


def choose_split(
    hashes: np.ndarray, sizes: np.ndarray, lengths: np.ndarray, val_fraction: float
) -> tuple[np.ndarray, str]:
    """每篇文档的前多少个词元归训练集，其余归验证集。

    公式：整篇训练 = 全长；整篇验证 = 0；被切开的那一篇在两者之间
    形状：hashes、sizes（字节）、lengths（词元）都是 (N,)，返回 (N,) 与所用办法的名字
    类型：hashes uint64，其余 int64；办法是 "documents"（按哈希）或 "tail"（切尾）
    错误：总词元数少于 2·MIN_TOKENS 时抛 ValueError，给出两个数
    """
    n_tokens = int(lengths.sum())
    if n_tokens < 2 * MIN_TOKENS:
        raise ValueError(
            f"the corpus has {n_tokens} tokens ({int(sizes.sum())} bytes); a train and a val split "
            f"need at least {MIN_TOKENS} each, {2 * MIN_TOKENS} together; give more text"
        )
    # ① 按哈希：每篇文档自己决定去哪边，与别的文档无关
    to_val = hashes < np.uint64(int(val_fraction * 2**64))  # (N,)
    share = sizes[to_val].sum() / max(int(sizes.sum()), 1)
    if val_fraction / TOLERANCE <= share <= val_fraction * TOLERANCE and not to_val.all():
        return np.where(to_val, 0, lengths), "documents"
    # ② 切尾：切点先夹在两端之内，再换算成每篇文档里的位置
    place = n_tokens - round(val_fraction * n_tokens)
    place = min(max(place, MIN_TOKENS), n_tokens - MIN_TOKENS)
    starts = np.cumsum(lengths) - lengths  # (N,)
    return np.clip(place - starts, 0, lengths), "tail"


def demo() -> None:
    """量一量哈希划分的三样好处，再看文档太少时怎么办。"""
    texts = [f"第 {i} 篇：{'内容' * (i % 7 + 1)}" for i in range(2000)]
    fraction = 0.1

    # 同一个函数在不同的语料上各做一次，比较每篇文本的去向
    def divide(corpus: list[str]) -> tuple[set[str], set[str], float, str]:
        data = [text.encode() for text in corpus]
        sizes: np.ndarray = np.array([len(each) for each in data])
        hashes: np.ndarray = np.array([text_hash(each) for each in data], dtype=np.uint64)
        cuts, how = choose_split(hashes, sizes, sizes, fraction)
        train = {text for text, cut in zip(corpus, cuts, strict=True) if cut > 0}
        val = {text for text, cut in zip(corpus, cuts, strict=True) if cut == 0}
        return train, val, float((sizes - cuts).sum() / sizes.sum()), how

    train, val, share, how = divide(texts)
    print(f"① {len(texts)} 篇，f = {fraction}：{how}，验证集 {len(val)} 篇，占字节 {share:.1%}")
    assert how == "documents"
    assert abs(share - fraction) < 0.02

    _, again, _, _ = divide(texts[::-1])
    print("② 倒过来读：同样的文档进验证集，与顺序无关")
    assert again == val

    _, more, _, _ = divide([*texts, *(f"新的第 {i} 篇" for i in range(500))])
    print(f"③ 添 500 篇：旧文档一篇也没有换边，验证集多了 {len(more - val)} 篇")
    assert val <= more
    assert not (more - val) & train

    train_twice, val_twice, _, _ = divide(texts + texts)
    print(f"④ 每篇都重复一遍：同时在两侧的有 {len(train_twice & val_twice)} 篇")
    assert not train_twice & val_twice

    _, _, share, how = divide(texts[:1])
    print(f"⑤ 只有一篇：{how}，末尾的 {share:.1%} 归验证集")
    assert how == "tail"
    assert 0 < share < 0.2


if __name__ == "__main__":
    run_demo(demo)
