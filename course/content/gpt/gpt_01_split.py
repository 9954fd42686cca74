def initial_std(name, n_layers, base_std):
    kind = name.split(".")[-1]
    n_writes = 2 * n_layers if kind == "w_o" or kind == "w_down" else 1
    return base_std * n_writes**-0.5
