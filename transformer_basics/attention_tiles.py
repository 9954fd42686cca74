r"""哪些块要算、哪些块可以跳过？——把注意力的掩码看成一格一格的块。

掩码（masks.py）逐格回答「查询 i 能不能看键 j」；分块的算法（flash_attention.py）先按块问一遍：

    因果、窗口 24、两篇文档，T = 64，16 × 16 一块：

            键块 0 1 2 3
    查询块 0     ◪ · · ·      ■ 整块都看得见：不必造掩码，直接乘
           1     ■ ◪ · ·      ◪ 看得见一部分：造一张 16 × 16 的小掩码
           2     · · ◪ ·      · 一格也看不见：跳过，键与值连读都不读
           3     · · ◪ ◪

因果跳过右上一半；窗口让每行只剩几块，工作量从 T² 变成 T·w；几篇拼成一行的短文，
只剩对角线上的几个方块。省的是整块的，所以块越小省得越准，派发的开销也越大。

什么时候没有用：掩码在块里零零散散（例如随机稀疏）时一块也跳不过；T 不到两三块时无可跳过。

判错的两种后果不一样重：把看得见的块跳过了，结果就错；把看不见的块读了、再逐格遮掉，
只是慢一点。所以拿不准时一律读：文档的判断只看每块编号的范围，宁可多读。

块的判断只看边界。设块内查询的位置从 p₀ 到 p₁，键从 c 到 e − 1：

$$\text{因果：}\; c > p_1 \Rightarrow \text{跳过},\quad e - 1 \le p_0 \Rightarrow \text{整块可见}
\qquad \text{窗口：}\; e - 1 \le p_0 - w \Rightarrow \text{跳过},\quad c > p_1 - w
\Rightarrow \text{整块可见}$$

论文：Dao 等 2022《FlashAttention》3.3 节，块稀疏 (arXiv:2205.14135)；
     Dong 等 2024《FlexAttention》，整块与半块分开 (arXiv:2412.05496)

改哪里：新的可见性规则（例如前缀双向可见）→ tile_plan 判整块，visible_in_tile 判块内，
       两处要一致；演示与测试把全部块拼回去，与 masks.py 的整张表比。
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from foundation.checks import check_int
from foundation.demonstration import run_demo

__all__ = ["Rules", "Tile", "TileRow", "rules_for", "tile_plan", "visible_in_tile"]


class Rules(NamedTuple):
    """谁可以看谁，以及怎样分块：前向与反向照同一份规则走。

    约定：查询是键的最后 T 个，查询 i 的位置是 p = S − T + i（右下角对齐）
    """

    n_queries: int  # T
    n_keys: int  # S
    causal: bool
    window: int | None  # 只看最近几个（含自己）
    query_tile: int
    key_tile: int


def rules_for(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool,
    window: int | None,
    document_ids: Tensor | None,
    query_tile: int,
    key_tile: int,
) -> Rules:
    """从张量的形状定下规则，并拦住会悄悄算错的输入；flash_kernel.py 也从这里进门。

    形状：query (B, H, T, d)、key (B, G, S, d)、value (B, G, S, e)、document_ids (B, S)
    错误：形状不合、H 不是 G 的倍数、没有因果却给窗口、块或窗口小于 1 → ValueError
    """
    # ① 形状：批、头数、每头维数，错一个也可能恰好广播得通
    heads = query.ndim == key.ndim == 4 and query.shape[1] % key.shape[1] == 0
    same = heads and query.shape[0] == key.shape[0] and query.shape[3] == key.shape[3]
    if not (same and key.shape[:3] == value.shape[:3]):
        raise ValueError(
            "need query (B, H, T, d), key (B, G, S, d), value (B, G, S, e), H a multiple of G; got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    # ② 窗口只往回看；双向的窗口是另一条规则，这里没有
    if window is not None:
        check_int("window", window, 1)
        if not causal:
            raise ValueError(f"a window looks back only: window={window} needs causal=True")
    #    （没有因果的窗口写成 |p − j| < w，判整块时两边都要看）
    # ③ 查询属于哪一篇，由它在键里的位置查出来，所以每个查询都得在键里
    batch, n_queries, n_keys = query.shape[0], query.shape[2], key.shape[2]
    known = document_ids is None or document_ids.shape == (batch, n_keys)
    if document_ids is not None and (not known or n_queries > n_keys):
        raise ValueError(
            f"document_ids must be (batch, keys) = {(batch, n_keys)} with at most as many "
            f"queries, got {tuple(document_ids.shape)} and {n_queries} queries"
        )
    # ④ 块可以比 T、S 大：那就只有一块
    check_int("query_tile", query_tile, 1)
    check_int("key_tile", key_tile, 1)
    return Rules(n_queries, n_keys, causal, window, query_tile, key_tile)


class Tile(NamedTuple):
    """键的一块 [first, last)；masked 为假时整块都看得见。

    约定：最后一块可以短，last 不超过 S
    """

    first: int
    last: int
    masked: bool  # 真：里面有看不见的格，要造小掩码


class TileRow(NamedTuple):
    """查询的一块 [start, stop)，与它要读的键块；不在 tiles 里的键块就是跳过了。"""

    start: int
    stop: int
    tiles: list[Tile]


def document_verdicts(documents: Tensor, rules: Rules) -> tuple[list[list[bool]], list[list[bool]]]:
    """按文档编号，哪些（查询块，键块）可能有同篇的、哪些必定全同篇。

    每块只看编号的最小与最大：逐格比较要 T×T 次，正是这里要省的
    公式：两块编号的区间 [小, 大] 不相交 ⇒ 没有同篇；两块各只有一种编号且相等 ⇒ 全同篇
    形状：documents (B, S) → 两张 (查询块数, 键块数) 的真假表；批里每一行都满足才算
    约定：只多不少——说「可能」的块里还会逐格比较，所以编号不连续、不从小到大也不会错
    """
    own = documents[:, rules.n_keys - rules.n_queries :]  # (B, T)
    # 查询块与键块的大小可以不同，边界也不必对齐（T < S 时就不对齐），所以各留各的
    # 每块只留两个数，在设备上算完，一次取回：GPU 上只等这一次
    query_parts, key_parts = own.split(rules.query_tile, 1), documents.split(rules.key_tile, 1)
    low_q, low_k = (torch.stack([p.amin(1) for p in ps], 1) for ps in (query_parts, key_parts))
    high_q, high_k = (torch.stack([p.amax(1) for p in ps], 1) for ps in (query_parts, key_parts))
    q_low, q_high = low_q[:, :, None], high_q[:, :, None]  # (B, nq, 1)
    k_low, k_high = low_k[:, None], high_k[:, None]  # (B, 1, nk)
    # 区间相交只是「可能」：编号 0 与 9 的块和编号 5 的块区间相交，其实没有同篇，读了再逐格比
    possible = ((q_low <= k_high) & (k_low <= q_high)).any(0)  # (nq, nk)
    certain = ((q_low == k_high) & (k_low == q_high) & (q_low == q_high)).all(0)
    return possible.tolist(), certain.tolist()


def tile_plan(rules: Rules, documents: Tensor | None = None) -> list[TileRow]:
    """每块查询要读哪些键块，读的时候要不要掩码；不在单子上的就跳过。

    公式：块内位置最小 p₀、最大 p₁；因果：c > p₁ 跳过，e − 1 ≤ p₀ 全看得见；
          窗口：e − 1 ≤ p₀ − w 跳过，c > p₁ − w 全看得见
    约定：只用 Python 的整数算，不读张量（文档编号除外），GPU 不必停下来等
    """
    verdicts = None if documents is None else document_verdicts(documents, rules)
    offset = rules.n_keys - rules.n_queries
    # 一行一行（查询块）地看过去；每块只比几个整数，T = 8192、每块 128 也才四千来次
    plan = []
    for row, start in enumerate(range(0, rules.n_queries, rules.query_tile)):
        stop = min(start + rules.query_tile, rules.n_queries)  # 最后一块可以短
        # 这一块查询在整句里的第一个与最后一个位置
        lowest, highest = offset + start, offset + stop - 1
        tiles = []
        for column, first in enumerate(range(0, rules.n_keys, rules.key_tile)):
            last = min(first + rules.key_tile, rules.n_keys)
            masked = False
            # ① 因果：最晚的查询也看不到的，是未来；最早的查询全看得到的，不用掩码
            if rules.causal:
                if first > highest:
                    break  # 再往右全是未来
                masked = last - 1 > lowest
            # ② 窗口：方向反过来，最早的查询看得最远，最晚的查询看得最近
            if rules.window is not None:
                if last - 1 <= lowest - rules.window:
                    continue  # 连最早的那个查询也够不着
                masked = masked or first <= highest - rules.window
            # ③ 文档：几行句子的边界各不相同，有一行用得着就得读
            if verdicts is not None:
                if not verdicts[0][row][column]:
                    continue
                masked = masked or not verdicts[1][row][column]
            tiles.append(Tile(first, last, masked))
        plan.append(TileRow(start, stop, tiles))
    return plan


def visible_in_tile(
    rules: Rules, documents: Tensor | None, row: TileRow, tile: Tile, device: torch.device
) -> Tensor | None:
    """块内逐格的掩码，与 masks.py 同一套规则；整块都看得见就是 None。

    形状：→ (1 或 B, 1, t, s)，真 = 可以看；中间的 1 让所有的头共用
    """
    if not tile.masked:
        return None
    offset = rules.n_keys - rules.n_queries
    # 与 masks.py 的 causal_mask 同一个差：隔了几步，0 是自己，负数是未来
    position = torch.arange(offset + row.start, offset + row.stop, device=device)[:, None]  # (t, 1)
    distance = position - torch.arange(tile.first, tile.last, device=device)  # (t, s)
    visible = torch.ones_like(distance, dtype=torch.bool)
    if rules.causal:
        visible = distance >= 0
    if rules.window is not None:
        visible = visible & (distance < rules.window)
    # 只比块里的 t × s 格；批里每行的文档不同，所以多出 B 这一维
    if documents is None:
        return visible[None, None]
    mine = documents[:, None, offset + row.start : offset + row.stop, None]  # (B, 1, t, 1)
    return visible & (mine == documents[:, None, None, tile.first : tile.last])


def whole_mask(rules: Rules, documents: Tensor | None, batch: int) -> Tensor:
    """把每一块的可见性拼回整张掩码 (B, T, S)：跳过的全假，整块的全真。

    只为对答案：块的判断错一处（多跳一块、少画一张小掩码），这里就与 masks.py 不同
    """
    mask = torch.zeros(batch, rules.n_queries, rules.n_keys, dtype=torch.bool)
    for row in tile_plan(rules, documents):
        for tile in row.tiles:
            visible = visible_in_tile(rules, documents, row, tile, mask.device)
            part = mask[:, row.start : row.stop, tile.first : tile.last]
            part.fill_(True) if visible is None else part.copy_(visible[:, 0])
    return mask


def demo() -> None:
    """几种规则各画一张块图，数一数省了多少，再拼回去与 masks.py 对答案。

    读的格数是算法真正要乘的；看得见的格数是它的下限，两者之差是半块里白算的
    """
    from transformer_basics.masks import attention_mask

    length, size = 64, 16
    documents = (torch.arange(length) >= 32).long()[None]  # 前 32 个一篇，后 32 个一篇
    for name, window, ids in (
        ("因果", None, None),
        ("窗口 24", 24, None),
        ("两篇文档", None, documents),
        ("窗口 24、两篇文档", 24, documents),
    ):
        rules = Rules(length, length, True, window, size, size)
        plan = tile_plan(rules, ids)
        print(f"{name}：")
        for row in plan:
            drawn = {tile.first // size: "◪" if tile.masked else "■" for tile in row.tiles}
            print("   " + " ".join(drawn.get(column, "·") for column in range(len(plan))))
        # 图上的三种块各走各的路：跳过的留 0，整块的填 1，半块的逐格抄
        # 拼回去必须与逐格的掩码一字不差
        expected = attention_mask(length, length, window=window, document_ids=ids)[:, 0]
        assert torch.equal(whole_mask(rules, ids, 1), expected)
        read = sum(len(row.tiles) for row in plan) * size**2
        print(f"   读 {read} 格，其中看得见的 {int(expected.sum())} 格，全表 {length**2} 格")
    assert read == 6 * size**2  # 两条规则一起：16 块里只剩 6 块

    # 块越小，读的越接近真正看得见的；代价是块数按平方长，每块都要派发一次
    print("因果、窗口 24 时，读的格数与看得见的格数之比：")
    ratios = []
    for size in (32, 16, 8, 4):
        rules = Rules(length, length, True, 24, size, size)
        read = sum(len(row.tiles) for row in tile_plan(rules)) * size**2
        ratios.append(read / int(attention_mask(length, length, window=24).sum()))
        print(f"   {size:2d} × {size:<2d} {ratios[-1]:.3f}")
    assert ratios == sorted(ratios, reverse=True)


if __name__ == "__main__":
    run_demo(demo)
