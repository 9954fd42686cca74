r"""怎样用有限多个词元（token）写下任何文字？字节级 BPE（byte pair encoding）的训练与编码。

按词切，词表没有尽头，总会遇到生词；按字节切，256 种就够，可一个汉字要占 3 个编号。
BPE 走中间的路：从 256 个字节出发，反复把最常相邻的一对合并成新词元，直到词表够大：

    $(a^*, b^*) = \arg\max_{(a,b)} \sum_w c_w\, n_w(a, b)$

c_w 是小片 w 在语料中的次数，n_w(a, b) 是 a、b 在 w 里相邻的次数；并列时编号小的一对优先。

    语料   │ "low low lower"
    ① 切片 │ low        ␣low        ␣lower           合并从不越过小片的边界
    ② 字节 │ l o w      ␣ l o w     ␣ l o w e r      每个字节一个编号
    ③ 合并 │ lo w       ␣ lo w      ␣ lo w e r       l+o 出现 3 次；o+w 也是，编号大，让先
           │ low        ␣ low       ␣ low e r        lo+w 出现 3 次
           │ low        ␣low        ␣low e r         ␣+low 出现 2 次
    编码   │ 新文本重做 ①②，再按学到的先后重放 ③

字节是最底层，所以没有「未知词元」：没见过的汉字、表情，最坏也只是退回几个单字节词元。

字节级的 BPE 也不知道字在哪里断：词元可以是半个汉字，可以横跨两个汉字。这不妨碍还原原文，
只是显示时要等字节凑齐（见 `stream_decoder.py`）。

为什么并列时的规则不能随便：先合并 l+o 还是 o+w，后面学到的一切都可能不同。规则写死，
同一语料才总得到同一份词表，才能与别的实现逐项对照。

文献：Sennrich 等 2016《Neural Machine Translation of Rare Words with Subword Units》
      (arXiv:1508.07909)；Radford 等 2019《Language Models are Unsupervised Multitask
      Learners》（GPT-2，把起点换成字节）。
改哪里：怎样切片、单字节怎样编号 → `text_pieces.py`；并列时选谁 → PairTable.pop_best；
        想奖励长词元，把 pop_best 比较的次数换成 次数 × 长度，看压缩率变好还是变坏。
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path

from foundation.demonstration import new_figure, run_demo, save_figure
from tokenization.input_checks import END_OF_TEXT, check_special_tokens, check_vocab_size
from tokenization.text_pieces import BASE_BYTES, byte_symbols, split_text

__all__ = ["BytePairEncoding", "PairTable", "learn_merges", "merge_pair"]

Pair = tuple[int, int]


def merge_pair(tokens: Sequence[int], pair: Pair, new_id: int) -> list[int]:
    """从左到右把每一处 pair 换成 new_id；重叠时左边的先得。

    训练与编码共用它，所以 aaa 这样的重叠，两处的取法必然一致

    >>> merge_pair([5, 5, 5], (5, 5), 9)  # aaa → (aa) a
    [9, 5]
    >>> merge_pair([1, 2, 3, 1, 2], (1, 2), 9)
    [9, 3, 9]
    """
    merged: list[int] = []
    i = 0
    while i < len(tokens):
        if tokens[i] == pair[0] and i + 1 < len(tokens) and tokens[i + 1] == pair[1]:
            merged.append(new_id)
            i += 2  # 两个都用掉了，重叠的下一处从这之后找
        else:
            merged.append(tokens[i])
            i += 1
    return merged


class PairTable:
    """每对相邻词元的总次数，随合并增量更新，而不是每学一条就重数整个语料。

        counts  (l, o) → 3                   这一对在全语料出现几次
        places  (l, o) → {0, 1, 2}           在哪几个小片里
        heap    [(−3, (l, o)), …]            谁最多

    一次合并只改动含有这一对的小片。记住它们在哪里（places），别处的账就不用动；
    最大者用堆（heap）找，堆里的旧次数等弹出时才核对，省去在堆中间修改。

    代价：重数是 合并条数 × 语料长度；这里是 所有小片被改动的总次数 × 片长，小几个量级
    """

    def __init__(self, words: Sequence[Sequence[int]], weights: Sequence[int]) -> None:
        self.counts: defaultdict[Pair, int] = defaultdict(int)
        self.places: defaultdict[Pair, set[int]] = defaultdict(set)
        for index, word in enumerate(words):
            self.add(index, word, weights[index])
        # Python 的堆把最小的放在顶上，所以次数取负；
        # 次数相同则比较 pair，恰好是「编号小者优先」
        self.heap = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self.heap)

    def add(self, index: int, word: Sequence[int], weight: int) -> None:
        """把一个小片里的相邻对记到账上；小片在语料中出现几次，就记几次。"""
        for pair in pairwise(word):
            self.counts[pair] += weight
            self.places[pair].add(index)

    def remove(self, word: Sequence[int], weight: int) -> None:
        """合并之前，先把这个小片的旧账全部勾掉。

        places 不必同步删：多记一处只是白看一眼，合并时那里没有这一对，什么也不会变
        """
        for pair in pairwise(word):
            self.counts[pair] -= weight

    def push_pairs_with(self, token: int, words: Iterable[Sequence[int]]) -> None:
        """刚出现的词元带来的对入堆：l+o 合成 lo 之后，(␣, lo) 与 (lo, w) 开始参加竞争。

        只有它们的次数会变多；其余的对只会变少，留在堆里的旧记录偏大，等核对时再改
        """
        fresh = {pair for word in words for pair in pairwise(word) if token in pair}
        for pair in fresh:
            heapq.heappush(self.heap, (-self.counts[pair], pair))

    def pop_best(self) -> tuple[Pair, int] | None:
        """取出次数最多的一对及其次数；没有可合并的就返回 None。

        >>> table = PairTable([[1, 2, 3], [2, 3]], weights=[1, 1])
        >>> table.pop_best()
        ((2, 3), 2)
        >>> table.remove([1, 2, 3], weight=1)  # 此后 (1, 2) 一处也没有了
        >>> table.pop_best() is None
        True
        """
        while self.heap:
            claimed, pair = heapq.heappop(self.heap)
            actual = self.counts[pair]
            # 记录属实：堆里别的记录只会偏大不会偏小，所以它就是真正的最大
            if actual == -claimed and actual > 0:
                return pair, actual
            # 入堆之后变少了：带着真实次数重新排队
            if actual > 0:
                heapq.heappush(self.heap, (-actual, pair))
        return None


def learn_merges(
    words: list[list[int]], weights: Sequence[int], first_new_id: int
) -> Iterator[tuple[Pair, int]]:
    """一条接一条地学：每次产出 (被合并的一对, 它的次数)，新词元从 first_new_id 起编号。

    产出的次序就是编号的次序，也是编码时的优先次序。边学边产出，所以调用者想学几条就取几条，
    不必事先说定；words 会被就地改成合并之后的样子。

    例：1 2 3 与 2 3 两片，先合并 2+3 → 4（两次），再合并 1+4 → 5

    >>> list(learn_merges([[1, 2, 3], [2, 3]], [1, 1], first_new_id=4))
    [((2, 3), 2), ((1, 4), 1)]
    """
    table = PairTable(words, weights)
    new_id = first_new_id
    while (best := table.pop_best()) is not None:
        pair, _ = best
        # ① 只看出现过这一对的小片；排序使过程与集合的内部次序无关
        changed = sorted(table.places.pop(pair))
        for index in changed:
            # ② 勾旧账，合并，记新账
            table.remove(words[index], weights[index])
            words[index] = merge_pair(words[index], pair, new_id)
            table.add(index, words[index], weights[index])
        # ③ 新词元与左右邻居组成的对，从此参加竞争
        table.push_pairs_with(new_id, (words[index] for index in changed))
        yield best
        new_id += 1


class BytePairEncoding:
    """学到的合并表，以及用它编码与解码。

    编号的排法：特殊词元，256 个单字节（BASE_BYTES 的次序），然后每条合并一个

        0            <|endoftext|>     特殊词元（special token）不参加合并
        1 … 256      单字节            从 "!" 开始，空格、换行在后
        257 …        合并              编号 = 学到的次序

    同一语料上，合并与编号都和 `tokenizers` 库完全相同，由测试保证
    """

    def __init__(
        self, merges: Iterable[Pair] = (), special_tokens: Sequence[str] = (END_OF_TEXT,)
    ) -> None:
        self.special_tokens = {name: index for index, name in enumerate(special_tokens)}
        self.token_bytes = [name.encode("utf-8") for name in special_tokens]
        self.byte_ids: dict[int, int] = {}  # 字节 → 编号
        for byte in BASE_BYTES:
            self.byte_ids[byte] = len(self.token_bytes)
            self.token_bytes.append(bytes([byte]))
        # 编号越小学得越早，所以这一张表同时是「合并成谁」与「谁先合并」。
        # 每条合并拼出的字节串都是新的，所以词元与编号一一对应
        self.merges: dict[Pair, int] = {}
        for left, right in merges:
            self.merges[left, right] = len(self.token_bytes)
            self.token_bytes.append(self.token_bytes[left] + self.token_bytes[right])

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
    ) -> BytePairEncoding:
        """从语料学出至多 vocab_size 个词元；语料太小、再无可合并的对时会少于此数。

        错误：vocab_size 装不下特殊词元与 256 个字节、特殊词元重名时，抛 ValueError

        >>> learned = BytePairEncoding.train(["low low lower"], 260)
        >>> learned.written_merges()
        [('l', 'o'), ('lo', 'w'), ('Ġ', 'low')]
        """
        special_tokens = check_special_tokens(special_tokens)
        check_vocab_size(vocab_size, len(special_tokens))
        # ① 相同的小片只存一份，带上次数：语料再大，不同的小片也不多。
        #    中文一个分句一片，重复得少，所以训练比同样大小的英文慢
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(split_text(text))
        # ② 拆成单字节的编号
        base = cls((), special_tokens)
        words = [base.to_byte_ids(piece) for piece in counts]
        # ③ 学到词表装满为止，够了就不再往下要
        learned = learn_merges(words, list(counts.values()), base.vocab_size)
        wanted = islice(learned, vocab_size - base.vocab_size)
        return cls([pair for pair, _ in wanted], special_tokens)

    @property
    def vocab_size(self) -> int:
        """词元总数，特殊词元在内。"""
        return len(self.token_bytes)

    def to_byte_ids(self, piece: str) -> list[int]:
        """小片 → UTF-8 字节 → 单字节词元的编号。

        >>> BytePairEncoding().to_byte_ids("a月")  # 月 = e6 9c 88
        [65, 163, 251, 231]
        """
        return [self.byte_ids[byte] for byte in piece.encode("utf-8")]

    def encode(self, text: str) -> list[int]:
        """文本 → 编号；特殊词元的名字在这里只是普通文字，所以用户冒充不了它。"""
        # 小片大量重复，每种只算一次；课文里不设上限，库里的缓存有上限
        known: dict[str, list[int]] = {}
        ids: list[int] = []
        for piece in split_text(text):
            if piece not in known:
                known[piece] = self.encode_piece(piece)
            ids.extend(known[piece])
        return ids

    def encode_piece(self, piece: str) -> list[int]:
        """按学习的先后重放合并：每一轮找出眼前最早学到的一对，全部换掉。

        为什么不是「每次取最长的词元」：模型在训练时看到的是按先后合并的切法，
        换一种切法，同样的文字就成了它没见过的编号序列

            lower   l o w e r
            l+o     lo w e r        编号最小的先做
            lo+w    low e r         没有学过的对了，停

        >>> learned = BytePairEncoding.train(["low low lower"], 260)
        >>> [learned.token_bytes[i] for i in learned.encode_piece("lower")]
        [b'low', b'e', b'r']
        """
        tokens = self.to_byte_ids(piece)
        while len(tokens) > 1:
            # 没学过的一对记作 vocab_size，比任何编号都大
            new_id, best = min((self.merges.get(p, self.vocab_size), p) for p in pairwise(tokens))
            if new_id == self.vocab_size:
                break
            # 一次换掉所有处：新词元参与的合并都学得更晚，不会插到前面来
            tokens = merge_pair(tokens, best, new_id)
        return tokens

    def decode(self, ids: Iterable[int]) -> str:
        """编号 → 字节 → 文本；先接好全部字节再解码，半个汉字才不会变成 �。

        >>> BytePairEncoding().decode([163, 251, 231]), BytePairEncoding().decode([163, 251])
        ('月', '�')
        """
        return b"".join(self.token_bytes[i] for i in ids).decode("utf-8", errors="replace")

    def written(self, token_id: int) -> str:
        """词元在 tokenizer.json 里的写法：每个字节一个可见符号，特殊词元写名字。"""
        if token_id < len(self.special_tokens):
            return self.token_bytes[token_id].decode("utf-8")
        symbols = byte_symbols()
        return "".join(symbols[byte] for byte in self.token_bytes[token_id])

    def vocabulary(self) -> dict[str, int]:
        """返回 tokenizer.json 里的 model.vocab。"""
        return {self.written(token_id): token_id for token_id in range(self.vocab_size)}

    def written_merges(self) -> list[tuple[str, str]]:
        """返回 tokenizer.json 里的 model.merges。"""
        return [(self.written(left), self.written(right)) for left, right in self.merges]


LINES = ["low low lower lowest", "明月明月，举头望明月"]


def show(data: bytes) -> str:
    """显示一个词元：完整的文字照写，空格写成 ␣；半个字写成〈十六进制〉。"""
    try:
        return data.decode("utf-8").replace(" ", "␣")
    except UnicodeDecodeError:
        return f"〈{data.hex(' ')}〉"


def demo() -> None:
    """逐条看合并，与库对照，再看词表大小怎样换来更短的序列。"""
    from tokenization.tokenizer import Tokenizer

    # 手动走一遍 train 的三步，好在每条合并之后看一眼
    print("1. 逐条学习：", LINES)
    base = BytePairEncoding()
    counts = Counter(piece for line in LINES for piece in split_text(line))
    print("   切片：", " │ ".join(f"{show(p.encode())}×{n}" for p, n in counts.items()))
    words = [base.to_byte_ids(piece) for piece in counts]
    merges: list[Pair] = []
    for pair, count in islice(learn_merges(words, list(counts.values()), base.vocab_size), 12):
        merges.append(pair)
        names = BytePairEncoding(merges).token_bytes
        left, right = names[pair[0]], names[pair[1]]
        print(f"   {len(names) - 1}：{count} 次  {show(left)} + {show(right)} → {show(names[-1])}")
    # 「明」的末字节与「月」的前两个字节合到了一起：字节级的 BPE 不知道字在哪里断
    crossing = "明".encode()[2:] + "月".encode()[:2]
    print(f"   〈 〉里是不完整的字；{show(crossing)} 横跨「明」与「月」，再往后「明月」才合成。")
    assert crossing in names
    assert "明月".encode() in names

    print("2. 与 `tokenizers` 库逐项对照（合并、词表、编号、解码）：")
    lesson = BytePairEncoding.train(LINES, 280)
    library = Tokenizer.train_bpe(LINES, 280)
    # 两边词元总数相同，且每个编号代表的字节相同
    assert [lesson.token_bytes[i] for i in range(280)] == [
        library.token_bytes(i) for i in range(280)
    ]
    for text in ("lowest lower", "举杯邀明月", "没见过的字与表情 🀄", "aaa aaaaa", END_OF_TEXT):
        ids = lesson.encode(text)
        print(f"   {len(text):2d} 字符 {len(text.encode()):2d} 字节 → {len(ids):2d} 词元  {text!r}")
        assert ids == library.encode(text)
        assert lesson.decode(ids) == text
        assert not set(ids) & set(lesson.special_tokens.values())
    print("   全部相同；用户写出特殊词元的名字，也只是普通文字。")

    print("3. 词表越大，每个词元装的字节越多（语料：本文件自己）：")
    rates = bytes_per_token([257, 300, 400, 600, 1000])
    for vocab_size, rate in rates.items():
        print(f"   词表 {vocab_size:5d}：{rate:.2f} 字节/词元  {'█' * round(8 * rate)}")
    assert rates[257] == 1.0
    assert list(rates.values()) == sorted(rates.values())


def bytes_per_token(vocab_sizes: Sequence[int]) -> dict[int, float]:
    """在本文件的源码上训练一次，量出不同词表大小的压缩率。

    公式：压缩率 = UTF-8 字节数 / 词元数；上下文能装下的文字与它成正比

    在自己的训练文本上量，数字偏好看；真要比较分词器，应在没见过的文本上量
    """
    text = Path(__file__).read_text(encoding="utf-8")
    full = BytePairEncoding.train([text], max(vocab_sizes))
    n_base = full.vocab_size - len(full.merges)
    rates = {}
    for vocab_size in vocab_sizes:
        # 贪心的好处：小词表的合并就是大词表的开头一段，不必重新训练
        prefix = BytePairEncoding(list(full.merges)[: vocab_size - n_base])
        rates[vocab_size] = len(text.encode("utf-8")) / len(prefix.encode(text))
    return rates


def plot(path: Path) -> None:
    """画出压缩率随词表大小的变化：开头涨得快，后来越来越不划算。"""
    rates = bytes_per_token([257, 270, 300, 350, 400, 500, 600, 800, 1000])
    figure, axes = new_figure()
    axes.plot(list(rates), list(rates.values()), marker="o")
    axes.set(xlabel="vocabulary size", ylabel="bytes per token", title="BPE compression")
    save_figure(figure, path)


if __name__ == "__main__":
    run_demo(demo, plot)
