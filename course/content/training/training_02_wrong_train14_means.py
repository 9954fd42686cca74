import torch


def evaluate(model, loss_fn, batches):
    model.eval()
    losses = []
    with torch.no_grad():
        for b in batches:
            s, n = loss_fn(model, b)
            losses.append((s / n).item())
    model.train()
    return sum(losses) / len(losses)
