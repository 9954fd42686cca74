import torch


def pack_int4(q):
    u = (q.to(torch.int16) + 8).to(torch.uint8)
    return u[:, 0::2] + 16 * u[:, 1::2]


def unpack_int4(packed):
    lo = (packed & 0x0F).to(torch.int8) - 8
    hi = (packed >> 4).to(torch.int8) - 8
    return torch.cat((lo, hi), dim=-1)
