import torch.nn.functional as F


def next_token_loss(logits, ids):
    logits, labels = logits[:, :-1], ids[:, 1:]
    shift_logits = logits[..., :-1, :].contiguous()
    shift_labels = labels[..., 1:].contiguous()
    return F.cross_entropy(shift_logits.view(-1, shift_logits.size(-1)), shift_labels.view(-1))
