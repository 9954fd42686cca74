import torch.nn.functional as F


def next_token_loss(logits, ids):
    pred, lab = logits[..., :-1, :].float().contiguous(), ids[..., 1:].contiguous()
    return F.cross_entropy(pred.view(-1, pred.size(-1)), lab.view(-1))
