import torch


def group_quantize(w, group):
    codes, scales = [], []
    for row in w.tolist():
        line, rulers = [], []
        for start in range(0, len(row), group):
            part = row[start : start + group]
            s = max(part, key=abs) / -8
            line += [max(-8, min(7, round(v / s))) if s else 0 for v in part]
            rulers.append(s)
        codes.append(line)
        scales.append(rulers)
    return torch.tensor(codes, dtype=torch.int8), torch.tensor(scales)
