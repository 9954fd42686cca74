# zh: 先在纸上算，再填数。
# en: Work on paper first, then fill in.

# zh: 1000 个词元一共有几道「前文 → 下一个」的题
# en: how many «text → next token» questions 1000 tokens hold
n_targets = (
    # >>>
    1000 - 1
    # <<< None
)
# zh: 每个窗口 64 道题，不重叠地排，末尾不够的往回推：一共几个窗口
# en: windows of 64 questions without overlap, the last pushed back: how many windows
n_windows = (
    # >>>
    15 + 1
    # <<< None
)
# zh: 三段长 9、3、2，补齐成一批：损失里算几道题
# en: sequences of 9, 3 and 2 tokens, padded to one batch: how many targets does the loss count
n_counted = (
    # >>>
    8 + 2 + 1
    # <<< None
)
# zh: 这一批里补齐占几成（0 到 1 之间）
# en: the share of pads in that batch (between 0 and 1)
share_padded = (
    # >>>
    13 / 27
    # <<< None
)
# zh: 两篇长 3 与 2（结束符已算在内）打包成一行：掩码里看得见的有几格
# en: documents of 3 and 2 tokens (ends included) packed in a row: how many visible cells has the
# en: mask
n_visible = (
    # >>>
    6 + 3
    # <<< None
)
