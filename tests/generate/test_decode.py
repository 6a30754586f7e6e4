"""Generation: caching, batching, remainders of prompts, stopping and bad input."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from calm_megatron.config.errors import UserError
from calm_megatron.generate.decode import Generation, generate
from calm_megatron.generate.draws import KeyedDraws, NoiseOfPrompts
from calm_megatron.generate.options import GenerationOptions
from calm_megatron.model.calm import Calm

EOD, PAD, NEVER = 10, 11, 9
"""The small model's special tokens, and one that it does not draw: as the end of document it lets texts grow."""
PROMPTS = [[1, 2, 3, 4, 5], [], [7, 8], [3, 3, 3, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8], [2, 2, 2, 2, 2, 2, 2]]
OPTIONS = GenerationOptions(max_new_tokens=20, num_samples=40, seed=6)


def run(
    model: Calm, prompts: list[list[int]], options: GenerationOptions = OPTIONS, **changes: object
) -> list[Generation]:
    settings = {"eod_id": NEVER, "pad_id": PAD} | changes
    return generate(model, prompts, options, **settings)  # type: ignore[arg-type]


def pool(model: Calm, context: list[int], draws: KeyedDraws, prompt: int, step: int, attempt: int, size: int) -> Tensor:
    """The tokens (N, K) of a pool, without cache or batch."""
    with torch.no_grad():
        hidden_1H = model.hidden_states(torch.tensor([context]))[:, -1]
        noise = NoiseOfPrompts(draws, [prompt], step, attempt)
        return model.autoencoder.tokens(model.head.sample(hidden_1H, noise, size))[:, 0]


def test_the_cache_changes_nothing(model: Calm) -> None:
    result = run(model, [[1, 2, 3, 4, 5, 6, 7, 8]])[0]
    draws, context = KeyedDraws(OPTIONS.seed), list(result.prompt_ids)
    for step, patch in enumerate(result.patches):
        assert patch == pool(model, context, draws, 0, step, 0, 1)[0].tolist()
        context += patch
    assert len(result.patches) == 5


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("partial_patch", ["constrain", "pad"])
def test_a_row_in_a_batch_is_the_row_alone(model: Calm, temperature: float, partial_patch: str) -> None:
    options = replace(OPTIONS, max_new_tokens=9, temperature=temperature, partial_patch=partial_patch)
    together = run(model, PROMPTS, options)
    for i, prompt in enumerate(PROMPTS):
        assert run(model, [prompt], options, draws=KeyedDraws(options.seed, streams=[i])) == [together[i]]


def test_large_groups_are_cut_into_batches(model: Calm) -> None:
    prompts = [[1, 2, 3, 4], [5, 6, 7, 8], [4, 3, 2, 1, 0]]
    assert run(model, prompts, replace(OPTIONS, max_batch_size=2)) == run(model, prompts)


def test_seed_and_prompt_number_make_the_result(model: Calm) -> None:
    first, second = run(model, [[1, 2, 3, 4]] * 2)
    assert first.patches != second.patches
    assert run(model, [[1, 2, 3, 4]] * 2) == [first, second]
    assert run(model, [[1, 2, 3, 4]], replace(OPTIONS, seed=7))[0].patches != first.patches


def test_prompts_stay_verbatim(model: Calm) -> None:
    for prompt, result in zip(PROMPTS, run(model, PROMPTS), strict=True):
        remainder = prompt[len(prompt) - len(prompt) % 4 :]
        assert result.prompt_ids == prompt
        assert result.patches[0][: len(remainder)] == remainder
        drawn = list(itertools.chain(*result.patches))[len(remainder) :][: OPTIONS.max_new_tokens]
        assert result.new_ids == [token for token in drawn if token != PAD]


def test_a_remainder_takes_the_first_sample_that_agrees(model: Calm) -> None:
    context, draws = [1, 2, 3, 4], KeyedDraws(OPTIONS.seed)
    candidates = pool(model, context, draws, 0, 0, 0, 40)
    common = candidates[:, :2].mode(dim=0).values.tolist()
    agreeing = [sample.tolist() for sample in candidates if sample[:2].tolist() == common]
    assert 1 < len(agreeing) < 40
    result = run(model, [context + common])[0]
    assert result.patches[0] == agreeing[0]
    assert not result.constrained_fallback
    assert len(result.new_ids) <= 20


def test_a_constrained_patch_follows_the_models_own_law(model: Calm) -> None:
    """Against plain rejection: the share of each outcome among the samples that begin with the remainder."""
    context, rows = [1, 2, 3, 4], 1500
    samples = pool(model, context, KeyedDraws(99), 0, 0, 0, 60_000)
    common = int(samples[:, 0].mode().values)
    accepted = Counter(tuple(sample) for sample in samples[samples[:, 0] == common].tolist())
    options = replace(OPTIONS, max_new_tokens=3, num_samples=20, max_batch_size=rows)
    results = run(model, [[*context, common]] * rows, options)
    assert not any(result.constrained_fallback for result in results)
    observed = Counter(tuple(result.patches[0]) for result in results)
    total = sum(accepted.values())
    frequent = [outcome for outcome, count in accepted.items() if rows * count / total >= 20]
    expected = [rows * accepted[outcome] / total for outcome in frequent]
    assert len(frequent) > 8
    chi_square = sum((observed[outcome] - e) ** 2 / e for outcome, e in zip(frequent, expected, strict=True))
    degrees = len(frequent)
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_remainder_that_the_model_never_draws_is_put_over_the_nearest_sample(model: Calm, temperature: float) -> None:
    context, draws, size, pools = [1, 2, 3, 4], KeyedDraws(OPTIONS.seed), 40, 3
    common = int(pool(model, context, draws, 0, 0, 0, size)[:, 0].mode().values)
    remainder = [common, NEVER, NEVER]
    options = replace(OPTIONS, num_samples=size, max_pools=pools, temperature=temperature)
    result = run(model, [context + remainder], options)[0]
    assert result.constrained_fallback
    assert result.patches[0][:3] == remainder
    nearest = pool(model, context, draws, 0, 0, 0, size)
    nearest = nearest[nearest[:, 0] == common]
    assert result.patches[0][3] in nearest[:, 3].tolist()
    if temperature == 1.0:
        assert result.patches[0][3] == nearest[0, 3]


def test_later_pools_are_drawn_when_the_first_has_none(model: Calm) -> None:
    context, draws = [1, 2, 3, 4], KeyedDraws(OPTIONS.seed)
    pools = [pool(model, context, draws, 0, 0, attempt, 4) for attempt in range(8)]
    begins = [{int(sample[0]) for sample in candidates} for candidates in pools]
    late, token = next(
        (i, token) for i in range(1, 8) for token in begins[i] if not any(token in b for b in begins[:i])
    )
    result = run(model, [[*context, token]], replace(OPTIONS, num_samples=4, max_pools=8))[0]
    agreeing = [sample.tolist() for sample in pools[late] if sample[0] == token]
    assert result.patches[0] == agreeing[0]
    assert not result.constrained_fallback
    assert run(model, [[*context, token]], replace(OPTIONS, num_samples=4, max_pools=late))[0].constrained_fallback


def test_padding_is_the_official_alternative(model: Calm) -> None:
    options = replace(OPTIONS, partial_patch="pad")
    by_option = run(model, [[1, 2, 3, 4, 5]], options)[0]
    by_hand = run(model, [[1, 2, 3, 4, 5, PAD, PAD, PAD]])[0]
    assert by_option.patches == by_hand.patches
    assert by_option.prompt_ids == [1, 2, 3, 4, 5]


def test_prompts_without_a_whole_patch_start_behind_a_document(model: Calm) -> None:
    empty, short = run(model, [[], [7]], eod_id=EOD)
    explicit = run(model, [[EOD, PAD, PAD, PAD], [EOD, PAD, PAD, PAD, 7]], eod_id=EOD)
    assert [empty.patches, short.patches] == [result.patches for result in explicit]
    assert empty.prompt_ids == []


def test_stops_at_the_end_of_the_document(model: Calm) -> None:
    results = run(model, [[1, 2, 3, 4]] * 30, replace(OPTIONS, max_new_tokens=40), eod_id=EOD)
    ended = [result for result in results if result.finish_reason == "eod"]
    assert len(ended) > 10
    for result in ended:
        assert not any(EOD in patch for patch in result.patches[:-1])
        drawn = list(itertools.chain(*result.patches))
        assert result.new_ids == [token for token in drawn[: drawn.index(EOD)] if token != PAD]
    for result in results:
        if result.finish_reason == "length":
            assert not any(EOD in patch for patch in result.patches)
            assert len(result.patches) == 10


def test_an_end_of_document_within_the_prompt_does_not_stop(model: Calm) -> None:
    token = 7
    result = run(model, [[1, 2, 3, 4, token]], replace(OPTIONS, max_new_tokens=3), eod_id=token)[0]
    assert result.patches[0][0] == token
    assert result.finish_reason == ("eod" if token in result.patches[0][1:] else "length")


@pytest.mark.parametrize("new", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("remainder", [0, 1, 3])
def test_length_is_cut_to_the_token(model: Calm, new: int, remainder: int) -> None:
    result = run(model, [[1, 2, 3, 4, 7, 7, 7][: 4 + remainder]], replace(OPTIONS, max_new_tokens=new))[0]
    drawn = list(itertools.chain(*result.patches))[remainder:]
    assert len(drawn) - 3 <= new <= len(drawn)
    assert result.new_ids == [token for token in drawn[:new] if token != PAD]
    assert result.finish_reason == "length"


def test_low_temperature_prefers_the_frequent(model: Calm) -> None:
    samples = pool(model, [1, 2, 3, 4], KeyedDraws(0), 0, 0, 0, 20_000).tolist()
    chance = Counter(tuple(sample) for sample in samples)
    mean = []
    for temperature in (1.0, 0.5, 0.25):
        options = replace(OPTIONS, max_new_tokens=4, temperature=temperature, num_samples=200)
        results = run(model, [[1, 2, 3, 4]] * 200, options)
        mean.append(sum(chance[tuple(result.patches[0])] for result in results) / len(results))
    assert mean[0] * 1.3 < mean[1] and mean[1] * 1.1 < mean[2]


@pytest.mark.parametrize("temperature", [0.6, 0.5])
def test_the_exact_method_follows_the_exact_law(model: Calm, temperature: float) -> None:
    """Against the tempered frequencies of many samples, with and without a remainder of the prompt."""
    rows, samples = 1500, pool(model, [1, 2, 3, 4], KeyedDraws(99), 0, 0, 0, 60_000)
    common = int(samples[:, 0].mode().values)
    options = replace(
        OPTIONS, max_new_tokens=1, temperature=temperature, method="exact", max_batch_size=rows, max_draws=20_000
    )
    for remainder in ([], [common]):
        begins = samples[samples[:, 0] == common] if remainder else samples
        power = {
            outcome: (count / len(begins)) ** (1 / temperature)
            for outcome, count in Counter(map(tuple, begins.tolist())).items()
        }
        results = run(model, [[1, 2, 3, 4, *remainder]] * rows, options)
        assert {result.finish_reason for result in results} == {"length"}
        observed = Counter(tuple(result.patches[0]) for result in results)
        expected = {outcome: rows * value / sum(power.values()) for outcome, value in power.items()}
        frequent = [outcome for outcome, count in expected.items() if count >= 20]
        assert len(frequent) > 2
        chi_square = sum((observed[outcome] - expected[outcome]) ** 2 / expected[outcome] for outcome in frequent)
        assert chi_square < len(frequent) + 4 * (2 * len(frequent)) ** 0.5


def test_a_text_ends_where_the_exact_method_gives_up(model: Calm) -> None:
    options = replace(OPTIONS, temperature=0.05, method="exact", max_draws=60)
    results = run(model, [[1, 2, 3, 4]] * 8, options)
    ended = [result for result in results if result.finish_reason == "max_draws"]
    assert len(ended) > 4
    assert all(len(result.new_ids) == 4 * len(result.patches) < 20 for result in ended if PAD not in result.new_ids)
    impossible = run(model, [[1, 2, 3, 4, NEVER]], replace(options, temperature=1.0))[0]
    assert (impossible.finish_reason, impossible.new_ids, impossible.patches) == ("max_draws", [], [])


def test_a_row_of_the_exact_method_is_the_row_alone(model: Calm) -> None:
    options = replace(OPTIONS, max_new_tokens=9, temperature=0.7, method="exact")
    together = run(model, PROMPTS[:3], options)
    for i, prompt in enumerate(PROMPTS[:3]):
        assert run(model, [prompt], options, draws=KeyedDraws(options.seed, streams=[i])) == [together[i]]


def test_patches_have_no_logits(model: Calm) -> None:
    with pytest.raises(UserError, match="no logits to divide"):
        run(model, [[1, 2, 3, 4]], replace(OPTIONS, method="logits"))


def test_no_prompts_give_no_results(model: Calm) -> None:
    assert run(model, []) == []


@pytest.mark.parametrize(("prompt", "place"), [([1, 12], "prompt 1"), ([-1], "prompt 1")])
def test_foreign_ids_are_refused(model: Calm, prompt: list[int], place: str) -> None:
    with pytest.raises(UserError, match="does not fit the model's vocabulary of 12") as caught:
        run(model, [[1], prompt])
    assert caught.value.where == place
    with pytest.raises(UserError, match="token id 500 does not fit"):
        run(model, [[1]], eod_id=500)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(UserError, match="num_samples = 3 samples cannot hold 4 equal ones"):
        GenerationOptions(max_new_tokens=4, temperature=0.25, num_samples=3)
    with pytest.raises(UserError, match="max_draws = 3 samples cannot hold 4 equal ones"):
        GenerationOptions(max_new_tokens=4, temperature=0.25, method="exact", max_draws=3)
    with pytest.raises(UserError, match=r"not in \(0, 1\]"):
        GenerationOptions(max_new_tokens=4, temperature=1.2)
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        GenerationOptions(max_new_tokens=0)
