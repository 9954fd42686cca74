import torch
from torch.nn.utils import clip_grad_norm_


def train_step(model, loss_fn, batch, optimizer, rate, max_norm):
    for g in optimizer.param_groups:
        g["lr"] = rate
    model.train()
    loss = loss_fn(model, batch)
    loss.backward()
    clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    return loss.item()
