r"""GPU 上的一个程序（program）做什么？——分块注意力的三个核，用 Triton 写出来。

flash_attention.py 有两层 Python 循环。到了 GPU 上，外层变成许多个同时跑的程序，一块查询一个；
内层留在程序里。K、V 一块块搬进片上的小内存（SRAM），S、P 生在片上、死在片上，
大而慢的显存（HBM）里从来没有它们：

$$\text{对每一块 } K_j, V_j:\quad S = qK_j^\top\!/\sqrt d,\quad P = e^{S - m'},\quad
  a \leftarrow e^{m - m'}a + PV_j \qquad O = a/\ell,\quad L = m + \ln \ell$$

    显存  Q ──┐ 搬一次    K₀ V₀ │ K₁ V₁ │ K₂ V₂ │ …  逐块搬         ┌──► O、L 写一次
    ──────────┼─────────────────┼──────────────────────────────────┼────────────────
    片上    q (BQ×d)     k, v (BK×d) ─► S ─► P ─► m、ℓ、a 修正 ────┘
                                                  （始终在寄存器里）

Triton 的写法：核是一个函数，program_id 说「我是第几个」；张量是「块」，由指针加一格格的偏移读来；
大写的参数是常数（constexpr），每换一组就另编译一份，所以 if CAUSAL 在跑的时候不存在。

反向是两个核：dQ 属于一块查询，dK、dV 属于一块键，各自在片上累加、写一次；不用原子加，
每次的结果就一字不差地相同。代价是 P 重算两遍。分了组的头，由 dK、dV 的程序走遍同组的查询头。

在核里容易写错、Python 里却没有的事：
  · 块要 2 的幂、矩阵乘至少 16：补出来的行列读成 0，多出的键必须在 softmax 之前遮掉；
  · float32 的 tl.dot 默认用 TF32，只有三位有效数字，要明说 "ieee"；
  · 地址是 32 位的：头的起点先变成 int64 再乘，否则大批量时回绕到别人的内存；
  · 至今什么也没看见的行 m = −∞：先换成减 0，否则 −∞ − (−∞) 是 NaN，整行都完了。

没有 Triton 的地方（Windows、macOS）本页照样导入，只是核不能跑；怎样跑见 flash_kernel.py。

论文：Dao 等 2022《FlashAttention》(arXiv:2205.14135)；
     Dao 2023，第二版：外层查询、内层键 (arXiv:2307.08691)；
     Tillet 等 2019《Triton》(doi:10.1145/3315508.3329973)

改哪里：打分的花样（软限幅、偏置）→ scores_of，并在两个反向核的 grad_s 处乘上它的导数；
       新的可见性规则 → scores_of 逐格，keys_for、queries_for 整块；
       想读不连续的张量 → 给 load_rows 传行的步长。
"""

# 核的参数是片上的块，类型由 Triton 自己推：
# mypy: disable-error-code="no-untyped-def"
# 大写的参数是编译时的常数，这是 Triton 的惯例：
# ruff: noqa: N803
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foundation.demonstration import run_demo
from transformer_basics.attention_tiles import Rules, tile_plan

try:
    import triton
    import triton.language as tl
except ImportError:  # 这个平台没有轮子：页照样能读，核不能跑
    triton = None

__all__ = ["forward_kernel", "key_value_gradient_kernel", "query_gradient_kernel", "triton"]


def jit(function: Callable[..., Any]) -> Any:
    """有 Triton 就编译，没有就原样留着给人读。

    编译发生在第一次启动时；设了 TRITON_INTERPRET=1，就改由 numpy 逐句执行
    """
    return function if triton is None else triton.jit(function)


@jit
def load_rows(base, rows, n_rows, D: tl.constexpr, PADDED: tl.constexpr):
    """搬几行上片，越界处读成 0。

    形状：base 指向一张紧挨着的 (n_rows, D)；rows (R,) 是行号 → (R, PADDED)
    约定：遮掉的格子不会去读，所以行号可以超出；补的 0 不改变内积
    """
    columns = tl.arange(0, PADDED)  # (PADDED,)
    inside = (rows[:, None] < n_rows) & (columns[None, :] < D)  # (R, PADDED)
    # 一格一个地址：行号 × 每行几个数 + 列号；相邻的列相邻，才能合成一次宽的读
    return tl.load(base + rows[:, None] * D + columns[None, :], mask=inside, other=0.0)


@jit
def store_rows(base, rows, n_rows, x, D: tl.constexpr, PADDED: tl.constexpr):
    """load_rows 的逆：x (R, PADDED) 写回 base 的那几行，只写界内。"""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < n_rows) & (columns[None, :] < D)
    where = base + rows[:, None] * D + columns[None, :]  # (R, PADDED) 个地址
    # 片上累加是 float32，落到显存才变回张量的类型：全程只舍入这一次
    tl.store(where, x.to(base.dtype.element_ty), mask=inside)


@jit
def scores_of(q, k, rows, keys, documents, n_queries, n_keys, window, scale, CAUSAL: tl.constexpr):
    """一块的打分，看不见处 −∞；可见性与 masks.py 同一套规则，在片上现算。

    形状：q (BQ, d)、k (BK, d)、rows (BQ,) 与 keys (BK,) 是它们的序号 → (BQ, BK)
    为什么不读掩码：一张 T×T 的掩码又要从显存里搬；由序号现算，只要几次整数比较
    documents 指向这一句的 S 个编号，或者是 None：那时 Triton 连这几行都不编译
    """
    # float32 的输入不许悄悄变成 TF32；16 位的输入本来就按 float32 累加
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    position = n_keys - n_queries + rows  # (BQ,)，右下角对齐
    distance = position[:, None] - keys[None, :]  # (BQ, BK)，隔了几步；负数是未来
    visible = (keys < n_keys)[None, :]  # 补出来的键谁也不许看
    #    窗口总是有的：没有窗口时，调用者给一个够不着的大数
    if CAUSAL:
        visible = visible & (distance >= 0) & (distance < window)
    #    查询的文档由它在键里的位置查出来；补出来的行读成什么都行，写回时不写它
    if documents is not None:
        mine = tl.load(documents + position, mask=rows < n_queries, other=-1)
        theirs = tl.load(documents + keys, mask=keys < n_keys, other=-1)
        visible = visible & (mine[:, None] == theirs[None, :])
    return tl.where(visible, scores, float("-inf"))


@jit
def keys_for(
    start, n_queries, n_keys, window, CAUSAL: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr
):
    """从 start 起的一块查询要走哪一段键 [first, last)：未来与窗口之外，整块不读。

    公式：块内位置 p₀ … p₀+BQ−1；first = ⌊max(p₀ − w + 1, 0) / BK⌋·BK，last = min(p₀ + BQ, S)
    约定：first 落在块的边上；段里的块多半整块看得见，逐格的规则只在两头起作用
    """
    first, last = 0, n_keys
    if CAUSAL:
        lowest = n_keys - n_queries + start  # p₀；T > S 时可以是负数，那一段就是空的
        first = max(lowest - window + 1, 0) // BK * BK  # 最早的查询够得着的最旧的键
        last = min(lowest + BQ, n_keys)  # 最晚的查询自己
    return first, last


@jit
def queries_for(
    start, n_queries, n_keys, window, CAUSAL: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr
):
    """反过来：从 start 起的一块键，被哪一段查询 [first, last) 看见。

    公式：键 j 看得见它的查询是 j … j + w − 1；一块键取并集，再换成查询的序号
    """
    first, last = 0, n_queries
    if CAUSAL:
        index = start - (n_keys - n_queries)  # 键 start 自己是第几个查询
        first = max(index, 0) // BQ * BQ  # 比最旧的键还早的查询，谁也看不见
        last = min(index + BK - 1 + window, n_queries)  # 最新的键滑出窗口之后
    return first, last


@jit
def forward_kernel(
    query, key, value, documents, output, logsumexp, n_heads, n_groups, n_queries, n_keys, window,
    scale, CAUSAL: tl.constexpr, D: tl.constexpr, E: tl.constexpr, D_PAD: tl.constexpr,
    E_PAD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """一个程序管一块查询：与 flash_attention.py 的 ①②③ 逐行对应。

    形状：query (B, H, T, D)、key (B, G, S, D)、value (B, G, S, E)、documents (B, S) 或 None
          → 写满 output (B, H, T, E) 与 logsumexp (B, H, T)
    约定：张量都紧挨着；传进来的是指针，形状由几个整数另给
    """
    # ① 我是谁：第几句第几头（pair = b·H + h）的第几块查询；第 h 头用第 h // (H/G) 个键值头
    #    同一头的程序编号相邻，几乎同时跑，读同样的 K、V，后来的在 L2 里就找得到
    blocks = tl.cdiv(n_queries, BQ)
    pair = (tl.program_id(0) // blocks).to(tl.int64)  # 接着要乘 T·d：先变宽
    start = tl.program_id(0) % blocks * BQ
    shared = pair // n_heads * n_groups + pair % n_heads // (n_heads // n_groups)
    if documents is not None:
        documents += pair // n_heads * n_keys
    rows = start + tl.arange(0, BQ)  # (BQ,)
    q = load_rows(query + pair * n_queries * D, rows, n_queries, D, D_PAD)  # (BQ, d)
    # ② 三个累加器在寄存器里；逐块搬 K、V，在线修正
    top = tl.full([BQ], float("-inf"), tl.float32)  # m
    total = tl.zeros([BQ], tl.float32)  # ℓ
    weighted = tl.zeros([BQ, E_PAD], tl.float32)  # a
    first, last = keys_for(start, n_queries, n_keys, window, CAUSAL, BQ, BK)
    for begin in range(first, last, BK):
        keys = begin + tl.arange(0, BK)
        k = load_rows(key + shared * n_keys * D, keys, n_keys, D, D_PAD)
        v = load_rows(value + shared * n_keys * E, keys, n_keys, E, E_PAD)
        s = scores_of(q, k, rows, keys, documents, n_queries, n_keys, window, scale, CAUSAL)
        #    从这里起与 online_softmax 一字不差：新的底、打折、各加新的一份
        new_top = tl.maximum(top, tl.max(s, 1))  # (BQ,)
        base = tl.where(new_top == float("-inf"), 0.0, new_top)  # −∞ − (−∞) 是 NaN
        p, correction = tl.exp(s - base[:, None]), tl.exp(top - base)
        total = correction * total + tl.sum(p, 1)  # 先加 float32 的 P，再舍入
        #    P 变回 V 的类型再乘：16 位才用得上张量核；和仍是 float32
        weighted *= correction[:, None]
        weighted += tl.dot(p.to(v.dtype), v, input_precision="ieee")
        top = new_top
    # ③ 除以分母，写回；一个键也看不见的行：O = 0，L = +∞，反向的 P 便是 0
    blind = total == 0.0
    result = weighted / tl.where(blind, 1.0, total)[:, None]
    store_rows(output + pair * n_queries * E, rows, n_queries, result, E, E_PAD)
    per_row = tl.where(blind, float("inf"), top + tl.log(total))  # L = m + ln ℓ
    tl.store(logsumexp + pair * n_queries + rows, per_row, mask=rows < n_queries)


@jit
def query_gradient_kernel(
    query, key, value, documents, slope, logsumexp, inner, grad_query, n_heads, n_groups,
    n_queries, n_keys, window, scale, CAUSAL: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    D_PAD: tl.constexpr, E_PAD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dQ = dS·K，dS = P ⊙ (dO·Vᵀ − D)·scale：循环与前向同一个样子。

    形状：slope 是 dO (B, H, T, E)，logsumexp 与 inner 是 L 与 D (B, H, T)
          → 写满 grad_query (B, H, T, D)
    """
    # ④ 与前向同样地认领一块查询；多读一块 dO，与每行两个数
    blocks = tl.cdiv(n_queries, BQ)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    start = tl.program_id(0) % blocks * BQ
    shared = pair // n_heads * n_groups + pair % n_heads // (n_heads // n_groups)
    if documents is not None:
        documents += pair // n_heads * n_keys
    rows = start + tl.arange(0, BQ)
    q = load_rows(query + pair * n_queries * D, rows, n_queries, D, D_PAD)
    g = load_rows(slope + pair * n_queries * E, rows, n_queries, E, E_PAD)
    lse = tl.load(logsumexp + pair * n_queries + rows, mask=rows < n_queries, other=float("inf"))
    delta = tl.load(inner + pair * n_queries + rows, mask=rows < n_queries, other=0.0)
    grad_q = tl.zeros([BQ, D_PAD], tl.float32)
    first, last = keys_for(start, n_queries, n_keys, window, CAUSAL, BQ, BK)
    for begin in range(first, last, BK):
        keys = begin + tl.arange(0, BK)
        k = load_rows(key + shared * n_keys * D, keys, n_keys, D, D_PAD)
        v = load_rows(value + shared * n_keys * E, keys, n_keys, E, E_PAD)
        # ⑤ L 里已含最大值与分母，一次 exp 就是归一化好的 P
        s = scores_of(q, k, rows, keys, documents, n_queries, n_keys, window, scale, CAUSAL)
        p = tl.exp(s - lse[:, None])  # (BQ, BK)，看不见处 e^(−∞) = 0
        grad_p = tl.dot(g, tl.trans(v), input_precision="ieee")  # (BQ, BK)
        grad_s = p * (grad_p - delta[:, None]) * scale
        grad_q += tl.dot(grad_s.to(k.dtype), k, input_precision="ieee")  # (BQ, d)
    store_rows(grad_query + pair * n_queries * D, rows, n_queries, grad_q, D, D_PAD)


@jit
def key_value_gradient_kernel(
    query, key, value, documents, slope, logsumexp, inner, grad_key, grad_value, n_heads, n_groups,
    n_queries, n_keys, window, scale, CAUSAL: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    D_PAD: tl.constexpr, E_PAD: tl.constexpr, BQ: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """dV = Pᵀ·dO、dK = dSᵀ·Q：一个程序管一块键，走遍看得见它的查询。

    形状：→ 写满 grad_key (B, G, S, D) 与 grad_value (B, G, S, E)
    为什么另起一个核：dQ 沿键求和，dK、dV 沿查询求和；合在一个核里，总有一边要原子加
    """
    # ⑥ 认领一块键，K、V 留在片上；流过的是 Q、dO、L、D
    blocks = tl.cdiv(n_keys, BK)
    shared = (tl.program_id(0) // blocks).to(tl.int64)  # b·G + g
    start = tl.program_id(0) % blocks * BK
    share = n_heads // n_groups
    if documents is not None:
        documents += shared // n_groups * n_keys
    keys = start + tl.arange(0, BK)
    k = load_rows(key + shared * n_keys * D, keys, n_keys, D, D_PAD)
    v = load_rows(value + shared * n_keys * E, keys, n_keys, E, E_PAD)
    grad_k = tl.zeros([BK, D_PAD], tl.float32)  # 许多块查询都加到这里，所以是 float32
    grad_v = tl.zeros([BK, E_PAD], tl.float32)
    first, last = queries_for(start, n_queries, n_keys, window, CAUSAL, BQ, BK)
    # ⑦ 同组的 H/G 个查询头都往这一块键上加；同一个程序依次加，不与别人抢
    for member in range(0, share):
        pair = shared * share + member  # (b·G + g)·H/G + r = b·H + h
        for begin in range(first, last, BQ):
            rows = begin + tl.arange(0, BQ)
            inside = rows < n_queries
            #    这两块在下一轮就换掉；编译器把下一轮的读提前，与这一轮的乘法同时做
            q = load_rows(query + pair * n_queries * D, rows, n_queries, D, D_PAD)
            g = load_rows(slope + pair * n_queries * E, rows, n_queries, E, E_PAD)
            lse = tl.load(logsumexp + pair * n_queries + rows, mask=inside, other=float("inf"))
            delta = tl.load(inner + pair * n_queries + rows, mask=inside, other=0.0)
            s = scores_of(q, k, rows, keys, documents, n_queries, n_keys, window, scale, CAUSAL)
            p = tl.exp(s - lse[:, None])  # 补出来的查询：L = +∞，P = 0，什么也不加
            grad_v += tl.dot(tl.trans(p.to(g.dtype)), g, input_precision="ieee")  # (BK, e)
            grad_p = tl.dot(g, tl.trans(v), input_precision="ieee")
            grad_s = p * (grad_p - delta[:, None]) * scale
            #    scale 已乘在 grad_s 里，所以用的是没有乘过 scale 的 Q
            grad_k += tl.dot(tl.trans(grad_s.to(q.dtype)), q, input_precision="ieee")
    store_rows(grad_key + shared * n_keys * D, keys, n_keys, grad_k, D, D_PAD)
    store_rows(grad_value + shared * n_keys * E, keys, n_keys, grad_v, E, E_PAD)


def walks(rule: Any, n_blocks: int, tile: int, rules: Rules) -> list[tuple[int, int]]:
    """每个程序走的那一段 [first, last)：在 Python 里直接叫核用的那两个函数。

    它们只做整数的加减与取大取小，所以没有 Triton 也算得出来
    """
    plain = getattr(rule, "fn", rule)  # jit 过的函数，原来的在 fn 里
    window = rules.window or rules.n_queries + rules.n_keys
    shape = rules.n_queries, rules.n_keys, window, rules.causal
    sizes = rules.query_tile, rules.key_tile
    return [plain(block * tile, *shape, *sizes) for block in range(n_blocks)]


def demo() -> None:
    """每个程序走哪几块：核里的几行算术，与 attention_tiles.py 的单子对照。

    两份代码各写各的：单子用 Python 逐块判断，核只算两头；边角错一格，这里就对不上
    """
    for name, rules in (
        ("因果", Rules(64, 64, True, None, 16, 16)),
        ("窗口 24", Rules(64, 64, True, 24, 16, 16)),
        ("缓存之后的 20 个查询", Rules(20, 64, True, 24, 16, 16)),
    ):
        plan = tile_plan(rules)
        by_query = walks(keys_for, len(plan), rules.query_tile, rules)
        by_key = walks(queries_for, -(-rules.n_keys // rules.key_tile), rules.key_tile, rules)
        print(f"{name}：T = {rules.n_queries}、S = {rules.n_keys}")
        for index, (row, (first, last)) in enumerate(zip(plan, by_query, strict=True)):
            print(f"   程序 {index}：查询 {row.start:2d}–{row.stop - 1:2d} 走键 [{first}, {last})")
            # 走的恰好是单子上的那几块，一块不多、一块不少
            assert list(range(first, last, 16)) == [tile.first for tile in row.tiles]
        parts = (f"[{first}, {last})" if first < last else "不走" for first, last in by_key)
        print("   dK、dV 的程序走查询 " + "  ".join(parts))
        # 反过来也要对得上：查询块读键块 ⇔ 键块的程序走到那块查询
        seen = {(row.start, tile.first) for row in plan for tile in row.tiles}
        back = {(q, 16 * j) for j, (a, b) in enumerate(by_key) for q in range(a, b, 16)}
        assert seen == back
    print("Triton：" + ("没有安装，核只供阅读" if triton is None else triton.__version__))


if __name__ == "__main__":
    run_demo(demo)
