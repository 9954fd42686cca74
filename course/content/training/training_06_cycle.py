import itertools

import torch


def train(model, loss_fn, batches, steps, optimizer, schedule, max_norm):
    history = []
    source = itertools.cycle(batches)
    model.train()
    while len(history) < steps:
        loss = loss_fn(model, next(source))
        if torch.isfinite(loss):
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
            for g in optimizer.param_groups:
                g["lr"] = schedule(len(history))
            optimizer.step()
        history.append(float(loss.detach()))
    return history
