import torch


def train_step(model, loss_fn, batch, optimizer, rate, max_norm):
    if not model.training:
        model.train()
    parameters = list(model.parameters())
    loss = loss_fn(model, batch)
    gradients = torch.autograd.grad(loss, parameters)
    length = torch.cat([g.flatten() for g in gradients]).norm().item()
    factor = min(1.0, max_norm / length)
    for p, g in zip(parameters, gradients):
        p.grad = factor * g
    for i in range(len(optimizer.param_groups)):
        optimizer.param_groups[i].update(lr=rate)
    optimizer.step()
    return loss.tolist()
