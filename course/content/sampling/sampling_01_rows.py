import torch


def apply_temperature(logits, temperature):
    rows = []
    for row in logits:
        if temperature == 0.0:
            rows.append(torch.where(row == row.max(), row, torch.tensor(-1e30)))
        else:
            rows.append(torch.log_softmax(row * (1 / temperature), dim=0))
    return torch.stack(rows)
