import torch


def train_step(model, loss_fn, batch, optimizer, rate, max_norm):
    model.train(True)
    out = loss_fn(model, batch)
    out.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = sum(g.pow(2).sum() for g in grads) ** 0.5
    for g in grads:
        g *= torch.clamp(max_norm / norm, max=1.0)
    for g in optimizer.param_groups:
        g["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return float(out.detach())
