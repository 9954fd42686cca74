import torch


def initial_std(name, n_layers, base_std):
    std = torch.tensor(base_std)
    for ending in ("w_o", "w_down"):
        if ending in name:
            std = std / (2.0 * n_layers) ** 0.5
    return std
