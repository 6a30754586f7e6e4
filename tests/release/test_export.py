"""Runs of ours as releases: a stock Llama, tokenizer, model card, and a command line that compares."""

import importlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calm_megatron.checkpoint.load import find_checkpoint, load_ar_baseline, saved_config
from calm_megatron.checkpoint.official_config import SpecialTokens, official_config
from calm_megatron.config.errors import UserError
from calm_megatron.config.files import to_tree
from calm_megatron.config.schema import CalmConfig
from calm_megatron.data.tokenizer import Tokenizer
from calm_megatron.parallel.grid import Grid
from calm_megatron.release.exporting import verify
from calm_megatron.release.importing import import_official
from tests.small_runs import ROOT, VOCABULARY

transformers: Any = importlib.import_module("transformers")
TOOL = ROOT / "tools" / "convert_checkpoint.py"


@torch.no_grad()
def test_a_baseline_is_a_stock_llama_with_the_same_logits(baseline: Path, release: Path, grid: Grid) -> None:
    assert not (release / "modeling_calm.py").exists()
    llama = transformers.LlamaForCausalLM.from_pretrained(release).eval()
    ours = load_ar_baseline(baseline)
    ids_BT = torch.randint(VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))
    logits_RV = ours.logits(ours.hidden_states(ids_BT).flatten(0, 1))
    torch.testing.assert_close(llama(ids_BT).logits.flatten(0, 1), logits_RV, rtol=0, atol=1e-4)
    assert llama.config.rope_parameters["rope_theta"] == 5000.0
    text = llama.generate(ids_BT[:1], max_new_tokens=4, do_sample=False)
    assert text.shape == (1, 20)


def test_a_llama_that_transformers_saved_comes_in(release: Path, baseline: Path, tmp_path: Path) -> None:
    transformers.LlamaForCausalLM.from_pretrained(release).save_pretrained(tmp_path / "saved")
    import_official(tmp_path / "saved", tmp_path / "in")
    ours, theirs = saved_config(baseline).model, saved_config(tmp_path / "in").model
    assert replace(ours, pad_token_id=None) == theirs
    assert verify(tmp_path / "in", release).differences.equal


def test_the_tokenizer_gives_the_same_ids(release: Path, small_corpus: Path) -> None:
    ours = Tokenizer.load(small_corpus.parent / "tokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(release)
    text = "The rain in Spain, and 12 königliche words."
    assert theirs(text).input_ids == ours.encode(text)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (ours.eod_id, ours.pad_id)
    generation = json.loads((release / "generation_config.json").read_text())
    assert generation == {"eos_token_id": ours.eod_id, "pad_token_id": ours.pad_id}


def test_the_card_says_what_is_known(baseline: Path, release: Path) -> None:
    card = (release / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    for line in (
        "| training steps | 7 |",
        "| BrierLM | 1.25 (95% interval 1.00 to 1.50; split valid, step 7) |",
        "  rotary_base: 5000.0",
        "largest differences: hidden states",
    ):
        assert line in card, card
    assert "`corpus`: 60 documents" in card
    assert f"  directory: {baseline.name}\n" in card and str(baseline.parent) not in card


def test_a_model_that_the_official_code_does_not_have_is_refused() -> None:
    model = CalmConfig(
        autoencoder="a",
        vocab_size=8,
        num_layers=1,
        hidden_size=8,
        ffn_hidden_size=8,
        num_attention_heads=1,
        input="latents",
    )
    with pytest.raises(UserError, match=r"model.input is 'latents', and the official format has no such model"):
        official_config(model, SpecialTokens(), 8, "float32")


def test_the_command_line_converts_and_compares(
    imported: Callable[[str], Path],
    copied: Callable[[str], Path],
    program: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    folder = copied("ae")
    out = folder.parent / "out"
    done = program(TOOL, "export", imported("ae"), out, "--shard-gigabytes", "0.00005", "--license", "mit")
    assert done.returncode == 0, done.stderr
    assert "largest differences: latents" in done.stdout and f"wrote {out}" in done.stdout
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    same = program(TOOL, "import", out, imported("ae"), "--verify")
    assert same.returncode == 0 and "are the same model" in same.stdout, same.stderr
    other = program(TOOL, "export", imported("ae"), copied("ae_k2"), "--verify")
    assert other.returncode == 2 and "the two models have other weights" in other.stderr
    again = program(TOOL, "export", imported("ae"), out)
    assert again.returncode == 2 and "there is something of this name" in again.stderr


def test_the_config_of_an_import_is_whole(imported: Callable[[str], Path]) -> None:
    tree = to_tree(saved_config(imported("energy")))
    assert tree["data"]["data_path"] == "unknown" and tree["data"]["seq_length"] == 4 * 2048
    assert tree["model"]["autoencoder"] == str(imported("energy") / "autoencoder")
    assert find_checkpoint(imported("energy")).name == "step_00000000"
