def answer_all(model, prompts, n_new):
    answers = []
    for prompt in prompts:
        cache, ids = None, list(prompt)
        for position in range(len(prompt) + n_new - 1):
            token, cache = model([ids[position]], [position], cache)
            if position >= len(prompt) - 1:
                ids.append(token)
        answers.append(ids[len(prompt) :])
    return answers
