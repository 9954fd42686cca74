# zh: 字节级 BPE，字节编号 0 到 255，第一条合并的编号是 256。先在纸上算，再填数。
# en: Byte-level BPE: bytes are 0 to 255, the first merge is 256. Work on paper first.

# zh: "明月a" 没有任何合并时是几个词元
# en: the tokens of "明月a" without any merge
n_bytes = (
    # >>>
    3 + 3 + 1
    # <<< None
)
# zh: "aaaaa" 里 (a, a) 这一对数得几次
# en: how often the pair (a, a) is counted in "aaaaa"
n_pairs = (
    # >>>
    4
    # <<< None
)
# zh: 合并 (a, a) 之后，"aaaaa" 剩几个词元
# en: the tokens left of "aaaaa" after merging (a, a)
n_left = (
    # >>>
    2 + 1
    # <<< None
)
# zh: 第三条合并的编号
# en: the id of the third merge
third_id = (
    # >>>
    256 + 2
    # <<< None
)
# zh: 学了 1000 条合并，词表多大
# en: the size of the vocabulary after 1000 merges
vocab_size = (
    # >>>
    256 + 1000
    # <<< None
)
# zh: "aaaaaaaa" 上学三条合并，最长的词元有几个字节
# en: the bytes of the longest token after three merges learned on "aaaaaaaa"
longest = (
    # >>>
    2**3
    # <<< None
)
