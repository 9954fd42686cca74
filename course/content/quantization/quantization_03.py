import torch
from torch import Tensor


def pack_int4(q: Tensor) -> Tensor:
    """
    zh: 两个四比特的数装进一个字节：先加 8 挪到 0 … 15，相邻两个里前一个放低四位，后一个放高四位
    en: Two 4-bit numbers in a byte: add 8 to bring them to 0 … 15; of two neighbours the first goes
    en: into the low four bits, the second into the high ones

    q (N, K) int8, −8 … 7, K even → (N, K/2) uint8
    """
    # >>>
    codes = (q + 8).to(torch.uint8)
    low, high = codes[:, 0::2], codes[:, 1::2]
    return low | (high << 4)
    # <<< raise NotImplementedError


def unpack_int4(packed: Tensor) -> Tensor:
    """
    zh: 拆开，还原成 −8 … 7
    en: Take apart, back to −8 … 7

    packed (N, K/2) uint8 → (N, K) int8
    """
    # >>>
    low, high = packed & 15, packed >> 4
    codes = torch.stack([low, high], dim=-1).flatten(1)
    return codes.to(torch.int8) - 8
    # <<< raise NotImplementedError
