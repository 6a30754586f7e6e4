"""Generation with the token-level baseline: laws of the three methods, the cache, batches and refusals."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from calm_megatron.config.errors import UserError
from calm_megatron.config.schema import ArConfig
from calm_megatron.generate.decode import Generation, generate
from calm_megatron.generate.draws import KeyedDraws
from calm_megatron.generate.options import GenerationOptions, Method
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.initialise import initialise
from calm_megatron.model.softmax import tokens_of
from calm_megatron.parallel.grid import one_rank

VOCAB_SIZE, EOD, PAD = 7, 5, 6
OPTIONS = GenerationOptions(max_new_tokens=12, seed=4)
PROMPTS = [[1, 2, 3], [], [0], [4, 4, 4], [3, 2, 1, 0, 1, 2]]


@pytest.fixture(scope="module")
def baseline() -> Iterator[ArBaseline]:
    """Random weights wide enough for a law that is neither flat nor sure."""
    config = ArConfig(
        vocab_size=VOCAB_SIZE, num_layers=2, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4,
        num_query_groups=2,
    )  # fmt: skip
    with one_rank():
        model = ArBaseline(config)
        initialise(model, seed=2, std=0.15)
        yield model.eval()


def run(model: ArBaseline, prompts: list[list[int]], options: GenerationOptions, **changes: object) -> list[Generation]:
    settings = {"eod_id": EOD, "pad_id": PAD} | changes
    return generate(model, prompts, options, **settings)  # type: ignore[arg-type]


@torch.no_grad()
def law(model: ArBaseline, context: list[int]) -> torch.Tensor:
    """Probabilities of the next token, without cache or batch."""
    assert model.output is not None
    hidden_BTH = model.hidden_states(torch.tensor([context]))
    return (hidden_BTH[0, -1] @ model.output.weight[:VOCAB_SIZE].T).double().softmax(dim=-1)


@pytest.mark.parametrize(
    ("method", "temperature"),
    [(None, 1.0), (None, 0.7), ("logits", 0.3), ("exact", 1.0), ("exact", 0.7), ("exact", 0.4), ("batch", 0.5)],
)
def test_the_next_token_follows_the_tempered_law(
    baseline: ArBaseline, method: Method | None, temperature: float
) -> None:
    rows = 4000
    options = replace(OPTIONS, max_new_tokens=1, temperature=temperature, method=method, max_batch_size=rows)
    options = replace(options, num_samples=1000) if method == "batch" else options
    drawn = Counter(result.patches[0][0] for result in run(baseline, [[1, 2, 3]] * rows, options))
    tempered = law(baseline, [1, 2, 3]) ** (1 / temperature)
    expected = (rows * tempered / tempered.sum()).tolist()
    assert sum(count > 20 for count in expected) > 3
    chi_square = sum((drawn[token] - count) ** 2 / count for token, count in enumerate(expected) if count > 5)
    assert chi_square < 27.9  # 6 degrees of freedom, 1 in 10,000


def test_the_cache_changes_nothing(baseline: ArBaseline) -> None:
    results = run(baseline, [[1, 2, 3]] * 30, OPTIONS)
    prompt = next(number for number, result in enumerate(results) if result.finish_reason == "length")
    context, draws = [1, 2, 3], KeyedDraws(OPTIONS.seed)
    for step, (token,) in enumerate(results[prompt].patches):
        uniform = draws.token_uniform(prompt, step, 0, 1)
        assert token == int(tokens_of(law(baseline, context).log()[None], uniform[None]))
        context.append(token)
    assert len(context) == 3 + 12


@pytest.mark.parametrize("method", [None, "exact", "batch"])
def test_a_row_in_a_batch_is_the_row_alone(baseline: ArBaseline, method: Method | None) -> None:
    options = replace(OPTIONS, temperature=0.6, method=method)
    together = run(baseline, PROMPTS, options)
    for i, prompt in enumerate(PROMPTS):
        draws = KeyedDraws(options.seed, streams=[i])
        assert run(baseline, [prompt], options, draws=draws) == [together[i]]


def test_stops_at_the_end_of_the_document(baseline: ArBaseline) -> None:
    results = run(baseline, [[1, 2, 3]] * 60, replace(OPTIONS, max_new_tokens=30))
    assert {result.finish_reason for result in results} >= {"eod"}
    for result in results:
        drawn = [token for (token,) in result.patches]
        assert (EOD in drawn) == (result.finish_reason == "eod")
        assert result.new_ids == [token for token in drawn if token not in (EOD, PAD)]


def test_an_empty_prompt_begins_behind_a_document(baseline: ArBaseline) -> None:
    empty, explicit = (run(baseline, [prompt], OPTIONS)[0] for prompt in ([], [EOD]))
    assert empty.patches == explicit.patches


def test_what_needs_patches_is_refused(baseline: ArBaseline) -> None:
    with pytest.raises(UserError, match="no patches to fill up"):
        run(baseline, [[1]], replace(OPTIONS, partial_patch="pad"))


def test_impossible_tokens_are_never_drawn() -> None:
    logits_RV = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    uniform_RN = torch.tensor([[0.0, 0.268, 0.27, 1.0 - 2**-53, 1.0]], dtype=torch.float64)
    assert tokens_of(logits_RV, uniform_RN).tolist() == [[1, 1, 3, 3, 3]]
