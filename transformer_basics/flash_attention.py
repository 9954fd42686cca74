r"""不把 T×T 的打分表存下来，怎样算注意力？——在线 softmax，一块一块地算（FlashAttention）。

softmax 的分母要看完整行才知道，所以教科书的写法先存下整张表。其实可以边走边修正：
走到第 j 块键时只记三样——见过的最大分数 m、以 m 为底的分母 ℓ、以 m 为底的分子 a：

$$m' = \max(m, \max_k s_k),\quad c = e^{m - m'},\quad
  \ell' = c\,\ell + \sum_k e^{s_k - m'},\quad a' = c\,a + \sum_k e^{s_k - m'} v_k$$

走完一行，O = a/ℓ，恰好等于整行一起算。反向也不存 P：只留每行一个数 L = m + ln ℓ，
要用时重算 P = exp(S − L)，再照 softmax 的反向（D = rowsum(dO ⊙ O)，每行一个数）：

    dV = Pᵀ dO     dP = dO Vᵀ     dS = P ⊙ (dP − D)     dQ = dS K/√d     dK = dSᵀ Q/√d

            键的块 →                        ■ 全看得见：连掩码都不用造
    查      ■ ◪ · · ·                       ◪ 一部分：造一张 (块 × 块) 的小掩码
    询      ■ ■ ◪ · ·                       · 一个也看不见：跳过，不读也不乘
    的      · ■ ■ ◪ ·  ← 窗口之外也跳过
    块↓     · · ■ ■ ◪     文档之间也跳过

为什么反向只要 D：softmax 的导数是 ∂P_k/∂S_j = P_k(δ_kj − P_j)，所以
dS_j = Σ_k dP_k·P_k(δ_kj − P_j) = P_j(dP_j − Σ_k P_k·dP_k)。后面那个和跨过整行，好像又要整张表；
可是 dP_k = dO·v_k，于是 Σ_k P_k·dP_k = dO·(Σ_k P_k v_k) = dO·O：每行一个数，前向的输出里就有。

容易写错的五处，错了也不报错：
  · 换了底却忘了给分子 a 打折（只改了 ℓ）——最大值出现得越晚，错得越多；
  · 整行还没看见任何键时 m = −∞，−∞ − (−∞) 是 NaN；
  · 反向里用没有掩码的 S 重算 P——看不见的键也收到了梯度；
  · D 用了 16 位的 O 与 dO 去乘——两个相近的数相减，有效数字全没了；
  · 跳过的块多跳一块：结果仍像话，只是最旧的那个键没人看。
本页的测试各守一处。

内存：存到反向的是 Q、K、V、O 与 L，随 T 线性增长；最大的临时数也不再是 T²（演示里量给你看）。
代价：P 算两遍。它在 GPU 上仍然更快，因为慢的是搬表而不是乘法；在 CPU 上由 Python 逐块派发，
只为读懂。真要跑得快，用 fast_attention.py；同一算法的 GPU 核见 flash_kernel.py。

同一件事的三种写法，从省力到省内存：
  attention.py          整张表，一步一步，全书以它为准；
  blocked_attention.py  查询分块、键不分：每块看得见自己的全部键，softmax 一次算对；
  本页                  查询与键都分块：softmax 也要分几次算，才需要在线修正。
用法：CausalSelfAttention(implementation="flash")，或 model.use_implementation("flash")；
给了整张掩码或随机失活时，它交给快路。

论文：Milakov 与 Gimelshein 2018 在线 softmax (arXiv:1805.02867)；
     Dao 等 2022《FlashAttention》(arXiv:2205.14135)；Dao 2023，第二版的循环次序 (arXiv:2307.08691)

改哪里：新的可见性规则、哪些块跳过 → attention_tiles.py；
       打分的花样（软限幅、偏置）→ scores_of，并在反向的 dS 处乘上它的导数。
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foundation.demonstration import new_figure, run_demo, save_figure
from transformer_basics.attention_tiles import Rules, rules_for, tile_plan, visible_in_tile

__all__ = ["flash_attention"]


def scores_of(query: Tensor, key: Tensor, scale: float, visible: Tensor | None) -> Tensor:
    """一块的打分 S = QKᵀ·scale，看不见处 −∞。

    形状：query (B, G, R·t, d)、key (B, G, s, d)、visible (1 或 B, 1, t, s) → (B, G, R·t, s)；
          同组的 R 个查询头看同样的键，排成 R·t 行一次乘完，K、V 一份也不用抄
    """
    # 这张表是全页最大的临时数：(R·t) × s，由块的大小定，与 T 无关
    scores = query @ key.transpose(-2, -1) * scale
    if visible is None:
        return scores
    # 同组各头的可见性相同，掩码照样抄 R 遍接成行；−∞ 使 exp 恰好是 0，不必再乘掩码
    groups = scores.shape[-2] // visible.shape[-2]  # R
    return scores.masked_fill(~visible.repeat(1, 1, groups, 1), -torch.inf)


def fold(x: Tensor, n_kv_heads: int) -> Tensor:
    """同组的头叠成行：(B, H, t, d) → (B, G, R·t, d)，float32 起步。

    头的次序是组内相邻（第 h 个查询头用第 h // R 个键值头，见 heads.py），所以 reshape 就够了
    """
    # 16 位的输入在这里变宽：几十块累加下来，16 位的和早就不动了
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.to(wide).reshape(x.shape[0], n_kv_heads, -1, x.shape[-1])


def unfold(x: Tensor, n_heads: int) -> Tensor:
    """fold 的逆：(B, G, R·t, d) → (B, H, t, d)。

    只是换个看法，不抄数据；写回大张量的那一下才抄
    """
    return x.reshape(x.shape[0], n_heads, -1, x.shape[-1])


def nothing_seen(query: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """一块键也没看过时的 (m, ℓ, a)：最大值 −∞，分母与分子都是 0。

    从这里出发，第一块与后面的块走同一条路，不必另写一个开头
    """
    rows = query.shape[:-1]
    top = query.new_full((*rows, 1), -torch.inf)
    return top, query.new_zeros(*rows, 1), query.new_zeros(*rows, width)


def online_softmax(
    state: tuple[Tensor, Tensor, Tensor], scores: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """见了新的一块键，修正 (m, ℓ, a)；公式在本页开头。

    形状：m、ℓ (…, t, 1)，a (…, t, e)，scores (…, t, s)，value (…, s, e)
    为什么要最大值：e^s 在 s > 88 时就超出 float32；减去最大值后每一项都不超过 1。
    为什么可以随时换底：分子与分母同乘 e^(m − m')，商不变
    """
    # ① 新的底：旧的最大与这一块的最大，取大的
    top, total, weighted = state
    new_top = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
    # 至今什么也没看见的行，m 还是 −∞；减 0 而不减 −∞，否则 −∞ − (−∞) 是 NaN
    base = new_top.masked_fill(new_top == -torch.inf, 0.0)
    # 第一块时 m = −∞，折扣 e^(−∞) = 0：旧账本来就是 0，乘什么都行
    p, correction = torch.exp(scores - base), torch.exp(top - base)
    # ② 分母与分子用同一个折扣，再各加新的一份
    total = correction * total + p.sum(dim=-1, keepdim=True)
    return new_top, total, correction * weighted + p @ value


class _FlashAttention(torch.autograd.Function):
    """前向存 Q、K、V、O 与每行的 L；反向照同一份 plan 再走一遍，重算 P。

    自己写反向，而不让 autograd 记下前向的每一步：那样每块的 P 都会被存下，又回到 T×T
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        documents: Tensor | None,
        rules: Rules,
        scale: float,
    ) -> Tensor:
        heads, groups, wide = query.shape[1], key.shape[1], value.shape[-1]
        # 先定好每块查询读哪些键块；反向照同一份走，不再判断
        plan = tile_plan(rules, documents)
        output = value.new_zeros(*query.shape[:-1], wide)  # (B, H, T, e)
        working = torch.promote_types(query.dtype, torch.float32)
        logsumexp = query.new_full((*query.shape[:-1], 1), torch.inf, dtype=working)
        # ① 外层查询、内层键：三个累加器只属于这一块查询，算完就写回，不留中间结果
        #    （第一版论文是外层键、内层查询，每块都要把 m、ℓ、a 写回再读出，第二版换了过来）
        for row in plan:
            part = slice(row.start, row.stop)
            q = fold(query[:, :, part], groups)  # (B, G, R·t, d)
            state = nothing_seen(q, wide)
            # ② 逐块修正；单子上没有的块，K、V 连读都不读
            for tile in row.tiles:
                visible = visible_in_tile(rules, documents, row, tile, query.device)
                k, v = (x[:, :, tile.first : tile.last].to(q.dtype) for x in (key, value))
                state = online_softmax(state, scores_of(q, k, scale, visible), v)
            #    各块都看过了，才除以分母：中间的每一步都不必归一化
            top, total, weighted = state
            # ③ 一个键也看不见的行：ℓ = 0，输出 0；L 记成 +∞，反向重算的 P 就是 0，梯度也是 0
            blind = total == 0
            result = weighted / total.masked_fill(blind, 1.0)
            per_row = (top + total.log()).masked_fill(blind, torch.inf)
            output[:, :, part] = unfold(result, heads).to(value.dtype)  # (B, H, t, e)
            logsumexp[:, :, part] = unfold(per_row, heads)  # (B, H, t, 1)
        #    换成 autograd 的话说：T×T 的 P 从未作为一个张量存在过
        # ④ 存下的都只随 T 线性增长；plan 是几十个整数，掩码用到时再画
        ctx.save_for_backward(query, key, value, output, logsumexp, documents)
        ctx.rules, ctx.scale, ctx.plan = rules, scale, plan
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Any:
        query, key, value, output, logsumexp, documents = ctx.saved_tensors
        rules, groups = ctx.rules, key.shape[1]
        # 反向的循环与前向同一个次序：dQ 属于这一块查询，算完就写回；
        # dK、dV 由许多块查询凑成，在宽的类型里累加，最后才变回去
        grad_query, grad_key, grad_value = (
            torch.zeros_like(x, dtype=logsumexp.dtype) for x in (query, key, value)
        )
        for row in ctx.plan:
            part = slice(row.start, row.stop)
            q, o, g, rows = (fold(x[:, :, part], groups) for x in (query, output, slope, logsumexp))
            # ⑤ D = rowsum(P ⊙ dP) = rowsum(dO ⊙ O)：把求和次序换一换，不用 P 也算得出来
            inner = (g * o).sum(dim=-1, keepdim=True)  # (B, G, R·t, 1)
            grad_q = torch.zeros_like(q)
            for tile in row.tiles:
                keys = slice(tile.first, tile.last)
                visible = visible_in_tile(rules, documents, row, tile, query.device)
                k, v = key[:, :, keys].to(q.dtype), value[:, :, keys].to(q.dtype)
                # ⑥ 重算这一块的 P；L 里已含最大值与分母，一次 exp 就是归一化好的
                p = torch.exp(scores_of(q, k, ctx.scale, visible) - rows)
                #    softmax 的反向：整行的影响都压在 D 里，所以一块可以单独算
                grad_s = p * (g @ v.transpose(-2, -1) - inner) * ctx.scale
                # ⑦ 叠成行的 R 个查询头，在乘法里自动加到共用的键值头上
                grad_value[:, :, keys] += p.transpose(-2, -1) @ g
                grad_key[:, :, keys] += grad_s.transpose(-2, -1) @ q
                grad_q += grad_s @ k
            grad_query[:, :, part] = unfold(grad_q, query.shape[1])
        # ⑧ 规则、比例与文档编号没有梯度
        grads = zip((grad_query, grad_key, grad_value), (query, key, value), strict=True)
        return (*(grad.to(x.dtype) for grad, x in grads), None, None, None)


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    document_ids: Tensor | None = None,
    query_tile: int = 128,
    key_tile: int = 128,
) -> Tensor:
    """分块的注意力，结果与写出来的公式相同，内存只随 T 线性增长。

    公式：O = softmax(QKᵀ·scale + M)·V，scale 默认 1/√d；M 由因果、窗口、文档三条规则合成
    形状：Q (B, H, T, d)、K (B, G, S, d)、V (B, G, S, e) → O (B, H, T, e)；H 是 G 的倍数；
          document_ids (B, S) 整数，T ≤ S；没有它时 T 可以大于 S
    类型：打分与累加至少 float32；O 与 V 同 dtype
    约定：右下角对齐；一个键也看不见的行输出 0、梯度 0
    错误：形状不合、没有因果却给窗口、块或窗口小于 1 时抛 ValueError
    """
    # 坏输入在这里停下，不让它恰好广播得通
    sizes = query_tile, key_tile
    rules = rules_for(query, key, value, causal, window, document_ids, *sizes)
    # 默认的比例与公式相同：d 个乘积之和的方差是 d，除以 √d 才回到 1；
    # 块的大小只影响快慢与临时的内存，不影响结果（差在舍入）
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    # 自动混合精度会把块里的乘法悄悄换成 bf16，反向却不会：两边的 P 就对不上了
    with torch.autocast(query.device.type, enabled=False):
        output: Tensor = _FlashAttention.apply(query, key, value, document_ids, rules, scale)
    return output


def one_row_by_hand() -> None:
    """一行五个分数，分三块走：每来一块，先把旧的账按新的最大值打折。

    第二块里出现了更大的 5，旧账乘 e^(3−5) = 0.135；第三块没有更大的，旧账不动
    """
    scores = torch.tensor([[1.0, 3.0, 2.0, 5.0, 0.0]])
    value = torch.arange(5.0)[:, None]  # v_k = k，输出就是「平均看第几个」
    state = nothing_seen(scores, 1)
    print("① 在线 softmax：分数 1 3 | 2 5 | 0，值 0 1 2 3 4")
    for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
        before = state[0]
        state = online_softmax(state, scores[:, part], value[part])
        # 折扣不另外返回：由前后两个最大值就算得出
        top, total, weighted = (float(x) for x in state)
        print(
            f"   来了 {scores[0, part].tolist()!s:10}  m = {top:.0f}  旧账打折 "
            f"{float(torch.exp(before - state[0])):.3f}  ℓ = {total:.4f}  a = {weighted:.4f}"
        )
    whole = torch.softmax(scores, -1) @ value
    print(f"   a/ℓ = {float(state[2] / state[1]):.6f}，整行一起算 {float(whole):.6f}")
    assert torch.allclose(state[2] / state[1], whole, atol=1e-6)


def equal_to_the_formula() -> None:
    """两篇文档、四个查询头共用两个键值头、窗口 40：与画出整张掩码的公式比值与梯度。

    100 不是 16 的整数倍，37 不在块的边上：边角最容易错
    """
    from transformer_basics.attention import scaled_dot_product_attention
    from transformer_basics.heads import repeat_heads
    from transformer_basics.masks import attention_mask

    query = torch.randn(2, 4, 100, 16, requires_grad=True)
    key, value = (torch.randn(2, 2, 100, 16, requires_grad=True) for _ in range(2))
    documents = (torch.arange(100) >= 37).long().expand(2, 100)
    mask = attention_mask(100, 100, document_ids=documents, window=40)
    tiled = flash_attention(
        query, key, value, window=40, document_ids=documents, query_tile=16, key_tile=16
    )
    copies = repeat_heads(key, 4), repeat_heads(value, 4)
    written = scaled_dot_product_attention(query, *copies, mask)[0]
    # 输出与三个梯度，各算一遍
    slope, inputs = torch.randn_like(tiled), (query, key, value)
    mine, right = ((y, *torch.autograd.grad(y, inputs, slope)) for y in (tiled, written))
    gaps = [float((a - b).detach().abs().max()) for a, b in zip(mine, right, strict=True)]
    print("② 与公式相差：", "  ".join(f"{n} {g:.0e}" for n, g in zip("OQKV", gaps, strict=True)))
    assert max(gaps) < 5e-6  # 只差加法的次序
    # 省在哪里：未来、窗口之外、别的文档，整块跳过
    plan = tile_plan(Rules(100, 100, True, 40, 16, 16), documents)
    read = sum(len(row.tiles) for row in plan)
    print(f"   {len(plan) ** 2} 块里只读 {read} 块，其中 ", end="")
    print(f"{sum(not tile.masked for row in plan for tile in row.tiles)} 块不用掩码")
    assert read < len(plan) ** 2 / 2


def memory_of(attend: Any, length: int) -> tuple[int, int]:
    """存到反向的字节数（同一块内存只数一次），与一个算子产出的最大张量的字节数。

    两个钩子：autograd 每存一个张量就问一声 keep；每个算子（前向与反向）都从 Watch 里过
    """
    kept: dict[int, int] = {}
    largest = 0

    class Watch(TorchDispatchMode):
        """记下每个算子产出多大。"""

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            # 算子照常执行，只是看一眼它的产出；视图也算，宁可多数
            result = func(*args, **(kwargs or {}))
            sizes = [x.nbytes for x in tree_leaves(result) if isinstance(x, Tensor)]
            largest = max([largest, *sizes])
            return result

    def keep(x: Tensor) -> Tensor:
        # 转置、切片与原张量同住一块内存：以地址为键，只数一次
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    # 反向在前向的线程里跑，所以 Watch 也看得见它
    inputs = [torch.randn(1, 1, length, 32, requires_grad=True) for _ in range(3)]
    with Watch():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            output = attend(*inputs)
        torch.autograd.grad(output.sum(), inputs)
    return sum(kept.values()), largest


def memory_table() -> dict[str, list[tuple[int, int, int]]]:
    """两种算法在 T = 256 … 2048 各占多少：(T, 存到反向, 最大临时)。

    写出来的公式存下打分、权重等好几张 T×T；分块的只存 4·T·d + T 个数
    """
    from transformer_basics.attention import causal_mask, scaled_dot_product_attention

    def written(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q, k, v, causal_mask(q.shape[2], q.shape[2]))[0]

    ways = {"formula": written, "flash": flash_attention}
    lengths = (256, 512, 1024, 2048)
    return {name: [(n, *memory_of(attend, n)) for n in lengths] for name, attend in ways.items()}


def demo() -> None:
    """手算一行，对答案，再量内存。

    内存是数出来的字节，与机器无关，所以可以断言；快慢随机器而变，这里不比
    """
    one_row_by_hand()
    equal_to_the_formula()
    print("③ 一个头、每头 32 维、float32：存到反向的（最大的一个临时张量），KiB")
    for name, rows in memory_table().items():
        print(f"   {name:8}" + "".join(f"  T={n} {k >> 10}（{t >> 10}）" for n, k, t in rows))
        # T 从 512 到 2048：公式的存量近于 16 倍，分块的恰好 4 倍
        growth = rows[-1][1] / rows[1][1]
        assert growth > 14 if name == "formula" else growth < 4.1


def plot(path: Path) -> None:
    """内存随 T 怎样长：双对数坐标，斜率 2 的是公式，斜率 1 的是分块。

    两条线在 T 小时也不相交：公式把打分、权重与掩码都留给反向，分块的只留输入与输出
    """
    figure, axis = new_figure()
    for name, rows in memory_table().items():
        axis.loglog([r[0] for r in rows], [r[1] / 2**20 for r in rows], "o-", label=name)
    axis.set(xlabel="T", ylabel="saved for backward, MiB", title="attention, one head, d = 32")
    axis.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    run_demo(demo, plot)
