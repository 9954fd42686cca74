def set_learning_rate(groups, rate):
    for i in range(len(groups)):
        if "scale" in groups[i]:
            groups[i].update(lr=groups[i]["scale"] * rate)
        else:
            groups[i].update(lr=rate)
