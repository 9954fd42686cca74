import torch


def softmax(scores):
    shifted = scores - scores.amax(-1, keepdim=True)
    log_total = torch.log(torch.exp(shifted).sum(-1, keepdim=True))
    return torch.exp(shifted - log_total)
