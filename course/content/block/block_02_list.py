def run_layers(x, layers):
    stream = [x]
    for parts in layers:
        for norm, branch in (parts[:2], parts[2:]):
            stream.append(branch(norm(sum(stream))))
    return sum(stream)
