def forward(x, layer):
    y = x @ layer["w"].mT
    if layer["merged"]:
        return y
    return y + x @ layer["a"] @ layer["b"] * layer["scale"]


def merge_layer(layer):
    layer["w"] = layer["w"] + (layer["scale"] * layer["a"] @ layer["b"]).mT
    layer["merged"] = True


def unmerge_layer(layer):
    if not layer["merged"]:
        return
    layer["w"] = layer["w"] - (layer["scale"] * layer["a"] @ layer["b"]).mT
    layer["merged"] = False
