"""第 2 层：把积木拼成一个 GPT。先读 config.py（有哪些旋钮），再读 model.py（怎样拼）。"""
