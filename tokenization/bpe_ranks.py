r"""合并表与次序：BPE 的两种写法，什么时候处处相同？

合并表（merges）说「哪两个可以合并，谁先谁后」；次序（ranks）只给每个词元一个先后，任何相邻的两个
只要拼起来在词表里，就可以合并。`tokenizers` 用前一种，`tiktoken` 用后一种，快好几倍，却可能合并出
合并表里没有的一对：

    词表里 abc = ab + c，可是 bc 的次序更小

    文本 abc     合并表   a b c → a bc         停：a + bc 不在表里
                 次序     a b c → a bc → abc   a 与 bc 拼起来在词表里

两种写法什么时候处处相同？设每个词元 t 由合并 (x, y) 得来。只看 t 自己的字节，按次序合并，若恰好
走到 (x, y) 这一步，就说 t 是一致的（consistent）。

    定理  全部词元都一致，则任何文本上两种规则逐步相同。

    证明  看「次序」的某一步，合并 (x', y') → t；此时没有次序更小的相邻对。t 的范围之内，此前的合并
          都不出界，于是与「只看 t 自己的字节」步子相同，所以 (x', y') = (x, y)，在合并表里。
          「合并表」的候选是「次序」的候选的一部分，最小的那个又在其中，所以选的是同一个。∎

逐个词元重放合并太慢（词表有十几万）。x 与 y 各自已经一致，会不会走错，只看边界：x 的右缘与 y 的
左缘，随着合并一层层变长；有没有一个时刻，边界两侧的一对 (s, u) 抢在各自长大之前合并了？

$$\text{conflict} \iff \mathrm{rank}(su) <
\min(\mathrm{rank}(\text{parent}_s),\ \mathrm{rank}(\text{parent}_u))$$

    x 的右缘   c ──▶ bc ──▶ abc = x        每一层的次序 = 它出现的时刻
    y 的左缘   d ──▶ de ──▶ y              并列时左边的先合并，所以 parentᵤ 处取等也算

训练出来的词表会不一致吗？几乎不会：训练时 bc 先合并，abc 就只能由 a + bc 学到。手工拼起来的、
删改过的词表才会；那时老老实实用合并表。

一个会走错的例子，照着图走一遍（abcd = ab + cd，而 bc 的次序最小）：

    时刻     bc 的次序 3    ab 的次序 4    cd 的次序 5    abcd 的次序 6
    左缘 s   b，活到 4      ab，活到 6
    右缘 u   c，活到 5                     cd，活到 6
    (b, c) 同时在场，rank(bc) = 3 < min(4, 5)：它抢先合并了，ab + cd 永远走不到

并列要当心：aaa = aa + a。边界上的 (a, a) 与左半里的 (a, a) 次序相同，左边的先合并，所以不算冲突；
换成 a + aa，边界上的更靠左，先合并的是它，就走不到了。

常见疑问：
    一个词元在合并表里有两种拆法呢？  由次序导出的合并表（Llama 3）把每种拆法都列上；真正走到的只有
                                      一种，别的列了也用不上。
    词表里有走不到的词元呢？          ignore_merges 的模型里，整片恰好等于它时才用到，两边都如此。

论文：Sennrich et al. 2016, arXiv:1508.07909（合并表）。
改哪里：换一个只认次序的库 → 用 ranks_of 的结果；别的种类的合并规则 → 先重做上面的证明。
"""

from __future__ import annotations

from foundation.demonstration import run_demo
from tokenization.text_pieces import byte_symbols
from tokenization.tokenizer_file import (
    Specification,
    added_tokens,
    kind_of,
    merge_pairs,
    token_table,
    vocabulary_of,
)

__all__ = ["first_conflict", "ranks_of"]

Pair = tuple[bytes, bytes]


def ranks_of(specification: Specification) -> dict[bytes, int] | None:
    """词元的字节 → 次序；证明不了两种规则相同时是 None。

    形状：256 个字节 + 每个合并得来的词元一项；特殊词元不在内，普通文字里没有它们
    次序就取编号，所以还要求编号随合并表递增；单个字节的编号随便，它们不由合并得来
    """
    model = specification["model"]
    if kind_of(specification) != "bpe" or model.get("byte_fallback"):
        return None
    # ① 256 个字节一个不少，否则有的文本编码不了
    vocabulary, table = vocabulary_of(specification), token_table(specification)
    symbols = byte_symbols()
    # 只有 UTF-8 里不会出现的字节可以缺，这里一概不许，省得另想
    if any(symbol not in vocabulary for symbol in symbols):
        return None
    ranks = {bytes([byte]): vocabulary[symbol] for byte, symbol in enumerate(symbols)}
    #    单个字节的次序用不着：拼起来至少两个字节；
    #    它们的编号照样要给，那是最后的结果
    # ② 合并得出来的词元，与它们的拆法
    pairs: dict[bytes, list[Pair]] = {}
    before = -1
    for left, right in merge_pairs(specification):
        rank = vocabulary[left + right]
        # 同一个词元的几种拆法可以并列，但先后不能乱
        if rank < before:
            return None
        before = rank
        halves = (table[vocabulary[left]], table[vocabulary[right]])
        ranks[halves[0] + halves[1]] = rank
        pairs.setdefault(halves[0] + halves[1], []).append(halves)
    # ③ ignore_merges：整片恰好是一个词元时直接用它，所以词表里别的词元也在内。
    #    加入的词元不在内：普通文字里认不认它们，另有规矩
    whole = bool(model.get("ignore_merges"))
    if whole:
        added = {entry["id"] for entry in added_tokens(specification)}
        for name, token_id in vocabulary.items():
            if token_id not in added and set(name) <= set(symbols):
                ranks.setdefault(table[token_id], token_id)
    return None if first_conflict(ranks, pairs, whole=whole) else ranks


def first_conflict(
    ranks: dict[bytes, int], pairs: dict[bytes, list[Pair]], *, whole: bool = False
) -> bytes | None:
    """第一个不一致的词元；都一致就是 None。

    pairs：每个词元在合并表里的拆法；whole：整片相等时直接用，所以容许走不到的词元

    >>> ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5}
    >>> halves = {b"bc": [(b"b", b"c")], b"ab": [(b"a", b"b")]}
    >>> first_conflict(ranks, halves | {b"abc": [(b"a", b"bc")]})
    >>> first_conflict(ranks, halves | {b"abc": [(b"ab", b"c")]})  # b + c 抢先
    b'abc'
    """
    halves: dict[bytes, Pair] = {}  # 每个词元真正走到的拆法
    # 从次序小的起：轮到一个词元时，它的两半都已经查过
    # 单个字节没有拆法，也就没有一致不一致
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) == 1:
            continue
        # 走法是确定的，所以至多一种拆法走得到；找到一个就够
        good = (p for p in pairs.get(token, ()) if not _crosses(*p, token, ranks, halves))
        found = next(good, None)
        if found is not None:
            halves[token] = found
            continue
        # 合并表里的都走不到。走得到的若是别的拆法，「次序」会合并而「合并表」不会
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = (p for p in splits if p[0] in ranks and p[1] in ranks)
        if not whole or any(not _crosses(*p, token, ranks, halves) for p in known):
            return token
    return None


def _crosses(
    left: bytes,
    right: bytes,
    token: bytes,
    ranks: dict[bytes, int],
    halves: dict[bytes, Pair],
) -> bool:
    """只看 token 的字节，走不走不到 (left, right) 这一步：有没有一对词元抢先跨过了边界。"""
    # 单个字节总是在场；
    # 一半自己就走不到，这一步也就走不到；次序不比它小的，还没有出现
    top = ranks[token]
    for half in (left, right):
        if len(half) > 1 and (half not in halves or ranks[half] >= top):
            return True
    # ① 两条边：从单字节到整个一半，每一层与它长大的时刻
    edges = []
    for half, side in ((left, 1), (right, 0)):
        # 整个的一半活到最后：与另一半合并成 token 的那一刻
        edge, grows = [], top
        while True:
            edge.append((half, grows))
            if half not in halves:
                break
            # 往里走一层：它由两半合并而来，靠边界的一半活到那一刻
            grows, half = ranks[half], halves[half][side]
        edges.append(edge[::-1])  # 从小到大
    # 每一步要么左边长大一层，要么右边；所以步数是两条边的长度之和
    # ② 顺着时间走：同时在场的一对，抢得过就是冲突
    #    开始时两边都是单个字节，紧挨着边界
    lefts, rights = edges
    i = j = 0
    while True:
        (s, s_grows), (u, u_grows) = lefts[i], rights[j]
        rank = ranks.get(s + u)
        if rank is not None and s + u != token:
            # 右边取等：同一个次序，边界上的更靠左，先合并
            if rank < min(s_grows, u_grows) or rank == u_grows < s_grows:
                return True
        # 两边都长全了，一路上没有谁抢先
        if i + 1 == len(lefts) and j + 1 == len(rights):
            return False
        # 左边先长大；并列时也是左边先
        if j + 1 == len(rights) or (i + 1 < len(lefts) and s_grows <= u_grows):
            i += 1
        else:
            j += 1


def demo() -> None:
    """不一致的词表，两种规则真的走出不同的结果；训练出来的词表都一致。

    merge 是照定义写的合并，很慢，用来核对 first_conflict 说得对不对
    """
    import json

    from tokenization.tokenizer import Tokenizer

    ranks = {b"a": 0, b"b": 1, b"c": 2, b"bc": 3, b"ab": 4, b"abc": 5}
    halves = {b"bc": [(b"b", b"c")], b"ab": [(b"a", b"b")]}
    print("1. 六个词元，bc 的次序比 ab 小；abc 由谁合并而来？")
    for pair in ((b"a", b"bc"), (b"ab", b"c")):
        merges = halves | {b"abc": [pair]}
        found = first_conflict(ranks, merges)
        by_table = merge(b"abc", ranks, merges)
        by_rank = merge(b"abc", ranks, None)
        print(f"   {pair[0].decode():2} + {pair[1].decode():2}：合并表 {by_table}，次序 {by_rank}")
        # 查出冲突，当且仅当真的不同
        assert (found is None) == (by_table == by_rank)

    # 训练得来的词表，每条合并都是当时最常见的一对，所以必然一致
    corpus = ["举头望明月，低头思故乡。The moon, the moon! def f(x): return x + 1\n"] * 20
    specification = json.loads(Tokenizer.train_bpe(corpus, 320).to_json())
    found_ranks = ranks_of(specification)
    print(f"2. 训练出来的 {len(vocabulary_of(specification))} 个词元：", end="")
    assert found_ranks is not None
    print(f"都一致，可以只用次序（{len(found_ranks)} 个，特殊词元不算）")

    # 编号是文件里写死的，次序却要从它看出来；
    # 对调最后两条合并：编号不再随合并表递增
    specification["model"]["merges"][-2:] = specification["model"]["merges"][:-3:-1]
    print(f"3. 对调最后两条合并之后：{ranks_of(specification)}，老老实实用合并表")
    assert ranks_of(specification) is None


def merge(
    data: bytes, ranks: dict[bytes, int], pairs: dict[bytes, list[Pair]] | None
) -> list[bytes]:
    """示例用：照规则合并到底；pairs 为 None 时只看次序，否则还要在合并表里。

    与 `bpe.py` 的 encode_piece 是同一件事，只是两种规则都会
    """
    parts = [bytes([byte]) for byte in data]
    while True:
        # 次序最小的一对，并列取最左；一对也没有就停
        found = [
            (ranks[a + b], i)
            for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
            if a + b in ranks and (pairs is None or (a, b) in pairs[a + b])
        ]
        if not found:
            return parts
        _, place = min(found)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


if __name__ == "__main__":
    run_demo(demo)
