"""The report holds the figures, stands alone, and cannot be broken by the text in it."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from calm_megatron.config.errors import UserError
from calm_megatron.telemetry import plots
from calm_megatron.telemetry.report import write_report

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """The tags of a page, its visible text, and the headings of its sections."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data
        if self.open[-1:] == ["h2"]:
            self.headings.append(data)


def test_the_figures_are_there(autoencoder_run: Path, calm_run: Path, tmp_path: Path) -> None:
    path = write_report(
        tmp_path / "out",
        autoencoder_run=autoencoder_run,
        calm_run=calm_run,
        commands=["python pretrain_ae.py model.yaml machine.yaml"],
        about={"Corpus": "Shakespeare, 4.9 MB"},
    )
    assert path == tmp_path / "out" / "report.html"
    page = Page(path.read_text())
    figures = [
        "99.87 %",
        "99.934 %",
        "61 of 64",
        "7.21",
        "6.94 to 7.49",
        "1.12",
        "0.08710",
        "95 %",
        "245,760",
        "3.64M",
        "5.81M",
    ]
    words = [
        "Shakespeare, 4.9 MB",
        "python pretrain_ae.py",
        "Example CPU",
        "from step 64 to 160",
        "What says the Duke of Norfolk",
    ]
    assert [text for text in figures + words if text not in page.text] == []
    assert page.headings == [
        "BrierLM",
        "Samples",
        "Autoencoder",
        "CALM",
        "What was run",
        "Commands",
        "Environment",
        "Timeline",
    ]
    assert page.tags.count("svg") == 2 + 4 + 3 + 2 + 3


def test_it_needs_nothing_but_itself(autoencoder_run: Path, calm_run: Path, tmp_path: Path) -> None:
    text = write_report(tmp_path, autoencoder_run=autoencoder_run, calm_run=calm_run).read_text()
    page = Page(text)
    assert [link for link in page.links if not link.startswith("#")] == []
    assert not re.search(r"@import|url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids)), "charts must not share ids"
    referred = set(re.findall(r"url\(#([^)]+)\)", text)) | {link[1:] for link in page.links}
    assert referred <= set(page.ids)


def test_text_from_the_model_cannot_become_markup(autoencoder_run: Path, calm_run: Path, tmp_path: Path) -> None:
    text = write_report(
        tmp_path,
        autoencoder_run=autoencoder_run,
        calm_run=calm_run,
        commands=["echo <b>bold</b>"],
        about={"<i>Corpus": '"><img src=x>'},
        title="A & <u>B</u>",
    ).read_text()
    page = Page(text)
    assert not {"script", "b>bold", "u", "i", "img"} & set(page.tags)
    for shown in (
        "tell me <script>alert('how much')</script> & be brief.",
        "echo <b>bold</b>",
        '"><img src=x>',
        "A & <u>B</u>",
    ):
        assert shown in page.text


@pytest.mark.parametrize("missing", ["evaluation.json", "baselines.json", "samples.json", "config.yaml", "log.jsonl"])
def test_what_is_missing_leaves_out_its_part(
    missing: str, autoencoder_run: Path, calm_run: Path, tmp_path: Path
) -> None:
    for run in (autoencoder_run, calm_run):
        (run / missing).unlink(missing_ok=True)
    page = Page(write_report(tmp_path, autoencoder_run=autoencoder_run, calm_run=calm_run).read_text())
    gone = {
        "evaluation.json": {"BrierLM"},
        "samples.json": {"Samples"},
        "log.jsonl": {"CALM", "Environment", "Timeline"},
        "baselines.json": set(),
        "config.yaml": set(),
    }[missing]
    everything = {"BrierLM", "Samples", "Autoencoder", "CALM", "What was run", "Environment", "Timeline"}
    assert set(page.headings) == everything - gone
    assert ("unigram" in page.text) == (missing not in ("evaluation.json", "baselines.json"))


def test_a_report_of_one_run(autoencoder_run: Path, calm_run: Path, tmp_path: Path) -> None:
    assert "CALM" not in Page(write_report(tmp_path / "a", autoencoder_run=autoencoder_run).read_text()).headings
    assert "Autoencoder" not in Page(write_report(tmp_path / "b", calm_run=calm_run).read_text()).headings


def test_exchanged_runs_are_refused(autoencoder_run: Path, calm_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="evaluation of 'calm'"):
        write_report(tmp_path, autoencoder_run=calm_run, calm_run=autoencoder_run)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("evaluation.json", "{", "not valid JSON"),
        ("config.yaml", "a: [", "not valid YAML"),
        ("evaluation.json", '{"task": "calm"}', "no loss"),
        ("evaluation.json", "[]", "not an object"),
        ("evaluation.json", '"x"', "not an object"),
        ("evaluation.json", "null", "not an object"),
        ("baselines.json", "null", "not an object"),
        ("baselines.json", "[1]", "not an object"),
        ("baselines.json", '{"unigram": 3}', "not an object"),
        ("samples.json", "null", "not a list"),
        ("samples.json", '{"prompt": "x"}', "not a list"),
        ("samples.json", "[1]", "not an object"),
    ],
)
def test_damaged_files_are_refused(name: str, content: str, said: str, calm_run: Path, tmp_path: Path) -> None:
    (calm_run / name).write_text(content)
    with pytest.raises(UserError, match=said) as error:
        write_report(tmp_path, calm_run=calm_run)
    assert name in error.value.where


def test_a_place_that_cannot_be_written_is_refused(calm_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "file", calm_run=calm_run)


def test_losses_that_are_not_numbers_are_left_out_of_the_charts() -> None:
    svg = plots.curves("Loss", [plots.Line("", list(range(1, 101)), [float("nan")] * 50 + [2.0] * 50)])
    assert not re.search(r"\bnan\b", svg, re.IGNORECASE)
    assert ">0<" in svg and ">100<" in svg


def test_a_long_run_makes_a_small_chart() -> None:
    steps = list(range(1, 200_001))
    svg = plots.curves("Loss", [plots.Line("", steps, [5.0 + 1.0 / step + 0.01 * (step % 7) for step in steps])])
    assert len(svg) < 60_000
    assert ">200k<" in svg


def test_perfect_accuracy_has_a_place_on_the_logarithmic_axis() -> None:
    svg = plots.accuracy_curves("Accuracy", [plots.Line("", [1, 2, 3], [0.5, 0.999, 1.0], drawn="with marks")])
    assert ">99.9 %<" in svg
    assert not re.search(r"\b(nan|inf)\b", svg, re.IGNORECASE)


def test_the_command_line(autoencoder_run: Path, calm_run: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tools.report",
        "--autoencoder",
        str(autoencoder_run),
        "--calm",
        str(calm_run),
        "--output",
        str(tmp_path),
    ]
    done = subprocess.run([*command, "--about", "Corpus=plays"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"wrote {tmp_path / name}" for name in ("report.html", "summary.json")]
    assert "plays" in (tmp_path / "report.html").read_text()
    failed = subprocess.run([*command, "--about", "plays"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "NAME=TEXT" in failed.stderr and "Traceback" not in failed.stderr
