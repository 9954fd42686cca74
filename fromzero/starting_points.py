"""`fromzero train` 的默认值从哪里来：一个配方、一个深度，或上次的训练。

What the user says wins over what a recipe or a depth has chosen; what depends on it follows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from foundation.files import read_json
from fromzero.training_options import ModelOptions, TrainingOptions, load_options

if TYPE_CHECKING:
    from fromzero.train import Options
    from training.recipes import Recipe

__all__ = ["chosen_recipe", "keep_shares", "settle", "starting_point"]

NAMES = ("depth", "recipe", "preset")  # each of them decides the size of the model


def starting_point(options: Options, given: Collection[str]) -> Options | None:
    """The options that the command line then changes; None where nothing is named.

    `given` holds the names of the options on the command line.
    """
    plain = type(options)()
    if options.resume is not None:
        for name in NAMES:
            if name in given:
                raise ValueError(
                    f"--resume goes on with the options of {options.resume}; "
                    f"--{name} {getattr(options, name)} cannot be changed"
                )
        return load_options(type(options), options.resume)
    for first, second in (("depth", "recipe"), ("depth", "preset")):
        if first in given and second in given:
            raise ValueError(
                f"--{first} {getattr(options, first)} and --{second} {getattr(options, second)} "
                "both decide the size of the model; give one of them"
            )
    chosen = chosen_recipe(options)
    if chosen is None:
        return None
    named = replace(plain, depth=options.depth, recipe=options.recipe)
    if options.recipe is not None:
        named = replace(named, tokenizer="characters")  # a recipe learns characters
    changed = {} if options.config is None else read_json(options.config)
    return with_choices(named, chosen, changed if isinstance(changed, dict) else {})


def chosen_recipe(options: Options) -> Recipe | None:
    """The whole set of choices that --depth or --recipe stands for."""
    if options.depth is not None:
        from training.depth_dial import from_depth

        return from_depth(options.depth)
    if options.recipe is not None:
        from training.recipes import recipe

        return recipe(options.recipe)
    return None


def with_choices(options: Options, chosen: Recipe, file: Mapping[str, Any]) -> Options:
    """What a recipe decides of the model and of the training, but for what --config says."""
    model = {name: value for name, value in chosen.model.items() if name not in file}
    return replace(
        options,
        preset=chosen.preset,
        model=ModelOptions(**model),
        training=TrainingOptions(**chosen.training),
    )


def settle(options: Options, given: Collection[str]) -> Options:
    """Let the number of steps and the schedule follow from what was given.

    --steps and --minutes win over the chosen steps. A depth promises a number of tokens: with
    other batches or lengths it takes another number of steps.
    """
    chosen = chosen_recipe(options)
    if chosen is None or options.resume is not None:
        return options
    training = options.training
    if "steps" not in given and "minutes" in given:
        training = replace(training, steps=None)
    elif "steps" not in given and options.depth is not None:
        length = options.block_size
        if length is None:
            length = options.model.to_config(options.preset, options.config).max_seq_len
        checked = training.to_config()
        per_step = training.batch_size * checked.grad_accumulation * max(1, length)
        training = replace(training, steps=max(1, round(chosen.n_tokens / per_step)))
    for name in ("warmup_steps", "decay_steps"):
        if name not in given:
            nothing: dict[str, Any] = {name: None}
            training = replace(training, **nothing)
    if training.steps is not None:
        training = keep_shares(training, training.steps, chosen)
    return replace(options, training=training)


def keep_shares(training: TrainingOptions, steps: int, chosen: Recipe) -> TrainingOptions:
    """The same shares of the steps for warmup and decay as the recipe has, where none are given."""
    before = chosen.train_config()
    shares: dict[str, Any] = {}
    for name in ("warmup_steps", "decay_steps"):
        length = getattr(before, name)
        # a recipe without a decay of its own keeps TrainConfig's rule
        if getattr(training, name) is None and length is not None:
            shares[name] = round(length * steps / before.steps)
    return replace(training, steps=steps, **shares)
