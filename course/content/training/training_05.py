import copy
from collections.abc import Callable

from torch import Tensor, nn


def train_until_best(
    model: nn.Module,
    train_epoch: Callable[[nn.Module], None],
    validate: Callable[[nn.Module], float],
    max_epochs: int,
    patience: int,
) -> tuple[float, dict[str, Tensor]]:
    """
    zh: 提前停：每轮训练之后量一次验证损失，连着 patience 次没有比最好的更好，就停。
    zh: 结束时模型里是最好那一轮的权重；交回最好的损失与那份权重。这份代码有一处错，找出来改好
    en: Early stopping: measure the validation loss after every epoch and stop once it has not
    en: beaten the best for `patience` times in a row. In the end the model has the weights of the
    en: best epoch; return the best loss and those weights. One fault is in here
    """
    # >>>
    best_loss, best_weights, waited = float("inf"), None, 0
    for _ in range(max_epochs):
        train_epoch(model)
        loss = validate(model)
        if loss < best_loss:
            best_loss, waited = loss, 0
            best_weights = copy.deepcopy(model.state_dict())
        else:
            waited += 1
            if waited >= patience:
                break
    model.load_state_dict(best_weights)
    return best_loss, best_weights
    # <<<
