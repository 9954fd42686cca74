import copy

import torch


def save_state(model, optimizer, step, position):
    checkpoint = {}
    checkpoint["model"] = dict(model.state_dict())
    checkpoint["optimizer"] = copy.deepcopy(optimizer.state_dict())
    checkpoint["step"], checkpoint["position"] = step, position
    checkpoint["rng"] = torch.get_rng_state()
    return checkpoint


def load_state(state, model, optimizer):
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    return state["step"], state["position"]
