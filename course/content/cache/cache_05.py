# zh: 12 层，12 个查询头，4 个键值头，每头宽 64，用 float16（2 字节）。先在纸上算，再填数。
# en: 12 layers, 12 query heads, 4 key-value heads, head width 64, float16 (2 bytes). Paper first.

# zh: 一句 1000 个词元，缓存占多少字节
# en: the bytes of the cache for one text of 1000 tokens
cache_bytes = (
    # >>>
    2 * 12 * 4 * 1000 * 64 * 2
    # <<< None
)
# zh: 提示 3 个词元，再写 4 个。不用缓存，模型一共读了多少个词元（一步读 n 个就算 n）
# en: A prompt of 3 tokens, 4 to write. Without a cache, how many tokens does the model read in all
# en: (a step that reads n counts n)
read_without = (
    # >>>
    3 + 4 + 5 + 6
    # <<< None
)
# zh: 用缓存，一共读了多少个
# en: and with a cache
read_with = (
    # >>>
    3 + 1 + 1 + 1
    # <<< None
)
# zh: 写出来的第一个词元喂回去时，它是第几个（从 0 数起）
# en: the position, counted from 0, at which the first written token is fed back
first_position = (
    # >>>
    3
    # <<< None
)
# zh: 四个都写完时，缓存里有几个词元
# en: how many tokens are in the cache once all four are written
cached_at_end = (
    # >>>
    3 + 3
    # <<< None
)
