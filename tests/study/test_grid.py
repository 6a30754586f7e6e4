"""Which runs a study's YAML means, and what is refused before anything is trained."""

from pathlib import Path

import pytest
import yaml

from calm_megatron.config.errors import UserError
from calm_megatron.config.files import to_yaml
from calm_megatron.config.schema import CalmConfig
from calm_megatron.study.grid import Cell, read_study, settings_that_differ
from tests.small_runs import ROOT

STUDY = {
    "files": [str(ROOT / "examples/machines/cpu.yaml")],
    "settings": {"data.data_path": "corpus"},
    "runs": {
        "energy": {
            "files": [str(ROOT / "examples/study/calm.yaml"), str(ROOT / "examples/study/language.yaml")],
            "settings": {"model.head.num_samples": 4, "evaluation.brier_pairs": 2},
            "autoencoder": "ae",
            "grid": {"model.patch_size": [2, 4], "run.seed": [1, 2]},
        },
        "ae": {"files": [str(ROOT / "examples/study/autoencoder.yaml")], "grid": {"model.patch_size": [2, 4]}},
    },
}


def read(folder: Path, **changes: object) -> list[Cell]:
    """A study whose settings are changed by `a__b=value`."""
    tree = yaml.safe_load(yaml.safe_dump(STUDY))
    for name, value in changes.items():
        *parents, last = name.split("__")
        inner = tree
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(tree))
    return read_study(file, folder / "runs")


def test_a_grid_is_every_combination_behind_its_autoencoder(tmp_path: Path) -> None:
    cells = read(tmp_path)
    assert [cell.name for cell in cells] == [
        "ae-patch_size_2",
        "ae-patch_size_4",
        *(f"energy-patch_size_{K}-seed_{seed}" for K in (2, 4) for seed in (1, 2)),
    ]
    last = cells[-1]
    assert isinstance(last.config.model, CalmConfig)
    assert (last.config.model.patch_size, last.config.run.seed) == (4, 2)
    assert last.after == "ae-patch_size_4"
    assert last.config.model.autoencoder == str(tmp_path / "runs" / "ae-patch_size_4")
    assert last.folder == tmp_path / "runs" / last.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs__energy__settings": {"model.hidden": 4}}, r"model\.hidden[\s\S]*run energy-patch_size_2-seed_1"),
        ({"runs__energy__autoencoder": "other"}, "the autoencoder 'other' fits none of its runs"),
        ({"runs__ae__grid": {"model.patch_size": [8]}}, "the autoencoder 'ae' fits none of its runs"),
        ({"runs__ae__grid": {"model.latent_size": [32, 64]}}, r"fits 2 of its runs \(ae-latent_size_32"),
        ({"runs__energy__grid": {"model.patch_size": []}}, "at least 1 item"),
        ({"runs__energy__autoencoder": None}, "model.autoencoder"),
        ({"runs__energy__jobs": 3}, "jobs"),
        ({"runs": {}}, "runs"),
        ({"runs__a b": {}}, "a b"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, **changes)


def test_other_settings_of_a_run_that_was_begun_are_named(tmp_path: Path) -> None:
    before = read(tmp_path)[-1]
    assert settings_that_differ(before) == []
    before.folder.mkdir(parents=True)
    (before.folder / "config.yaml").write_text(to_yaml(before.config))
    assert settings_that_differ(before) == []
    after = read(tmp_path, settings={"data.data_path": "corpus", "optimizer.weight_decay": 0.3})[-1]
    assert settings_that_differ(after) == ["optimizer.weight_decay"]


def test_the_example_is_a_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    cells = read_study(Path("examples/study/study.yaml"), tmp_path)
    assert len(cells) == 11
    tokens = {cell.config.train.train_iters * cell.config.train.global_batch_size * 256 for cell in cells[2:]}
    assert tokens == {4_096_000}, "all language models see as much text"
