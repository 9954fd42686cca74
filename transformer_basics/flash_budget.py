r"""分块的注意力，块取多大？——先算搬运的账，再算片上内存（SRAM）的账。

GPU 的乘法远比搬运快。一个头、T 个词元、每头 d 维，前向要搬几个数：

$$\underbrace{4T^2 + 4Td}_{\text{公式：S、P 各写出、读回一遍}} \quad\to\quad
  \underbrace{2Td + T}_{Q,\,O,\,L\;\text{各一次}} +
  \underbrace{2Td\cdot T/B_Q}_{\text{每块查询读一遍 } K,V}$$

乘法没有少：两次矩阵乘，共 4T²d 次运算。除以搬的字节（16 位时每个数 2 字节），T 大时

    公式  4T²d / 8T²        = d/2   次运算每字节
    分块  4T²d / (4T²d/B_Q) = B_Q   次运算每字节     ← 只由查询块的行数定，与 d 无关

数据中心的卡每搬一字节能做几百次 16 位的运算：64/2 = 32 次远远喂不饱它，所以 B_Q 越大越好，
直到片上装不下。片上要放什么（乘 2：算这一块时，下一块已在路上）：

    前向    q (B_Q×d)           k、v (B_K×(d+e)) ×2
    反向    k、v (B_K×(d+e))    q、dO (B_Q×(d+e)) ×2    P (B_Q×B_K)    L、D (B_Q) ×2

于是块的选法只是一张从大到小的单子：取第一个放得下的。16 位的乘法由张量核做，累加器之外
不占寄存器；float32 走普通的乘加，两个操作数都要进寄存器，先满的是寄存器，所以预算小一些。

常见的误会：
  · 「分块少算了」——没有，反向还多算一遍 P；少的是搬运；
  · 「K、V 读了 T/B_Q 遍，太浪费」——相邻的程序读同样的 K、V，多半在 L2 里就有，不到显存；
  · 「块越大越好」——一个程序占满 SRAM，处理器上就只住得下它一个，等数据时无人替补。

论文：Dao 等 2022《FlashAttention》定理 2，搬运 Θ(T²d²/M)，M 是片上的大小 (arXiv:2205.14135)；
     Williams 等 2009 屋顶线模型（roofline），doi:10.1145/1498765.1498785

改哪里：新的卡、新的块 → SRAM_BUDGETS 与两张单子；测试把三个核真的编译到几代卡上，
       核对编译器报的 SRAM 与这里的账。
"""

from __future__ import annotations

from pathlib import Path

from foundation.demonstration import new_figure, run_demo, save_figure

__all__ = ["bytes_moved", "padded", "sram_bytes", "tile_sizes"]

# 每个程序的预算，键是每个数的字节：从消费级到数据中心的卡，一个程序都拿得到 99 KiB
SRAM_BUDGETS = {2: 96 * 1024, 4: 56 * 1024}
FORWARD_TILES = ((128, 64), (64, 64), (64, 32), (32, 32), (32, 16), (16, 16))
# 反向每一块要同时放 P、dP，并养着 dK、dV 两个累加器，所以从小一号起
BACKWARD_TILES = FORWARD_TILES[1:]


def padded(width: int) -> int:
    """补到 2 的幂，至少 16：张量核一次乘的最小边长。

    补出来的列是 0，对内积没有影响；代价是 d = 80 的头按 128 算
    """
    return max(16, 1 << (width - 1).bit_length())


def sram_bytes(
    head: int, wide: int, itemsize: int, tiles: tuple[int, int], backward: bool = False
) -> int:
    """一个程序在片上要放几个字节；公式见本页开头。

    形状：head、wide 是 d、e，tiles 是 (B_Q, B_K)
    约定：是估计；编译器有时让 k、v 少等一块（少用），有时换布局要借一块地方（多用）
    """
    query_tile, key_tile = tiles
    head, wide = padded(head), padded(wide)
    if not backward:
        return itemsize * (query_tile * head + 2 * key_tile * (head + wide))
    # dK、dV 的程序：键留在片上，查询一块块经过
    resident, streamed = key_tile * (head + wide), 2 * query_tile * (head + wide)
    return itemsize * (resident + streamed + query_tile * key_tile) + 2 * 4 * query_tile


def tile_sizes(head: int, wide: int, itemsize: int, backward: bool = False) -> tuple[int, int]:
    """从大到小试，取第一个放得下的 (B_Q, B_K)。

    错误：连最小的块也放不下时抛 ValueError，说出两个数
    """
    budget = SRAM_BUDGETS[itemsize]
    for tiles in BACKWARD_TILES if backward else FORWARD_TILES:
        if sram_bytes(head, wide, itemsize, tiles, backward) <= budget:
            return tiles
    raise ValueError(f"no tile with heads of {head} and {wide} fits into {budget} bytes")


def bytes_moved(length: int, head: int, query_tile: int, itemsize: int) -> tuple[int, int]:
    """一个头的前向搬几个字节：(公式, 分块)；不计因果省下的一半。

    约定：L 总是 float32；T 不是块的整数倍时，最后半块也要读一遍 K、V
    """
    formula = 4 * length**2 + 4 * length * head
    tiles = 2 * length * head + 2 * length * head * -(-length // query_tile)
    return formula * itemsize, tiles * itemsize + 4 * length


def demo() -> None:
    """两本账，各印一张表；数字都由公式算出，与机器无关，所以可以断言。"""
    print("① 一个头、d = 64、16 位，前向搬的 MiB：公式 → 分块（B_Q = 128）")
    for length in (1024, 4096, 16384):
        formula, tiled = bytes_moved(length, 64, 128, 2)
        work = 4 * length**2 * 64  # 两次矩阵乘，每次 2·T²·d 次运算
        print(
            f"   T = {length:5d}  {formula / 2**20:7.1f} → {tiled / 2**20:6.1f}"
            f"   每字节的运算 {work / formula:3.0f} → {work / tiled:3.0f}"
        )
        # 越长越接近 d/2 与 B_Q
        assert 29 < work / formula < 32
        assert 110 < work / tiled < 128
    # 块小一半，搬运就多一倍：T²d/B_Q 那一项占了绝大部分
    small, large = (bytes_moved(16384, 64, tile, 2)[1] for tile in (64, 128))
    print(f"   B_Q 由 128 减到 64，搬运是原来的 {small / large:.2f} 倍")
    assert 1.9 < small / large < 2.0

    print("② 挑出的 (B_Q, B_K) 与它占的 KiB：前向｜反向")
    for itemsize, budget in SRAM_BUDGETS.items():
        print(f"   {8 * itemsize} 位，预算 {budget >> 10} KiB")
        for head in (16, 64, 80, 128):
            line = f"     d = {head:3d}（补到 {padded(head):3d}）"
            for backward in (False, True):
                tiles = tile_sizes(head, head, itemsize, backward)
                used = sram_bytes(head, head, itemsize, tiles, backward)
                line += f"  {tiles!s:9} {used / 1024:5.1f}"
                assert used <= budget
            print(line)
    # d = 80 按 128 算：与 d = 128 占的一样多
    assert tile_sizes(80, 80, 2) == tile_sizes(128, 128, 2)


def plot(path: Path) -> None:
    """搬运随 T 怎样长：两条线都是平方，分块的低 2·B_Q/d 倍。

    小的块也画一条：它在两者之间
    """
    figure, axis = new_figure()
    lengths = [2**n for n in range(8, 16)]
    axis.loglog(lengths, [bytes_moved(n, 64, 128, 2)[0] / 2**20 for n in lengths], label="formula")
    for tile in (32, 128):
        moved = [bytes_moved(n, 64, tile, 2)[1] / 2**20 for n in lengths]
        axis.loglog(lengths, moved, label=f"tiles of {tile} queries")
    axis.set(xlabel="T", ylabel="MiB moved", title="forward, one head, d = 64, 16 bits")
    axis.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    run_demo(demo, plot)
