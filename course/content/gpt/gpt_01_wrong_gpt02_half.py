def initial_std(name, n_layers, base_std):
    if "w_o" in name or "w_down" in name:
        return base_std * n_layers ** (-1 / 2)
    return base_std
