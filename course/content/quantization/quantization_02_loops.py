import torch


def zero_point_uint8(w):
    rows, scales, zeros = [], [], []
    for row in w.tolist():
        low, high = min(*row, 0.0), max(*row, 0.0)
        s = (high - low) / 255
        z = round(-low / s)
        rows.append([min(255, max(0, round(v / s) + z)) for v in row])
        scales.append(s)
        zeros.append(z)
    return torch.tensor(rows, dtype=torch.uint8), torch.tensor(scales), torch.tensor(zeros)


def dequantize_uint8(q, scale, zero):
    s, z = scale.view(-1, 1), zero.view(-1, 1).double()
    return s * q - s * z
