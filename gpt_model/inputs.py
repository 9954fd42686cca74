r"""长短不一的句子怎样放进同一批？填充、位置、掩码，三件事一起才对。

张量必须是方的，句子却有长有短。短的补上填充（padding），再告诉模型哪些是真的：

    左填充（生成时用，最后一列都是真词元）        右填充（训练时用）
      ids   ·  ·  床 前        mask  0 0 1 1       床 前 ·  ·      1 1 0 0
            白 日 依 山              1 1 1 1       白 日 依 山     1 1 1 1

  · 位置：填充不占位置。「床」是第 0 个词，无论左边补了多少：pos_t = Σ_{s≤t} mask_s − 1
  · 掩码：谁都不许看填充；填充自己看自己，免得一行全是 −∞，softmax 变成 NaN
  · 损失：填充处的标签写成 ignore_index，见 loss.py

另一种省法是打包（packing）：几篇短文首尾相接放进一行，不浪费一个位置，但彼此不能偷看：

      ids           床 前 明 月 │ 白 日 依 山
      document_ids  0  0  0  0  │ 1  1  1  1         掩码 = 因果 且 同一篇

三种约束最后合成一个布尔掩码 (B, 1, T, S)，真表示「可以看」；什么约束都没有时返回 None，
让注意力走最快的因果路径，连掩码都不必造。只有文档这一种约束时也不必造：一篇一篇地算，
见 transformer_basics/document_attention.py。

改哪里：新的可见性规则（前缀可双向看等）→ transformer_basics/masks.py 与 build_mask；
       多一种进门检查 → check_inputs。
"""

from __future__ import annotations

import torch
from torch import Tensor

from foundation.demonstration import run_demo
from transformer_basics.attention import attention_mask as visible
from transformer_basics.document_attention import Visibility, document_runs
from transformer_basics.kv_cache import ModelCache

__all__ = ["build_mask", "check_inputs", "real_positions", "visibility"]


def check_inputs(
    ids: Tensor,
    start: int,
    *,
    vocab_size: int,
    max_seq_len: int | None,
    document_ids: Tensor | None,
) -> None:
    """在查表之前拦住坏输入：越界的编号在 GPU 上只会得到一句看不懂的断言。

    形状：ids (B, T)，T ≥ 1；start 是缓存里已有的词元数；滑动的缓存没有上限，给 None
    错误：形状不对、编号越界、超出上下文、缓存与文档编号并用 → ValueError，写明值与上限
    """
    # ① 形状：一句话也要写成一行的批 (1, T)
    if ids.ndim != 2 or ids.shape[1] == 0:
        raise ValueError(f"ids must have shape (B, T) with T >= 1, got {tuple(ids.shape)}")
    # 滑动的缓存自己保证位置不越界，不问第二条
    # ② 长度：学出来的位置表只有这么多行；RoPE 没有表，但没训练过的距离同样不可信
    n_new = ids.shape[1]
    if max_seq_len is not None and start + n_new > max_seq_len:
        raise ValueError(
            f"{start + n_new} tokens (cached {start} + new {n_new}) do not fit into "
            f"max_seq_len {max_seq_len}"
        )
    # ③ 缓存里的词元属于哪篇文档没有记下来，无从判断新词元能不能看它们
    if document_ids is not None and start:
        raise ValueError(f"document_ids cannot be used with a cache (cached length {start})")
    # ④ 编号只在 CPU 上检查：在 GPU 上取最大值会迫使 CPU 停下来等它算完
    if ids.device.type == "cpu" and not torch.compiler.is_compiling():
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < 0 or high >= vocab_size:
            raise ValueError(
                f"token id {low if low < 0 else high} is outside the vocabulary: "
                f"ids must be >= 0 and < {vocab_size}"
            )


def check_real(real: Tensor, start: int, n_new: int) -> None:
    """掩码要连缓存里的词元一起说明，否则左填充的行会看见自己的填充。

    形状：real (B, S)，S = start + T
    错误：长度不是 S → ValueError，两个数都说
    """
    # 若恰好差到只剩 1 列，广播会一声不响地算错
    if real.shape[1] != start + n_new:
        raise ValueError(
            f"attention_mask must cover cached {start} + new {n_new} tokens, "
            f"got length {real.shape[1]}"
        )


def real_positions(real: Tensor, n_new: int) -> Tensor:
    """每个新词元的位置：数一数它前面有几个真词元，填充不算。

    公式：pos_t = max(0, Σ_{s≤t} real_s − 1)
    形状：real (B, S) 布尔 → (B, T)，只取最后 T = n_new 个
    """
    # 开头的填充前面没有真词元，得 −1；取 0 即可，反正没有谁会看它
    return (real.long().cumsum(dim=1) - 1).clamp(min=0)[:, -n_new:]


def visibility(
    ids: Tensor,
    cache: ModelCache | None,
    real: Tensor | None,
    document_ids: Tensor | None,
    window: int | None,
) -> Visibility | None:
    """交给各层的「谁看得见谁」：能一篇一篇地算就说每篇占哪一段，否则画成掩码。

    形状：ids、document_ids (B, T)，real (B, S)；→ None（普通的因果）、DocumentRuns 或 (B, 1, T, S)
    约定：整个前向只判断一次，各层共用；判断只看形状与文档的边界，同样的批总走同样的路
    错误：同 build_mask
    """
    start = 0 if cache is None else cache.length
    # 滑动的缓存自己画掩码，只要知道填充；以后的词元都是真的，不必再说
    if cache is not None and cache.reach is not None:
        # 不画就等于没有这条规则：宁可停下
        if document_ids is not None:
            raise ValueError("document_ids cannot be used with a sliding cache")
        # 提示分几段喂时，每段都说一次
        if real is not None:
            check_real(real, start, ids.shape[1])
            cache.note_padding(real)
        return None
    # 有填充、有缓存的不切：看得见谁不只由文档决定；(1, T) 的编号靠广播，掩码那条路认得
    alone = cache is None and real is None
    if document_ids is not None and alone and document_ids.shape == ids.shape:
        runs = document_runs(document_ids)  # None：有断成几段的，或不该看数据
        # 每行一篇：文档什么也没遮，就是普通的因果
        if runs is not None and runs.whole_rows:
            return None
        # 太碎的不值得：派发比乘法贵
        if runs is not None and runs.pays:
            return runs
    # 其余的画成一张表
    return build_mask(ids.shape[1], start, real, document_ids, window)


def build_mask(
    n_new: int,
    start: int,
    real: Tensor | None,
    document_ids: Tensor | None,
    window: int | None,
) -> Tensor | None:
    """把因果、填充、文档、窗口合成一个「可以看」的掩码。

    形状：real (B, S)，document_ids (B, T) → (B, 1, T, S)，S = start + T；都没有 → None
    错误：real 的长度不是 S → ValueError
    """
    n_keys = start + n_new  # S
    given = real if real is not None else document_ids
    if given is None:
        return None  # 注意力自己会用因果的快路径，窗口也由它处理
    if real is not None:
        check_real(real, start, n_new)
    return visible(
        n_new,
        n_keys,  # 新词元之外还有缓存里的
        key_padding=real,  # 填充谁也不许看
        document_ids=document_ids,  # 只看同一篇
        window=window,  # 只看最近的
        device=given.device,
    )


def demo() -> None:
    """两句长短不一的话：左填充成一批，与各自单独算对照；再打包成一行。"""
    from gpt_model.config import preset  # 模型要用本课，所以到演示时才取
    from gpt_model.model import GPT

    model = GPT(preset("modern-micro", vocab_size=50, n_layers=2, init_std=0.2)).eval()
    # init_std 取大一些：注意力有了分明的偏好，看错一个词元就看得出来
    short, long = torch.tensor([[7, 8]]), torch.tensor([[1, 2, 3, 4]])
    ids = torch.tensor([[0, 0, 7, 8], [1, 2, 3, 4]])
    real = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    print("左填充的一批：      位置：          第一句的可见表（行看列）：")
    table = build_mask(4, 0, real, None, None)  # (2, 1, 4, 4)
    assert table is not None
    for row, places in zip(range(2), real_positions(real, 4).tolist(), strict=True):
        print(f"  {ids[row].tolist()}      {places}    {table[0, 0, row].int().tolist()}")
    print(f"{'':38}{table[0, 0, 2].int().tolist()}\n{'':38}{table[0, 0, 3].int().tolist()}")

    # 同一句话算四遍：单独、在左填充的批里、在打包的行里，以及忘了说明可见性
    with torch.no_grad():
        alone = model(short).logits
        batched = model(ids, attention_mask=real).logits[:1, 2:]
        careless = model(ids).logits[:1, 2:]  # 忘了掩码
        packed = torch.cat([short, long], dim=1)  # (1, 6)
        kind = torch.tensor([[0, 0, 1, 1, 1, 1]])  # 属于第几篇
        places = torch.tensor([[0, 1, 0, 1, 2, 3]])  # 每篇各自从 0 数起
        inside = model(packed, document_ids=kind, positions=places).logits[:, 2:]
        leaking = model(packed).logits[:, 2:]
        expected = model(long).logits
    # 形状都对、也不报错，只是答案错了：这类错误只有对照才看得见
    print("\n与单独算相差多少（logits 的最大差）：")
    for name, gap in (
        ("左填充，给了掩码", (batched - alone).abs().max()),
        ("左填充，忘了掩码", (careless - alone).abs().max()),
        ("打包，给了文档编号", (inside - expected).abs().max()),
        ("打包，忘了文档编号", (leaking - expected).abs().max()),
    ):
        print(f"  {name:<12}{gap:.1e}")
        assert (gap > 1e-2) == ("忘了" in name)  # 对的只差舍入，错的差得离谱


if __name__ == "__main__":
    run_demo(demo)
