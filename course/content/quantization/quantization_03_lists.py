import torch


def pack_int4(q):
    rows = [[(a + 8) + 16 * (b + 8) for a, b in zip(r[::2], r[1::2])] for r in q.tolist()]
    return torch.tensor(rows, dtype=torch.uint8)


def unpack_int4(packed):
    rows = []
    for r in packed.tolist():
        rows.append([n - 8 for byte in r for n in (byte & 0xF, byte >> 4)])
    return torch.tensor(rows)
