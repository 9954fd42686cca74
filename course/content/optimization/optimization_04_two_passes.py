import torch


def accumulate(model_loss, micro_batches, parameters):
    with torch.no_grad():
        n_all = sum(model_loss(b)[1] for b in micro_batches)
    sums = [torch.zeros_like(p) for p in parameters]
    loss_all = 0.0
    for b in micro_batches:
        part = model_loss(b)[0] / n_all
        for s, g in zip(sums, torch.autograd.grad(part, parameters)):
            s += g
        loss_all = loss_all + part.detach()
    return loss_all, sums
