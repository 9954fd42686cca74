r"""下一个词元怎样便宜地猜？——翻翻前文有没有说过，或者请一个小模型打草稿。

两种猜法（guesser），同一个问法：给你此刻的全文，猜接下来的 n 个。

翻前文（prompt lookup）：拿末尾的几个词元去找它们上一次出现的地方，抄后面的

    … 床 前 明 月 光 … 床 前 ▮        末尾「床 前」出现过
         └───┘ 明 月 光 …             上次后面是「明 月 光」，就猜它
                                      不要模型，几乎白给；改写、翻译、代码、JSON 里最灵

先找长的，找不到再找短的；越长越可信，所以至少要 SHORTEST 个。抄到了末尾还不够，就接着抄自己刚猜的：
「哈哈哈」就能一直猜下去。每个 n 元组只记它最近一次后面的位置，所以每步只添几条，不必从头找。

打草稿（draft model）：小模型自己往下写 n 个；它每步读的权重是大模型的几十分之一

    床 前 ──小模型──▶ 明 ──小模型──▶ 月 ──小模型──▶ 光      写 n 个，它跑 n 步
    上次猜错的退掉（缓存截短），新定下的补读，不从头来

两个模型必须用同一个分词器：编号对不上，草稿就是乱码，一个也不会对。所以先比指纹，不同就报错。

草稿用与正文相同的温度、惩罚、规则、运气去选（由调用者给的 choose 决定），为的是像：
小模型（分布 q）像大模型（p），运气又相同，选中的就多半相同。怎样选都不影响对错，只影响猜中几个，

$$P(\text{猜中}) = P\Big(\arg\min_v \frac{E_v}{p_v} = \arg\min_v \frac{E_v}{q_v}\Big)$$

两种怎么选？先试翻前文：不要第二个模型，也几乎不花时间；写的东西与提示重复得多（改写、摘要、
补全代码、填表）就够了。自由发挥的文本里重复少，才请小模型。两种都用同一个问法：

    猜法 = source.begin()                     每份文本一个，有自己的记性
    猜法.guess(全文, n, choose) → 至多 n 个   全文每次都长一些，它自己对照上次猜的对了几个

常见的错法：
    拿整个前文从头找一遍        写 n 个词元要找 n²/2 次；记下位置，每步只添几条
    末尾的几个词元配上了自己    后面什么也没有，抄不出来；所以只记后面还有字的位置
    小模型忘了退回去            它接着自己错的草稿往下写，越猜越远

常见疑问：
    小模型要多小？      它的一步比大模型的一步便宜五倍以上才值；层数少最有用，见 pace.py 的表
    上下文比大的短呢？  它滑动就是：忘掉一半再读；只是猜得差些，写出来的仍由大模型定
    翻前文会抄错吗？    会，多半会；错了就退掉，代价只是大模型多看了几列

论文：Leviathan 等 2023 (arXiv:2211.17192)；Saxena 2023《Prompt Lookup Decoding》。

改哪里：换一种猜法（例如多头 Medusa、n 元语言模型）→ 照 Guesser 写一个类；找多长 → LONGEST。
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from torch import Tensor

from foundation.checks import check_int
from foundation.demonstration import run_demo
from inference.decoder import Decoder

if TYPE_CHECKING:
    from gpt_model.model import GPT
    from tokenization.tokenizer import Tokenizer

__all__ = ["Choose", "DraftModel", "Guesser", "PromptLookup"]

LONGEST, SHORTEST = 4, 2  # 拿末尾几个去找
ENDLESS = 2**31  # 要写几个：不知道，没有上限

# （草稿的分数 (1, V)，已猜的几个）→ 选哪个；None 是不必再猜（规则已满足、文章已结束）
Choose: TypeAlias = "Callable[[Tensor, list[int]], int | None]"


class Guesser(Protocol):
    """一份文本的猜法；有自己的记性，所以每份文本各用一个。"""

    def guess(self, ids: Sequence[int], n: int, choose: Choose) -> list[int]:
        """全文（提示加写的）之后的至多 n 个；一个也猜不出就是空的。

        约定：ids 只会变长；上次猜的可能全对、可能全错，由它自己对照
        """


class PromptLookup:
    """翻前文；与模型、分词器都无关。"""

    # 太短的到处都配得上，抄来的多半不对；太长的难得配上
    def __init__(self, longest: int = LONGEST, shortest: int = SHORTEST) -> None:
        self.shortest = check_int("shortest", shortest, 1)
        self.longest = check_int("longest", longest, self.shortest)

    def check(self, tokenizer: Tokenizer) -> None:
        """只看编号，什么分词器都行。"""

    def begin(self) -> Guesser:
        """为一份新的文本准备一个。

        索引里只有这份文本自己的：别的文本里出现过的，抄来也是别人的话
        """
        return _Pages(self.longest, self.shortest)


class _Pages:
    """一份文本的索引：n 个连着的词元 → 它最近一次出现之后的位置。"""

    def __init__(self, longest: int, shortest: int) -> None:
        self.sizes = range(longest, shortest - 1, -1)  # 长的在前
        # 一个词元至多添三条（长短各一条），所以内存与文本一样长
        self.after: dict[tuple[int, ...], int] = {}
        self.indexed = 0  # 位置小于它的都记过了

    def guess(self, ids: Sequence[int], n: int, choose: Choose) -> list[int]:
        """先补记新写的，再拿末尾去找。"""
        # ① 位置 i 之前的几个词元，后面接的是 ids[i]；末尾自己后面还没有东西，所以到 len − 1 为止
        for i in range(self.indexed, len(ids)):
            for size in self.sizes:
                if size <= i:
                    # 同样的几个词元，后来的盖掉先前的：近处的更像此刻
                    self.after[tuple(ids[i - size : i])] = i
        self.indexed = len(ids)
        # ② 先找长的：配上的越多，越可能真是同一处
        #    全文只有一两个词元时，连末尾的几个都凑不齐，就跳过
        for size in self.sizes:
            begin = self.after.get(tuple(ids[-size:])) if size <= len(ids) else None
            if begin is not None:
                # ③ 抄到末尾还不够，接着抄刚猜的：循环也猜得下去
                found = list(ids[begin : begin + n])
                while len(found) < n:
                    found.append(found[begin + len(found) - len(ids)])
                return found
        return []


class DraftModel:
    """小模型打草稿。

    错误：分词器与大模型的不同 → ValueError，写明两个指纹
    约定：小模型在推理模式下用，不记梯度；由生成器管
    例：DraftModel(GPT.load("runs/small"), Tokenizer.load("runs/small"))，再交给 Speculation
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer

    def check(self, tokenizer: Tokenizer) -> None:
        """编号对得上吗？词表一样大也不够：同一个编号得是同一段文字。"""
        mine, its = self.tokenizer, tokenizer
        if mine.fingerprint != its.fingerprint:
            raise ValueError(
                "the draft model's tokenizer differs from the model's: "
                f"{mine.vocab_size} tokens ({mine.fingerprint[:12]}) against "
                f"{its.vocab_size} tokens ({its.fingerprint[:12]}); "
                "a draft model must be trained with the same tokenizer"
            )

    def begin(self) -> Guesser:
        """为一份新的文本准备一个。

        模型大家共用，缓存各有各的：里面是这份文本的前文
        """
        return _Draft(self.model, self.tokenizer.vocab_size)


class _Draft:
    """一份文本的草稿：小模型与它自己的缓存。"""

    def __init__(self, model: GPT, vocab_size: int) -> None:
        self.model, self.vocab_size = model, vocab_size
        self.decoder: Decoder | None = None
        self.held: list[int] = []  # 小模型手里的全文，末尾可能是猜错的
        self.sure = 0  # 其中上次就定下的，不会再变

    def guess(self, ids: Sequence[int], n: int, choose: Choose) -> list[int]:
        """对齐，再往下写 n 个。"""
        decoder, guessed = self._aligned(ids), list[int]()
        # 每圈：小模型打分，照大模型的规矩选一个，喂回去
        while True:
            token = choose(decoder.next_logits(), guessed)
            # 说不必再猜了：文章到此结束，或者规则已满足
            if token is None:
                return guessed
            guessed.append(token)
            # 最后一个不必喂：后面没有要猜的了
            if len(guessed) == n:
                return guessed
            decoder.append([token])
            self.held.append(token)

    def _aligned(self, ids: Sequence[int]) -> Decoder:
        """手里的改成 ids：猜错的退掉，没见过的补上；第一次就从头读。"""
        # 只有上次猜的那几个可能不同，所以只在它们里面找分岔的地方
        same = self.sure
        while same < min(len(self.held), len(ids)) and self.held[same] == ids[same]:
            same += 1
        wrong = len(self.held) - same
        # 上下文小得连错的那几个之前都忘了（滑动过），也只好从头读
        if self.decoder is None or wrong >= len(self.decoder.windows[0]):
            # 它的上下文可以比大模型的短：滑动；写多长不由它定，缓存总照它的上下文开
            self.decoder = Decoder(
                self.model, [ids], max_new_tokens=ENDLESS, sliding=True, vocab_size=self.vocab_size
            )
            self.held, self.sure = list(ids), len(ids)
            return self.decoder
        # 退掉猜错的；新定下的先记着，下次打分时一起喂进去
        self.decoder.rewind(wrong)
        for token in ids[same:]:
            self.decoder.append([token])
        self.held[same:], self.sure = ids[same:], len(ids)
        return self.decoder


def demo() -> None:
    """翻前文猜中几个；小诗人给自己打草稿；不同的分词器各有各的编号，所以拒绝。"""
    import torch

    from inference.poet import learn_poems
    from tokenization.tokenizer import Tokenizer

    # ① 同一句说第二遍：前两个字之后，后面的都抄得到
    text = "白日依山尽，黄河入海流。白日"
    ids = [ord(letter) for letter in text]
    lookup = PromptLookup().begin()

    def nothing(_: Tensor, __: list[int]) -> int | None:
        return None  # 翻前文不用它选

    guess = "".join(map(chr, lookup.guess(ids, 5, nothing)))
    print(f"1. 「{text}」之后，翻前文猜「{guess}」")
    assert guess == "依山尽，黄"
    guess = "".join(map(chr, PromptLookup().begin().guess([ord("哈")] * 3, 6, nothing)))
    print(f"   「哈哈哈」之后，猜「{guess}」：抄到末尾，接着抄自己猜的")
    assert guess == "哈" * 6
    assert PromptLookup().begin().guess([1, 2, 3, 4], 5, nothing) == []

    # ② 打草稿：同一个模型给自己打，贪心，必然全对；退掉与补上之后，与从头读一样
    model, tokenizer, _ = learn_poems()
    best = DraftModel(model, tokenizer).begin()
    ids = tokenizer.encode("床前明月")

    def greedy(logits: Tensor, _: list[int]) -> int:
        return int(logits.argmax())

    with torch.inference_mode():
        guessed = best.guess(ids, 6, greedy)
        print(f"2. 「床前明月」之后，打草稿「{tokenizer.decode(guessed)}」")
        # 假装第三个起不对：改成别的字，它退掉三个，再接着写
        changed = [*ids, *guessed[:2], *tokenizer.encode("白")]
        again = best.guess(changed, 3, greedy)
        fresh = DraftModel(model, tokenizer).begin().guess(changed, 3, greedy)
        print(f"   改成「{tokenizer.decode(changed)}」之后：{tokenizer.decode(again)}")
    assert again == fresh

    # ③ 词表恰好一样大也不行
    other = Tokenizer.characters(["甲乙丙"])
    try:
        DraftModel(model, tokenizer).check(other)
        raise AssertionError("another tokenizer was accepted")
    except ValueError as error:
        print(f"3. {error}")


if __name__ == "__main__":
    run_demo(demo)
