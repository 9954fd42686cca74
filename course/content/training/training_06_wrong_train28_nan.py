import torch
from torch.nn.utils import clip_grad_norm_


def train(model, loss_fn, batches, steps, optimizer, schedule, max_norm):
    model.train()
    out = []
    for i in range(steps):
        for g in optimizer.param_groups:
            g["lr"] = schedule(i)
        loss = loss_fn(model, batches[i % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        out.append(loss.item())
    return out
