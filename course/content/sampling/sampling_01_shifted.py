import torch


def apply_temperature(logits, temperature):
    if temperature > 0:
        return (logits - logits.amax(-1, keepdim=True)) / temperature
    out = torch.full_like(logits, -torch.inf)
    return out.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
