def merge(w, a, b, alpha, r):
    delta = (alpha / r) * (a @ b)
    return w + delta
