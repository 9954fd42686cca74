"""`fromzero train` 的默认值从哪里来：一个配方、一个深度，或上次的训练。"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fromzero.training_options import ModelOptions, TrainingOptions, load_options

if TYPE_CHECKING:
    from fromzero.train import Options
    from training.recipes import Recipe

__all__ = ["starting_point"]


def starting_point(options: Options) -> Options | None:
    """The options that the command line then changes; None where nothing is named."""
    plain = type(options)()
    if options.resume is not None:
        return load_options(type(options), options.resume)
    if options.depth is not None:
        refuse_another_size(options, plain)
        from training.depth_dial import from_depth

        return with_choices(replace(plain, depth=options.depth), from_depth(options.depth))
    if options.recipe is not None:
        from training.recipes import recipe

        # a recipe learns characters
        named = replace(plain, recipe=options.recipe, tokenizer="characters")
        return with_choices(named, recipe(options.recipe))
    return None


def with_choices(options: Options, chosen: Recipe) -> Options:
    """What a recipe decides of the model and of the training."""
    return replace(
        options,
        preset=chosen.preset,
        model=ModelOptions(**chosen.model),
        training=TrainingOptions(**chosen.training),
    )


def refuse_another_size(options: Options, plain: Options) -> None:
    """--depth decides the size; two answers to one question are refused."""
    for name in ("recipe", "preset"):
        given = getattr(options, name)
        if given != getattr(plain, name):
            raise ValueError(
                f"--depth {options.depth} and --{name} {given} both decide the size of the model; "
                "give one of them"
            )
