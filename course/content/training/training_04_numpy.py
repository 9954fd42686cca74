import copy

import numpy as np
import torch


def save_state(model, optimizer, step, position):
    arrays = {k: np.array(v.numpy(), copy=True) for k, v in model.state_dict().items()}
    rng = bytes(torch.random.get_rng_state().tolist())
    return {
        "arrays": arrays,
        "moments": copy.deepcopy(optimizer.state_dict()),
        "at": [step, position, rng],
    }


def load_state(state, model, optimizer):
    step, position, rng = state["at"]
    optimizer.load_state_dict(state["moments"])
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state["arrays"].items()})
    torch.random.set_rng_state(torch.tensor(list(rng), dtype=torch.uint8))
    return step, position
