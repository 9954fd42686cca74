r"""每个提速值多少？——各有一个名字、一个开关；关掉它再量一次，差多少就是多少。

    名字       关掉之后                                         在哪一页
    written    线性层交给 autocast                              linear.py
    joined     q、k、v 各乘各的                                 linear.py
    pieces     瘦长的乘法不切开                                 linear.py
    blocked    注意力交给库的核                                 blocked_attention.py
    backward   归一化、旋转、ReLU² 的反向交给 autograd          written_backward.py
    documents  打包的几篇画成一张掩码                           document_attention.py

$$\text{一个提速的份额} = \frac{t(\text{关掉它})}{t(\text{全开})} - 1$$

关着的时候量到的是「别的都在，独缺它」：几个提速相乘，份额不能直接相加。

这些开关只改快慢，不改公式：两边的结果只差舍入，由各页的测试对照。
benchmarks/train_throughput.py --shares 逐个关掉，印出各自的份额；documents 不在其列，
那里每行只有一篇，它什么也不做，自己的页里另有对照。

改哪里：加一个提速 → 这里加一个名字，在它的页里问一声 SPEED_UPS[名字]。
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from foundation.demonstration import run_demo

__all__ = ["SPEED_UPS", "without"]

# 整个程序共用一份；默认全开
SPEED_UPS: dict[str, bool] = dict.fromkeys(
    ("written", "joined", "pieces", "blocked", "backward", "documents"), True
)


@contextmanager
def without(*names: str) -> Iterator[None]:
    """暂时关掉几个提速；出来时恢复原样，出了错也恢复。

    错误：名字不认识时抛 KeyError，免得写错了还以为关掉了
    """
    # 先照名字记下原来的样子；名字不认识的，还没动手就在这里停下
    before = {name: SPEED_UPS[name] for name in names}
    SPEED_UPS.update(dict.fromkeys(names, False))
    try:
        yield
    finally:
        SPEED_UPS.update(before)


def demo() -> None:
    """开、关、再开；写错名字当场就知道。"""
    # 全开是默认的样子
    print(f"① {len(SPEED_UPS)} 个提速，默认全开：" + "、".join(SPEED_UPS))
    with without("blocked", "pieces"):
        # 关着的只有点了名的
        off = [name for name, on in SPEED_UPS.items() if not on]
        print(f"② 里面关着 {len(off)} 个：{off}")
        assert off == ["pieces", "blocked"]
    # 出来之后一个也不少
    assert all(SPEED_UPS.values())
    print(f"③ 出来之后 {sum(SPEED_UPS.values())} 个全开")
    # 写错的名字若被悄悄忽略，量出来的「份额」就全是零
    try:
        with without("blokced"):
            pass
    except KeyError as error:
        print(f"④ 写错名字：没有 {error} 这个提速")
    # 出错也照样恢复：否则一次失败的测量，会拖慢后面所有的
    try:
        with without("written"):
            raise RuntimeError("stopped half way")
    except RuntimeError:
        print(f"⑤ 半路出错：written 又是 {SPEED_UPS['written']}")
    # finally 在抛出去之前已经做完
    assert SPEED_UPS["written"]


if __name__ == "__main__":
    run_demo(demo)
