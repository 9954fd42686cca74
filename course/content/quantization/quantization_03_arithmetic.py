import torch


def pack_int4(q):
    n, k = q.shape
    pairs = q.long().reshape(n, k // 2, 2) + 8
    return (pairs * torch.tensor([1, 16])).sum(-1).to(torch.uint8)


def unpack_int4(packed):
    out = torch.empty(packed.shape[0], 2 * packed.shape[1], dtype=torch.int8)
    out[:, ::2] = packed % 16
    out[:, 1::2] = torch.div(packed, 16, rounding_mode="floor")
    out -= 8
    return out
