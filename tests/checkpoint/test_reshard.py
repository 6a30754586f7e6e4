"""A checkpoint cut anew holds the same state, for the ranks and files that were asked for, or does not appear."""

import json
from pathlib import Path

import pytest
import torch

from calm_megatron.checkpoint import reshard as module
from calm_megatron.checkpoint.inspect import compare_checkpoints, inspect_checkpoint
from calm_megatron.checkpoint.load import find_checkpoint, saved_state
from calm_megatron.checkpoint.pieces import KINDS, Place
from calm_megatron.checkpoint.reshard import reshard
from calm_megatron.checkpoint.shards import Shard
from calm_megatron.checkpoint.store import CheckpointStore
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import load_run
from calm_megatron.model.ar_baseline import ArBaseline
from calm_megatron.model.sharding import Sharding
from calm_megatron.parallel.grid import Grid
from tests.checkpoint.damage import DAMAGES, files_of_at_most
from tests.small_engine import SmallEngine, progress_at

STEP = "step_00000005"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a run would look."""
    return tmp_path / "new" / "checkpoints" / STEP


def read(shard: Shard, kind: str, place: Place) -> torch.Tensor:
    """The whole run of a weight in a file."""
    run = torch.empty(place.stop - place.start)
    shard.read_into(run, kind, place.name, 0)
    return run


@pytest.mark.parametrize(("ranks", "files"), [(1, 1), (1, 4), (2, 1), (2, 3), (4, 2)])
def test_each_rank_finds_its_part_in_its_own_files(baseline_run: Path, target: Path, ranks: int, files: int) -> None:
    source = reshard(baseline_run, target, ranks, files)
    assert source == find_checkpoint(baseline_run) and source.name == STEP
    config = load_run([target / "config.yaml"])
    state, seen = saved_state(source), dict.fromkeys(saved_state(source).names(), 0)
    shards = [Shard(target / f"rank_{number:05d}.safetensors") for number in range(ranks * files)]
    for number, shard in enumerate(shards):
        for place in shard.places:
            sharding = Sharding(config.model, number // files, ranks)  # type: ignore[arg-type]
            cut = sharding.is_cut(place.name)
            assert (place.part, place.parts) == ((number // files, ranks) if cut else (0, 1))
            for kind in KINDS:
                whole = state.whole(kind, place.name)
                part = sharding.part(place.name, whole) if cut else whole
                run = read(shard, kind, place)
                assert place.shape == part.shape
                assert torch.equal(run, part.flatten()[place.start : place.stop]), (kind, place)
            seen[place.name] += place.stop - place.start
    for name, count in seen.items():
        rows = -(-77 // ranks) * ranks - 77 if name in ("embedding.tokens.weight", "output.weight") else 0
        assert count == torch.Size(state.shape(name)).numel() + 16 * rows
    spread = [sum(place.stop - place.start for place in shard.places) for shard in shards]
    assert max(spread) < 1.1 * min(spread)


def test_the_rest_stays_but_for_the_layout(baseline_run: Path, target: Path) -> None:
    source = reshard(baseline_run, target, 2, 3)
    before, after = inspect_checkpoint(source), inspect_checkpoint(target)
    assert after.whole
    found = compare_checkpoints(before, after)
    assert found.equal and not found.settings and not found.fingerprints
    assert found.layout == {
        "world_size": (1, 6),
        "tensor_model_parallel_size": (1, 2),
        "data_parallel_size": (1, 3),
    }
    assert json.loads((target / "manifest.json").read_text())["fingerprints"] == {"tokenizer": "12ab"}
    assert (target.parent / "latest").read_text() == f"{STEP}\n"
    assert sorted(path.name for path in target.parent.iterdir()) == ["latest", STEP]


def test_there_and_back_again_is_the_same_file(baseline_run: Path, target: Path, tmp_path: Path) -> None:
    reshard(baseline_run, target, 4, 2)
    reshard(target, tmp_path / "back", 1, 1)
    name = "rank_00000.safetensors"
    first, second = Shard(find_checkpoint(baseline_run) / name), Shard(tmp_path / "back" / name)
    assert sorted(first.places, key=lambda place: place.name) == second.places
    for place in first.places:
        for kind in KINDS:
            assert torch.equal(read(first, kind, place), read(second, kind, place))


def test_a_run_goes_on_from_it(baseline_run: Path, target: Path, grid: Grid) -> None:
    reshard(baseline_run, target, 2, 2)
    config = load_run([target / "config.yaml"], [f"run.directory={target.parent.parent}"])
    engine = SmallEngine(ArBaseline(config.model))  # type: ignore[arg-type]
    store = CheckpointStore(config, grid, {"tokenizer": "12ab"})
    assert store.resume(engine) == progress_at(5)
    state = saved_state(find_checkpoint(baseline_run))
    for name, weight in engine.module.named_parameters():
        assert torch.equal(weight, state.whole("weight", name))
        assert torch.equal(engine.moments["exp_avg"][name], state.whole("exp_avg", name))


def test_more_files_than_may_be_open_are_written_in_groups(
    baseline_run: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_OPEN_FILES", 3)
    source = reshard(baseline_run, target, 4, 2)
    assert compare_checkpoints(inspect_checkpoint(source), inspect_checkpoint(target)).equal


@pytest.mark.parametrize(
    ("ranks", "files", "words"),
    [
        (3, 1, "does not divide model.num_attention_heads = 8"),
        (8, 1, "does not divide model.num_query_groups = 4; nearest that work: 4 or 2"),
        (0, 1, "give at least 1 each"),
        (1, 0, "give at least 1 each"),
    ],
)
def test_a_layout_that_no_run_could_have_is_refused(
    baseline_run: Path, target: Path, ranks: int, files: int, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        reshard(baseline_run, target, ranks, files)
    assert not target.parent.exists()


def test_the_autoencoder_is_never_cut(store: CheckpointStore, engine: SmallEngine, target: Path) -> None:
    store.begin(engine, progress_at(5))
    store.finish()
    with pytest.raises(UserError, match="the autoencoder is trained by data-parallel ranks only"):
        reshard(store.directory.parent, target, 2, 1)
    reshard(store.directory.parent, target, 1, 2)
    assert [len(Shard(path).places) for path in sorted(target.glob("*.safetensors"))] == [2, 2]


def test_what_is_there_is_never_replaced(baseline_run: Path, target: Path) -> None:
    target.mkdir(parents=True)
    with pytest.raises(UserError, match="there is something of this name"):
        reshard(baseline_run, target, 2, 1)
    assert list(target.iterdir()) == []


def test_a_name_under_which_no_run_would_find_it_is_refused(baseline_run: Path, target: Path) -> None:
    for wrong in (target.with_name("resharded"), target.with_name("step_00000006")):
        with pytest.raises(UserError, match=f"name it {STEP}"):
            reshard(baseline_run, wrong, 2, 1)


@pytest.mark.parametrize("name", ["rank_00000.safetensors", "config.yaml", "progress.json", "manifest.json"])
def test_a_damaged_source_is_refused(baseline_run: Path, target: Path, name: str) -> None:
    DAMAGES["flipped"](find_checkpoint(baseline_run) / name)
    with pytest.raises(UserError, match=name):
        reshard(baseline_run, target, 2, 1)
    assert not target.parent.exists()


@pytest.mark.parametrize("phase", ["write", "verify", "compare"])
def test_an_interrupted_one_leaves_nothing(baseline_run: Path, target: Path, phase: str) -> None:
    seen: list[str] = []

    def interrupt(doing: str, done: int, total: int) -> None:
        if not seen or seen[-1] != doing:
            seen.append(doing)
        if doing == phase and 2 * done > total and (phase != "verify" or seen.count("verify") == 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reshard(baseline_run, target, 2, 2, interrupt)
    assert list(target.parent.iterdir()) == []
    (target.parent / f".reshard.{STEP}.partial").mkdir()  # as a kill would leave it
    reshard(baseline_run, target, 2, 2)
    assert sorted(path.name for path in target.parent.iterdir()) == ["latest", STEP]


def test_a_full_disk_leaves_nothing(baseline_run: Path, target: Path) -> None:
    with (
        pytest.raises(UserError, match=r"the checkpoint could not be written: .*File too large"),
        files_of_at_most(9999),
    ):
        reshard(baseline_run, target, 2, 1)
    assert list(target.parent.iterdir()) == []
