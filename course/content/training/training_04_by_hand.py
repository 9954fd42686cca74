import copy

import torch


def save_state(model, optimizer, step, position):
    tensors = {}
    for name, value in model.state_dict().items():
        tensors[name] = value.detach().clone()
    return dict(
        tensors=tensors,
        opt=copy.deepcopy(optimizer.state_dict()),
        where=(step, position),
        rng=torch.get_rng_state().clone(),
    )


def load_state(state, model, optimizer):
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(state["tensors"][name])
    optimizer.load_state_dict(state["opt"])
    torch.set_rng_state(state["rng"])
    return state["where"]
