r"""此刻哪几个词元不会把路走死？——把词表摆成一棵树，从状态表上一层一层地走下去。

一个词元是一串字节 b₁…b_n。在状态 q 上允许它，当且仅当走完之后还有救，而且来得及：

$$\text{允许}(q, r) = \{\, v : d(\delta(q, b_1 \dots b_n)) \le r - 1 \,\},
\qquad d(q) = \text{从 } q \text{ 到合格至少还要几个词元}$$

r 是连这一个在内还能写几个。等式右边保证了归纳：这一步走得通，下一步就一定有得选，
所以写到最后必是完整的，绝不会半途而废。r 很大时，条件就只剩「还有救」（d 有限）。

五万个词元一个一个地试太慢，共用开头的只需走一遍：排成字典树（trie），按层走，
一层一次 numpy 的查表；死掉的枝，后面整枝不看：

    第 1 层    t       春₁          状态   q ──t──▶ 7 ──h──▶ 9
    第 2 层    th  ti  春₂                     └─i──▶ 死：tion、time… 一个也不必看
    第 3 层    the     春₃          春 = E6 98 A5：半个字也是结点，断在哪里都行

三处加速，都不改变答案：

  · 每个状态的名单算一次就记住（掩码缓存）
  · d 要把走得到的状态全走一遍，贵；而词表含全部 256 个单字节时，d 不会超过还差的字节数，
    余地足够就不必算它
  · 余地大于名单上最远的，名单就是整张，不必逐个比较

特殊词元不是文字，一律不许；只有「结束」例外：走到合格的状态，它就在名单上。

以词表里有「a」「ab」「b」、规则是 ab 为例，起点的 d 是 1：

    r = 2   a、ab 都许        写了 a，还来得及写 b
    r = 1   只许 ab           写了 a 就收不了尾

「还有救」与「来得及」为什么要分开？前者只看规则与词表，一个状态一张名单，算一次用到底；
后者还要看 r，只在快写满时才用得上。

常见的错法：
    按字符比较            词元断在半个汉字里，没有哪个字符可比
    只看第一个字节        "the" 的 t 走得通，h 却走不通
    忘了特殊词元          「用户说」三个字的特殊词元，字节也走得通，写出来就成了换人说话
    等写满了才发现没写完  名单里只问「还有救」、不问「来得及」

论文：Willard 与 Louf 2023 (arXiv:2307.09702)，每个状态一张名单；
     Koo 等 2024 (arXiv:2407.08103)，词元与字符的边界不一致怎样处理。

改哪里：只有一个可选时不问模型 → session.py 里看 allowed 的个数；规则从哪里来 → constraints.py。
"""

from __future__ import annotations

import time
from collections.abc import Collection
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from foundation.demonstration import run_demo
from inference.automaton import DEAD, FAR, START, ByteAutomaton, count_back

if TYPE_CHECKING:
    from tokenization.tokenizer import Tokenizer

__all__ = ["TokenGuide", "TokenTrie"]

# 同时在写的各行，通常只在几十个状态上
MOST_MASKS = 128  # 记住多少张名单；五万个词元的一张约 250 KB


class TokenTrie:
    """一个分词器的全部文字词元，按字节排成树；与规则无关，所以只造一次。

    banned：不许用的编号（用户禁用的）；特殊词元、没有文字的、空缺的本来就不收
    形状：第 d 层有 n_d 个结点：byte、token、first、count 各 (n_d,)
    代价：内存与词表的字节总数成正比；五万个词元约十几万个结点
    约定：按字典序编号，所以一个结点的孩子在下一层是连着的 [first, first + count)
    """

    def __init__(self, tokenizer: Tokenizer, banned: Collection[int] = ()) -> None:
        self.vocab_size = tokenizer.vocab_size
        self.end_ids = sorted(tokenizer.stop_ids - set(banned))
        outside = {*tokenizer.special_tokens.values(), *tokenizer.stop_ids, *banned}
        self.spelling = spellings(tokenizer, outside)
        # 词表的 token_bytes 是唯一的准绳：显示什么，就按什么走
        # ① 字节相同的词元（偶有）只进树一次，其余跟着它走
        chosen: dict[bytes, int] = {}
        twins: list[tuple[int, int]] = []
        for token, data in self.spelling.items():
            if chosen.setdefault(data, token) != token:
                twins.append((token, chosen[data]))
        self.twins = np.array(twins, dtype=np.int64).reshape(-1, 2)
        # 每个字节都单独成词元吗？是的话，任何一段文字都拼得出来
        self.has_every_byte = all(bytes([value]) in chosen for value in range(256))
        # ② 一层一层地排：长度到 d 的开头，去掉重复的
        self.levels: list[Level] = []
        words, parents = sorted(chosen), {b"": 0}
        depth = 1
        while words:
            prefixes = list(dict.fromkeys(word[:depth] for word in words))
            self.levels.append(Level(prefixes, parents, chosen))
            parents = {prefix: node for node, prefix in enumerate(prefixes)}
            # 到此为止的退出，剩下的还有更深的一层
            words = [word for word in words if len(word) > depth]
            depth += 1

    def walk(self, table: np.ndarray, state: int) -> np.ndarray:
        """从 state 出发，每个词元走到哪个状态；走不通的是 0。

        形状：→ (V,) int32
        """
        # 没走到的就是死：先全填 0，走到了再写
        target: np.ndarray = np.full(self.vocab_size, DEAD, dtype=np.int32)
        nodes: np.ndarray = np.zeros(1, dtype=np.int64)
        states = np.array([state])
        for level in self.levels:
            # ① 活着的结点的孩子：每个结点一段，首尾相接
            count = level.count[nodes]
            #    第 i 段是 first[i], first[i]+1, …：先平移，再加上从头数的序号
            begin = level.first[nodes] - (count.cumsum() - count)
            children = np.repeat(begin, count) + np.arange(count.sum())
            # ② 一次查表走完这一层，死掉的不再往下
            after = table[np.repeat(states, count), level.byte[children]]
            #    规则严的时候，一两层之后就只剩几个结点
            alive = after != DEAD
            nodes, states = children[alive], after[alive]
            if not len(nodes):
                break
            # ③ 恰好拼完一个词元的，记下它到了哪里
            token = level.token[nodes]
            whole = token >= 0
            target[token[whole]] = states[whole]
        # 字节相同，去处就相同
        target[self.twins[:, 0]] = target[self.twins[:, 1]]
        return target


def spellings(tokenizer: Tokenizer, outside: set[int]) -> dict[int, bytes]:
    """编号 → 字节；不收 outside、空缺的，也不收空的：选了它什么也没写，却占了一步。"""
    found = {}
    # 不收的有三种：规定不许的、没有文字的、空的
    for token in range(tokenizer.vocab_size):
        if token in outside:
            continue
        # 别人的词表偶有空缺：编号在范围之内，却没有文字
        try:
            data = tokenizer.token_bytes(token)
        except ValueError:
            continue
        if data:
            found[token] = data
    return found


class Level:
    """字典树的一层；父亲在上一层，孩子在下一层。

    形状：prefixes 是这一层的 n 个开头，按字典序；parents 是上一层的开头 → 编号
    """

    def __init__(
        self, prefixes: list[bytes], parents: dict[bytes, int], chosen: dict[bytes, int]
    ) -> None:
        # 末一个字节就够：前面的在父亲那里
        self.byte = np.array([prefix[-1] for prefix in prefixes])
        # 不是词元、只是别人开头的，记 −1
        self.token = np.array([chosen.get(prefix, -1) for prefix in prefixes])
        # first 与 count 以父亲的编号为下标：走的时候手里拿的是父亲
        parent = np.array([parents[prefix[:-1]] for prefix in prefixes])
        self.count = np.bincount(parent, minlength=len(parents))
        self.first = self.count.cumsum() - self.count


class TokenGuide:
    """一条规则配一个分词器：每个状态上许写哪些词元。

    状态是整数，记在各份文本自己那里；这里只有缓存，所以许多行、许多次请求可以共用一个
    """

    def __init__(self, automaton: ByteAutomaton, trie: TokenTrie) -> None:
        self.automaton, self.trie = automaton, trie
        self.start = START  # 每份文本都从这里开始
        # 状态 → 名单；与 r 无关，所以记得住
        self._masks: dict[int, tuple[np.ndarray, Tensor, int]] = {}

    # 下面几个问题，Continuation 与束搜索每步都要问；答得快，全靠 _live 记得
    # ── 问答 ────────────────────────────────────────────────────────────

    def step(self, state: int, token: int) -> int:
        """写了 token 之后的状态；「结束」不移动。

        不在名单上的会走到死状态 0，而不报错：硬试全部词元时要用
        """
        # 一个词元几个字节，就走几步
        for byte in self.trie.spelling.get(token, b""):
            state = int(self.automaton.table[state, byte])
        return state

    def accepts(self, state: int) -> bool:
        """到此为止，合格吗？"""
        return bool(self.automaton.accepting[state])

    def is_complete(self, state: int) -> bool:
        """合格，而且再写什么都不合格：不必再问模型。

        与地方够不够无关；那要问 is_over
        """
        # 不能看名单是不是空的：名单上还有「结束」
        return self.accepts(state) and self._live(state)[2] < 0

    def is_over(self, state: int, remaining: int) -> bool:
        """合格，而且余下的 remaining 个词元之内，再写什么都收不了尾：此刻就该停。

        没有「结束」可写的分词器，全靠它：否则名单会是空的
        """
        if not self.accepts(state):
            return False
        targets, _, farthest = self._live(state)
        # 与 allowed 同样的两种情形，只是不把「结束」算作可写的
        if remaining > farthest:
            return farthest < 0
        return not (self.distance[targets] <= remaining - 1).any()

    def allowed(self, state: int, remaining: int) -> Tensor:
        """许写哪些词元；remaining 是连这一个在内还能写几个。

        形状：→ (V,) 布尔；不要改它，它是缓存
        归纳：选了名单上的任何一个，下一步的 shortest 都 ≤ remaining − 1
        约定：shortest(state) ≤ remaining，而且没有 is_over，名单就不会是空的
        """
        # 名单是现成的，多半直接交出去
        targets, mask, farthest = self._live(state)
        # ① 余地够大：整张名单
        if remaining > farthest:
            return mask
        #    到这里多半是最后几个词元了，逐个比一遍也不过几十微秒
        # ② 余地不够：只留来得及的。宽的尺子（字节数）放行不了，才用准的（词元数）
        found = torch.from_numpy(self.distance[targets] <= remaining - 1)
        if self.accepts(state):
            found[self.trie.end_ids] = True
        return found

    def shortest(self, state: int) -> int:
        """从这里写到合格，至少还要几个词元；怎样也写不到是 FAR。"""
        return int(self.distance[state])

    def fits(self, remaining: int) -> bool:
        """从头写起，remaining 个词元够不够；在跑模型之前问。"""
        # 一个字节一个词元地写，总写得下：不必算准的
        if self.trie.has_every_byte and self.automaton.distance[START] <= remaining:
            return True
        return self.shortest(START) <= remaining

    # ── 名单与距离 ──────────────────────────────────────────────────────

    def _live(self, state: int) -> tuple[np.ndarray, Tensor, int]:
        """（每个词元到哪里，许不许，名单上最远的离合格多远；无路可走是 −1）；余地不限时的答案。

        形状：(V,) int32、(V,) 布尔、一个整数；算一次就记住
        """
        found = self._masks.get(state)
        if found is None:
            targets = self.trie.walk(self.automaton.table, state)  # (V,)
            # 先用便宜的尺子：还差几个字节
            bound = self.automaton.distance
            # 拼得出任何字节，「字节上有救」就是「词元上有救」；否则要看词元走得到哪里
            if not self.trie.has_every_byte:
                bound = self.distance
                targets[bound[targets] == FAR] = DEAD
            live = targets != DEAD
            farthest = int(bound[targets[live]].max(initial=-1))
            # 名单给模型那边用，去处留在这里：快写满时还要按它比远近
            mask = torch.from_numpy(live)
            if self.accepts(state):
                mask = mask.clone()
                mask[self.trie.end_ids] = True
            if len(self._masks) >= MOST_MASKS:  # 先进先出：写过去的状态多半不再来
                del self._masks[next(iter(self._masks))]
            found = self._masks[state] = targets, mask, farthest
        return found

    @cached_property
    def distance(self) -> np.ndarray:
        """每个状态到合格至少几个词元：(S,)；走不到的是 FAR。

        从起点把走得到的状态全走一遍，记下谁能到谁，再从合格的倒着数
        """
        table, accepting = self.automaton.table, self.automaton.accepting
        backward: list[list[int]] = [[] for _ in table]
        stack, seen = [START], {START}
        while stack:
            # 起点走不到的状态不必管：文本不会到那里
            state = stack.pop()
            # 五万个词元只到得了几个状态：记有无，比排序去重快
            reached: np.ndarray = np.zeros(len(table), dtype=bool)
            reached[self.trie.walk(table, state)] = True
            reached[DEAD] = False
            for target in np.flatnonzero(reached).tolist():
                # 倒着记：target 的前一步可以是 state
                backward[target].append(state)
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        # 死状态本来就到不了合格，只是 walk 用它作「走不通」，别让它混进来
        found = count_back(accepting, backward)
        found[DEAD] = FAR
        return found


def demo() -> None:
    """半个汉字的词元；余地越小，名单越短；与逐个词元硬试对照；算一张名单要多久。"""
    from inference.regex_syntax import parse_regex
    from tokenization.tokenizer import Tokenizer

    # 语料很小，词表里有「春」「夏天」，也有半个汉字
    lines = ["春天来了。春眠不觉晓，夏天的雨。spring summer autumn winter 12 345"]
    tokenizer = Tokenizer.train_bpe(lines * 2, 330)
    trie = TokenTrie(tokenizer)
    print(f"词表 {trie.vocab_size}，排成 {len(trie.levels)} 层，不许的特殊词元 1 个")
    guide = TokenGuide(ByteAutomaton(parse_regex("(春|夏)天+"), "season"), trie)

    # 拼得成字的照字印，半个字印十六进制
    def shown(mask: Tensor) -> str:
        names = [tokenizer.token_bytes(i) for i in mask.nonzero()[:, 0].tolist()]
        return " ".join(
            data.decode() if data.isascii() or len(data) % 3 == 0 else data.hex() for data in names
        )

    state = guide.start
    print(f"1. 规则 (春|夏)天+，最短 {guide.shortest(state)} 个词元。走一条路，看名单：")
    # 「夏天」正好是一个词元；换成「春天」就要两步
    ids = tokenizer.encode("夏天")
    for token in ids:
        print(f"   可写 {shown(guide.allowed(state, 99))}　→ 写 {tokenizer.token_bytes(token)!r}")
        assert guide.allowed(state, 99)[token]
        state = guide.step(state, token)
    print(f"   可写 {shown(guide.allowed(state, 99))}；合格：{guide.accepts(state)}")
    assert guide.allowed(state, 99)[tokenizer.end_id]

    print("2. 同一个状态，还能写几个，名单就有多长：")
    for remaining in (1, 2, 3, 9):
        allowed = guide.allowed(state, remaining)
        print(f"   还能写 {remaining} 个：{int(allowed.sum())} 个可选")
        # 到 9 就与 3 一样长：余地够了，多也没有用。
        # 硬试：每个词元走一步，看它之后还来不来得及
        for token in trie.spelling:
            after = guide.step(state, token)
            assert bool(allowed[token]) == (after != DEAD and guide.shortest(after) < remaining)

    # 这张名单很短，枝早早就死了；名单长的要几毫秒，见 benchmarks/RESULTS.md
    start = time.perf_counter()
    for _ in range(100):
        trie.walk(guide.automaton.table, guide.start)
    print(f"3. 一张名单 {(time.perf_counter() - start) * 10:.3f} 毫秒，以后从缓存里取")


if __name__ == "__main__":
    run_demo(demo)
