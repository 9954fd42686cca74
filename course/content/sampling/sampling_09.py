# zh: 五个词元的概率是 0.4、0.3、0.15、0.1、0.05，编号从 0 起。先在纸上算，再填数。
# en: Five tokens with probabilities 0.4, 0.3, 0.15, 0.1, 0.05, ids from 0. Work on paper first.

# zh: top-p = 0.6 留下几个
# en: how many top-p = 0.6 keeps
top_p_keeps = (
    # >>>
    2
    # <<< None
)
# zh: min-p = 0.2 留下几个
# en: how many min-p = 0.2 keeps
min_p_keeps = (
    # >>>
    4
    # <<< None
)
# zh: 按它抽，u = 0.75，抽到几号
# en: the id drawn with u = 0.75
drawn = (
    # >>>
    2
    # <<< None
)
# zh: 温度从 1 降到 0.5，0 号的概率是 4 号的几倍（原来是 8 倍）
# en: at temperature 0.5, how many times likelier is id 0 than id 4 (it was 8 times)
odds = (
    # >>>
    8**2
    # <<< None
)
# zh: 另一个模型给某词元 −2 分；它说过了，重复惩罚 1.25 之后是几分
# en: another model scores a token −2; it was seen: its score after a repetition penalty of 1.25
penalized = (
    # >>>
    -2 * 1.25
    # <<< None
)
# zh: 第一步：甲 0.6、乙 0.4。甲之后最好的一步 0.5，乙之后最好的一步 0.9。
# zh: 束宽 2，走两步，最好一条路的概率
# en: First step: A 0.6, B 0.4. The best step after A has 0.5, after B 0.9.
# en: Width 2, two steps: the probability of the best path
best_path = (
    # >>>
    0.4 * 0.9
    # <<< None
)
