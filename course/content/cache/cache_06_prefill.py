def answer_all(model, prompts, n_new):
    answers = []
    for prompt in prompts:
        token, cache = model(prompt, list(range(len(prompt))), None)
        text = [token]
        while len(text) < n_new:
            position = len(prompt) + len(text) - 1
            token, cache = model([text[-1]], [position], cache)
            text.append(token)
        answers.append(text)
    return answers
