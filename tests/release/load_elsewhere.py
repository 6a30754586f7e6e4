"""Loads releases by transformers alone, in any environment that has it and torch, and says what they give.

Usage: python load_elsewhere.py FOLDER=FIGURES ...; the figures are the io.safetensors of a golden checkpoint, whose
noise is used, or nothing for a Llama with a tokenizer. Prints JSON: versions, and for each folder its largest
differences from the figures and what it wrote.
"""

import json
import sys

import torch
import transformers
from safetensors.torch import load_file

sys.modules["calm_megatron"] = None  # who receives a release has no such package


class Recorded:
    """Noise that the official code has used."""

    def __init__(self, figures):
        self.figures = figures

    def uniform(self, purpose, count, size):
        return self.figures["head_noise"] + 0.5

    def normal(self, purpose, count, size):
        if purpose == "start":
            return self.figures["sample_init"].view(count, -1, size)
        return self.figures["sample_step_noise"][99 - int(purpose.split()[1])].view(count, -1, size)


def relative(ours, expected):
    return float((ours.double() - expected.double()).abs().max() / expected.double().abs().max())


def of_autoencoder(folder, figures):
    model = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32).eval()
    mean_RZ, _ = model.encode(figures["input_ids"].view(-1, model.config.patch_size))
    return {
        "latents": relative(mean_RZ, figures["enc_mean"].flatten(0, 1)),
        "logits": relative(model.logits(figures["dec_latents"][0]).flatten(0, 1), figures["dec_logits"][0]),
    }


def of_calm(folder, figures):
    auto = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32).eval()
    K = model.config.patch_size
    hidden_BPH = model(figures["input_ids"][:, :-K]).last_hidden_state
    expected = figures.get("head_latents", figures.get("sample_latents"))
    latents = model.sample(figures["backbone_hidden"].flatten(0, 1), len(expected), Recorded(figures))
    found = {"hidden": relative(hidden_BPH, figures["backbone_hidden"]), "latents": relative(latents, expected)}
    if "generate_T1" in figures:
        steps = iter(figures["generate_T1_noise"])
        ids = model.generate(
            figures["generate_prompt"],
            max_length=6 * K,
            temperature=1.0,
            noise=lambda rows: Recorded({"head_noise": next(steps)[None]}),
        )
        found["official generation"] = bool(torch.equal(ids, figures["generate_T1"]))
    torch.manual_seed(0)
    found["written"] = model.generate(figures["input_ids"][:, :K], max_length=4 * K, num_samples=20)[0].tolist()
    return found


def of_llama(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("The rain in Spain", return_tensors="pt").input_ids
    written = transformers.LlamaForCausalLM.from_pretrained(folder).generate(ids, max_new_tokens=4, do_sample=False)
    return {"ids": ids[0].tolist(), "written": written[0].tolist(), "text": tokenizer.decode(ids[0])}


def main():
    """Load all of them."""
    said = {"transformers": transformers.__version__, "torch": torch.__version__}
    for word in sys.argv[1:]:
        folder, file = word.split("=")
        figures = load_file(file) if file else {}
        with torch.no_grad():
            of = of_autoencoder if "enc_mean" in figures else of_calm
            said[folder] = of(folder, figures) if figures else of_llama(folder)
    print(json.dumps(said))


main()
