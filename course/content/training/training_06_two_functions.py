import torch


def one(model, loss_fn, batch, optimizer, rate, max_norm):
    model.train()
    optimizer.zero_grad()
    loss = loss_fn(model, batch)
    value = loss.item()
    if value != value or abs(value) == float("inf"):
        return value
    loss.backward()
    torch.nn.utils.clip_grad_norm_(list(model.parameters()), max_norm)
    for g in optimizer.param_groups:
        g["lr"] = rate
    optimizer.step()
    return value


def train(model, loss_fn, batches, steps, optimizer, schedule, max_norm):
    n = len(batches)
    return [
        one(model, loss_fn, batches[s % n], optimizer, schedule(s), max_norm) for s in range(steps)
    ]
