"""What the documentation says exists: links, commands, options, settings, files, and configs that load."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from calm_megatron.config.docs import with_tables
from calm_megatron.config.files import load_run, setting_names, to_yaml
from calm_megatron.config.schema import BackboneConfig, RunConfig
from calm_megatron.data.sampler import BatchSchedule
from calm_megatron.plan.report import read_for_plan

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MODELS = sorted((ROOT / "examples" / "models").glob("*.yaml"))
MACHINES = sorted((ROOT / "examples" / "machines").glob("*.yaml"))

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"^(?:run|model|data|optimizer|train|parallel|checkpoint|evaluation|logging)\.[a-z_0-9.]+(?==|$)")
FILE = re.compile(r"^[\w./-]+\.(?:py|yaml|md|txt|toml|json|jsonl|html)$")
PROGRAMS = ("python", "torchrun", "make")
SOURCES = (".py", ".md")


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


pages = pytest.mark.parametrize("page", PAGES, ids=page_name)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command line of ours, in shell blocks and between backticks."""
    text = page.read_text(encoding="utf-8")
    lines = [
        line
        for kind, block in FENCE.findall(text)
        if kind == "bash"
        for line in block.replace("\\\n", " ").splitlines()
    ]
    for line in [*lines, *inline_code(page)]:
        if "..." not in line and any(word in line.split() for word in PROGRAMS):
            words = shlex.split(line, comments=True)
            while "=" in words[0]:  # variables of the environment
                words = words[1:]
            if words[0] in PROGRAMS and len(words) > 1:
                yield words


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def options(program: Path) -> set[str]:
    """The options that a program's source, or the module it shares them with, hands to argparse."""
    source = program.read_text(encoding="utf-8")
    trees = [ast.parse(source)]
    shared = {"add_corpus_arguments": "data/arguments.py", "command_line.parse": "train/command_line.py"}
    trees += [
        ast.parse((ROOT / "calm_megatron" / path).read_text(encoding="utf-8"))
        for name, path in shared.items()
        if name in source
    ]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [call.args[0] for call in calls if call.args and isinstance(call.args[0], ast.Constant)]
    return {str(name.value) for name in named if str(name.value).startswith("--")}


def wrong_in_make(words: list[str]) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words[1:]:
        name, equals, _ = word.partition("=")
        pattern = rf"\$\({name}\)" if equals else rf"^[\w -]*\b{re.escape(name)}\b[\w -]*:(?!=)"
        if not re.search(pattern, makefile, re.MULTILINE):
            yield f"the Makefile knows no {word}"


def wrong_in_program(words: list[str]) -> Iterator[str]:
    if words[1] == "-m":
        if importlib.util.find_spec(words[2]) is None:
            yield f"there is no module {words[2]}"
        return
    place = next((place for place, word in enumerate(words) if word.endswith(".py")), None)
    if place is None or not (ROOT / words[place]).is_file():
        yield "there is no such program"
        return
    known = options(ROOT / words[place])
    yield from (
        f"{words[place]} has no option {word}" for word in words[place:] if word[:2] == "--" and word not in known
    )
    if words[place].startswith("pretrain_"):
        yield from (
            f"there is no file {word}" for word in words if word[:9] == "examples/" and not (ROOT / word).is_file()
        )
        names = [word.partition("=")[0] for word in words[place:] if "=" in word]
        yield from (f"there is no setting {name}" for name in names if name not in set(setting_names(RunConfig)))


@pages
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    local = [target for target in targets if not re.match(r"https?://", target)]
    for target in local:
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{target}: there is no {file}"
        assert not anchor or anchor in anchors(file), f"{target}: the headings there are {sorted(anchors(file))}"


def test_every_page_can_be_found_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for page in PAGES if (name := page_name(page)) != "README.md" and f"]({name})" not in readme]


@pages
def test_commands_can_be_typed(page: Path) -> None:
    checks = {"make": wrong_in_make, "python": wrong_in_program, "torchrun": wrong_in_program}
    wrong = [f"{' '.join(words)}\n    {what}" for words in commands(page) for what in checks[words[0]](words)]
    assert not wrong, "\n".join(wrong)


@pages
def test_runs_that_are_shown_are_accepted(page: Path) -> None:
    for words in commands(page):
        place = next((place for place, word in enumerate(words) if word.startswith("pretrain_")), None)
        if place is not None and "=" in " ".join(words):
            dry = words.index("--dry-run") if "--dry-run" in words else None
            given = words[place + 1 :] if dry is None else words[place + 1 : dry] + words[dry + 2 :]
            files = [ROOT / word for word in given if "=" not in word]
            config = (load_run if dry is None else read_for_plan)(files, [word for word in given if "=" in word])
            ranks = int(words[words.index("--nproc-per-node") + 1]) if words[0] == "torchrun" else 1
            ranks = ranks if dry is None else int(words[dry + 1])
            layout = config.parallel
            data_ranks = ranks // (layout.tensor_model_parallel_size * layout.pipeline_model_parallel_size)
            BatchSchedule(config.train.global_batch_size, None, config.train.micro_batch_size, max(1, data_ranks))
            assert words[place] == (
                "pretrain_calm.py" if isinstance(config.model, BackboneConfig) else "pretrain_ae.py"
            )


def test_the_readme_shows_every_step() -> None:
    shown = {word for words in commands(ROOT / "README.md") for word in words if word.endswith(".py")}
    steps = {"train_tokenizer", "preprocess_data", "evaluate", "generate", "report"}
    assert shown >= {"pretrain_ae.py", "pretrain_calm.py", *(f"tools/{step}.py" for step in steps)}


@pages
def test_settings_and_files_that_are_named_exist(page: Path) -> None:
    known = set(setting_names(RunConfig))
    settings = [match.group() for code in inline_code(page) if (match := SETTING.match(code)) and not FILE.match(code)]
    assert not [name for name in settings if name not in known]
    files = [code for code in inline_code(page) if FILE.match(code) and "/" in code and code.endswith(SOURCES)]
    places = (ROOT, ROOT / "calm_megatron")
    assert not [name for name in files if not any((place / name).is_file() for place in places)]


def test_the_page_of_settings_is_what_the_schema_says() -> None:
    page = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == with_tables(page), "run: python -m calm_megatron.config.docs docs/config.md"
    assert not [
        name
        for name in setting_names(RunConfig)
        if name.count(".") and f"`{name}`" not in page and name != "model.head"
    ]


@pytest.mark.parametrize("machine", MACHINES, ids=lambda path: path.stem)
@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
def test_examples_load(model: Path, machine: Path) -> None:
    config = load_run([model, machine], ["run.directory=runs/x", "data.data_path=data/corpus"])
    assert model.stem.startswith({"autoencoder": "ae", "calm": "calm", "ar": "ar"}[config.model.type])


def test_the_saved_config_of_a_run_is_a_config_file(tmp_path: Path) -> None:
    config = load_run([MODELS[0], MACHINES[0]], ["run.directory=runs/x", "data.data_path=data/corpus"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_run([tmp_path / "config.yaml"]) == config
