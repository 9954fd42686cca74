def draw(probabilities, u):
    chosen = []
    for row, point in zip(probabilities.tolist(), u.tolist()):
        token = -1
        while point >= 0 and token < len(row) - 1:
            token += 1
            point -= row[token]
        chosen.append(token)
    return chosen
