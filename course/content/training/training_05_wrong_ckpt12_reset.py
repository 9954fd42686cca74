import copy


def train_until_best(model, train_epoch, validate, max_epochs, patience):
    best = 1e30
    bad = 0
    for _ in range(max_epochs):
        train_epoch(model)
        val = validate(model)
        if val < best:
            best = val
            weights = copy.deepcopy(model.state_dict())
        else:
            bad += 1
        if bad == patience:
            break
    model.load_state_dict(weights)
    return best, weights
