import torch


def evaluate(model, loss_fn, batches):
    model.train(False)
    mean, seen = 0.0, 0
    for b in batches:
        with torch.no_grad():
            s, n = loss_fn(model, b)
        seen += n
        mean += (float(s) / n - mean) * n / seen
    model.train(True)
    return mean
