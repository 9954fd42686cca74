def trainable(names):
    return [n for n in names if "lora" in n or "norm" in n]
