import torch


def train_until_best(model, train_epoch, validate, max_epochs, patience):
    history, kept = [], []
    while len(history) < max_epochs:
        train_epoch(model)
        history.append(validate(model))
        kept.append({k: v.clone() for k, v in model.state_dict().items()})
        since = len(history) - 1 - history.index(min(history))
        if since == patience:
            break
    best = history.index(min(history))
    model.load_state_dict(kept[best])
    return history[best], kept[best]
