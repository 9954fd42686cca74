from typing import Any

import torch
from torch import Tensor


def forward(x: Tensor, layer: dict[str, Any]) -> Tensor:
    """
    zh: layer 有 w (d_out, d_in)、a (d_in, r)、b (r, d_out)、scale = α/r、merged（并进去了没有）。
    zh: 无论合并、拆开多少次，输出都该一样。这份代码有一处错，找出来改好
    en: layer has w (d_out, d_in), a (d_in, r), b (r, d_out), scale = α/r, merged (is it merged?).
    en: However often it is merged and unmerged, the output must be the same. One fault is in here
    """
    # >>>
    output = x @ layer["w"].T
    if not layer["merged"]:
        output = output + layer["scale"] * (x @ layer["a"] @ layer["b"])
    return output
    # <<<


def merge_layer(layer: dict[str, Any]) -> None:
    """
    zh: 并进 w（就地改 layer 这个字典）；已经并了就什么也不做
    en: Merge into w (the dict `layer` is changed); do nothing if it is merged already
    """
    if not layer["merged"]:
        layer["w"] = layer["w"] + layer["scale"] * (layer["a"] @ layer["b"]).T
        layer["merged"] = True


def unmerge_layer(layer: dict[str, Any]) -> None:
    """
    zh: 从 w 里拆出来；没有并就什么也不做
    en: Take it out of w again; do nothing if it is not merged
    """
    if layer["merged"]:
        layer["w"] = layer["w"] - layer["scale"] * (layer["a"] @ layer["b"]).T
        layer["merged"] = False
