import torch


def softmax(scores):
    s = scores.float()
    s = s - s.max(-1, keepdim=True)[0]
    e = s.exp()
    return (e / e.sum(-1, keepdim=True)).type_as(scores)
