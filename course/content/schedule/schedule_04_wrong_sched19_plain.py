def set_learning_rate(groups, rate):
    for g in groups:
        g["lr"] = rate
