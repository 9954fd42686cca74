def split(documents, n_val):
    cut = len(documents) - n_val
    return documents[:cut], documents[cut:]
