def apply_temperature(logits, temperature):
    if temperature == 0:
        return logits.masked_fill(logits != logits.amax(-1, True), float("-inf"))
    z = (logits / temperature).exp()
    return z / z.sum(1, keepdim=True)
