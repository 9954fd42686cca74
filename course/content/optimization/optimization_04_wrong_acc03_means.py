def accumulate(model_loss, micro_batches, parameters):
    for p in parameters:
        p.grad = None
    mean_loss = 0
    k = len(micro_batches)
    for mb in micro_batches:
        s, n = model_loss(mb)
        l = s / n / k
        l.backward()
        mean_loss += float(l.detach())
    return mean_loss, [p.grad.clone() for p in parameters]
