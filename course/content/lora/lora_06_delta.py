def delta(layer):
    return (layer["a"] @ layer["b"]).T * layer["scale"]


def forward(x, layer):
    w = layer["w"] if layer["merged"] else layer["w"] + delta(layer)
    return x @ w.T


def merge_layer(layer):
    if layer["merged"]:
        return
    layer.update(w=layer["w"] + delta(layer), merged=True)


def unmerge_layer(layer):
    if layer["merged"]:
        layer.update(w=layer["w"] - delta(layer), merged=False)
