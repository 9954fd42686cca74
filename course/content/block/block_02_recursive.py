def run_layers(x, layers):
    if not layers:
        return x
    n1, a, n2, f = layers[0]
    h = x + a(n1(x))
    return run_layers(h + f(n2(h)), layers[1:])
