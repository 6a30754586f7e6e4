"""Generation does not know the head: the same loop draws from those that sample in several steps."""

from dataclasses import replace

import pytest
import torch

from calm_megatron.config.errors import UserError
from calm_megatron.generate.decode import Generation, generate
from calm_megatron.generate.draws import KeyedDraws, NoiseOfPrompts
from calm_megatron.generate.options import GenerationOptions
from calm_megatron.model.calm import Calm
from tests.generate.conftest import NEVER, PAD

OPTIONS = GenerationOptions(max_new_tokens=12, num_samples=20, seed=6)
PROMPTS = [[1, 2, 3, 4, 5], [], [3, 3, 3, 3]]


def run(
    model: Calm, prompts: list[list[int]], options: GenerationOptions = OPTIONS, draws: KeyedDraws | None = None
) -> list[Generation]:
    return generate(model, prompts, options, eod_id=NEVER, pad_id=PAD, draws=draws)


@torch.no_grad()
def test_a_patch_is_what_the_head_draws_without_cache_or_batch(stepwise_model: Calm) -> None:
    result = run(stepwise_model, [[5, 6, 7, 8], [1, 2, 3, 4]])[1]
    context = [1, 2, 3, 4]
    assert len(result.patches) == 3
    for step, patch in enumerate(result.patches):
        hidden_1H = stepwise_model.hidden_states(torch.tensor([context]))[:, -1]
        noise = NoiseOfPrompts(KeyedDraws(OPTIONS.seed), [1], step, 0)
        drawn = stepwise_model.autoencoder.tokens(stepwise_model.head.sample(hidden_1H, noise, 1))
        assert patch == drawn[0, 0].tolist()
        context += patch


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_row_in_a_batch_is_the_row_alone(stepwise_model: Calm, temperature: float) -> None:
    options = replace(OPTIONS, temperature=temperature)
    together = run(stepwise_model, PROMPTS, options)
    for i, prompt in enumerate(PROMPTS):
        assert run(stepwise_model, [prompt], options, KeyedDraws(options.seed, streams=[i])) == [together[i]]


def test_the_number_of_steps_is_an_option(stepwise_model: Calm) -> None:
    usual = run(stepwise_model, PROMPTS)
    own = stepwise_model.config.head.num_sampling_steps  # type: ignore[union-attr]
    assert run(stepwise_model, PROMPTS, replace(OPTIONS, sampling_steps=own)) == usual
    assert run(stepwise_model, PROMPTS, replace(OPTIONS, sampling_steps=11)) != usual


def test_steps_that_cannot_be_are_refused(model: Calm, stepwise_model: Calm) -> None:
    with pytest.raises(UserError, match="an energy head samples in one step, not in 5"):
        run(model, PROMPTS, replace(OPTIONS, sampling_steps=5))
    with pytest.raises(UserError, match="head cannot sample in 1001 steps"):
        run(stepwise_model, PROMPTS, replace(OPTIONS, sampling_steps=1001))
