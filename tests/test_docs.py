"""README and docs/: links, commands and flags exist, every page is reachable, and the README stays short."""

import csv
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import reproduce
from dataloader.load import load_data
from dataloader.noise import HUMAN
from scripts import detector_table
from tests.helpers import phase1
from utils.config import default_values, known_keys, load_config
from utils.errors import UserError

PAGES = [Path("README.md"), Path("CONTRIBUTING.md"), Path("benchmarks/README.md"), *sorted(Path("docs").glob("*.md"))]


def links(page):
    """(file, anchor) of every relative link and image of a page."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        path, _, anchor = (target[0] or target[1]).partition("#")
        if "://" not in path:
            yield (page.parent / path).resolve() if path else page.resolve(), anchor


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page):
    """The command lines of a page's sh blocks, as lists of words."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    for path, anchor in links(page):
        assert path.exists(), f"{page}: {path}"
        assert not anchor or anchor in anchors(path), f"{page}: {path}#{anchor}"


def test_every_page_is_reachable_from_the_readme():
    seen, todo = set(), [Path("README.md").resolve()]
    while todo:
        page = todo.pop()
        if page not in seen:
            seen.add(page)
            todo += [path for path, _ in links(page) if path.suffix == ".md"]
    assert {page.resolve() for page in PAGES} <= seen


def test_the_readme_is_short():
    assert len(Path("README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_name_scripts_files_and_flags_that_exist(page):
    for words in commands(page):
        programs = [word for word in words if re.fullmatch(r"main_\w+\.py|reproduce\.py", word)]
        programs += [f"{m.replace('.', '/')}.py" for w, m in zip(words, words[1:]) if w == "-m" and "." in m]
        for program in programs:
            assert Path(program).is_file(), f"{page}: {program}"
        for word, following in zip(words, [*words[1:], ""]):
            if word == "--cfg":
                assert Path(following).is_file() or following.startswith("runs/"), f"{page}: {following}"
            elif word.startswith("--") and words[0] == "python" and programs and "benchmarks" not in programs[0]:
                assert word in flags_of(programs[0]), f"{page}: {programs[0]} {word}"


def flags_of(program):
    """The flags of a script: the settings, or what its source (or report/flags.py, for all of report/) adds."""
    if program.startswith("main_"):
        script = Path(program).stem.replace("main_real_", "main_")  # the twins read what their script does
        return {f"--{name}" for name, key in known_keys().items() if key.read_by(script)}
    sources = [program, "report/flags.py"] if program.startswith("report/") else [program]
    return {flag for source in sources for flag in re.findall(r'"(--\w+)"', Path(source).read_text(encoding="utf-8"))}


def test_settings_that_the_documentation_names_exist():
    """The first column of the table in docs/settings.md."""
    rows = re.findall(r"^\| (`[^|]*) \|", Path("docs/settings.md").read_text(encoding="utf-8"), re.M)
    keys = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert len(keys) > 20 and keys <= default_values().keys(), keys - default_values().keys()


def test_every_method_and_detector_is_documented():
    from methods.baselines import METHODS
    from methods.detectors import DETECTORS

    text = Path("docs/methods.md").read_text(encoding="utf-8")
    missing = [name for name in [*METHODS, *DETECTORS] if f"`{name}`" not in text]
    assert not missing


def test_one_version():
    version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load(Path("CITATION.cff").read_text())["version"] == version


def test_the_extensions_of_the_design_page_work(tmp_path):
    """Apply the diffs of docs/design.md to a copy of the source tree, and run the tests that they add."""
    for folder in ("config", "dataloader", "methods", "model", "report", "utils"):
        shutil.copytree(folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in [
        *Path().glob("main_*.py"),
        *(Path("tests") / f"{name}.py" for name in ("conftest", "helpers", "recipe")),
    ]:
        (tmp_path / path.parent).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path)
    shutil.copy("tests/__init__.py", tmp_path / "tests")
    text = Path("docs/design.md").read_text(encoding="utf-8")
    diffs = re.findall(r"```diff\n(.*?)```", text.partition("## Extending")[2], re.S)
    assert len(diffs) == 6 and all("+++ b/tests/test_" in diff for diff in diffs)
    for diff in diffs:
        applied = subprocess.run(["git", "apply"], input=diff, cwd=tmp_path, capture_output=True, text=True)
        assert applied.returncode == 0, f"{applied.stderr}\n{diff}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and "6 passed" in run.stdout, run.stdout + run.stderr


def test_the_table_of_the_design_page(tmp_path, capsys):
    text = Path("docs/design.md").read_text(encoding="utf-8").partition("### A table")[2]
    (tmp_path / "mine.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.S)[0])
    flags = ["--table", "mine", "--dry_run", "--output_dir", str(tmp_path / "runs")]
    assert len(reproduce.main(["--tables", str(tmp_path / "mine.yaml"), *flags])["mine"]) == 8
    out = capsys.readouterr().out
    assert "6 commands to run" in out and out.count("--mask deft-margin") == 2  # of the phase 1 with that tag


def test_the_python_of_the_design_page(tmp_path, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", Path("docs/design.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict = {}
    exec(block.replace('"0.4"]', f'"0.4", "--output_dir", "{tmp_path}"]'), names)
    assert len(names["suspects"]) == (~names["found"].mask).sum() > 100 and "'auroc': 0.99" in capsys.readouterr().out


def test_figures_of_the_detectors():
    """The short table of docs/methods.md is part of the whole one; no other detector beats `auto` by more than a spread."""
    page, whole = (Path(name).read_text(encoding="utf-8") for name in ("docs/methods.md", "results/detectors.md"))
    f1 = whole.split("## ")[1]
    cells = {tuple(re.findall(r"[\d.]+ ± [\d.]+", line)) for line in f1.splitlines()}
    short = page.split("| detector | sym 0.2 ")[1].split("\n\n")[0].splitlines()[2:]
    assert len(short) == 8 and all(tuple(re.findall(r"[\d.]+ ± [\d.]+", line)) in cells for line in short)
    seen = {}
    with open("results/detectors.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for measure in ("f1", "auroc", "auprc_wrong", "precision_100"):
                seen.setdefault((measure, row["noise"], row["detector"]), []).append(float(row[measure]))
    for (measure, noise, name), values in seen.items():
        auto = seen[measure, noise, "auto"]
        if name == "auto, no texts":  # a setting of `auto`; better at sym 0.6, as the page says
            continue
        assert np.mean(values) - np.mean(auto) <= max(np.std(values, ddof=1), np.std(auto, ddof=1))


def test_figures_of_the_methods():
    """The accuracies on the digits in the README are those of results/methods-digits.md."""

    def cells(line):
        return [cell.strip() for cell in line.split("|")[1:-1]]

    head, _, *lines = (line for line in Path("results/methods-digits.md").read_text().splitlines() if line[:1] == "|")
    found = {}
    for _, method, *texts in map(cells, lines):
        found |= {(method, column): re.sub(r" \(\d\)$", "", text) for column, text in zip(cells(head)[2:], texts)}
    names = {"DeFT, phase 1": "DeFT, phase 1's text classifier", "label-match": "zero-shot CLIP"}
    names |= {"CE on all labels": "CE", "DeFT, phase 2": "DeFT, phase 2"}
    _, *lines = Path("README.md").read_text().split("\n| noise | run ")[1].split("\n\n")[0].splitlines()[1:]
    assert len(lines) == 8
    noise = ""
    for given, run, *_, best, last in map(cells, lines):
        noise = given.replace(" ", "_") or noise
        assert [best, last.strip("*")] == [found[names[run], f"{noise} {metric}"] for metric in ("best", "last")]


@pytest.mark.parametrize("name", detector_table.TABLES)
def test_tables_of_detectors_are_those_of_their_rows(name, tmp_path):
    """results/detectors*.md is what scripts/detector_table.py writes of the CSV beside it."""
    table = detector_table.TABLES[name]
    with open(f"results/{table.file}.csv", newline="", encoding="utf-8") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    detector_table.write_tables(rows, table, tmp_path)
    assert (tmp_path / f"{table.file}.md").read_text() == Path(f"results/{table.file}.md").read_text()


def test_one_cell_of_a_table_of_detectors(tmp_path, capsys):
    """--dataset and --noise choose cells as in reproduce.py; rows that are there are named, not silently left out."""
    table, out = detector_table.TABLES["few"], tmp_path / "detectors-few.csv"
    one = SimpleNamespace(dataset=["cifar10"], noise=["worse_0.4"])
    assert detector_table.wanted_cells(table, one) == [("cifar10", "worse", 0.4)]
    assert len(detector_table.wanted_cells(table, SimpleNamespace(dataset=None, noise=["sym_0.4"]))) == 3
    assert detector_table.wanted_cells(table, SimpleNamespace(dataset=None, noise=None)) == list(table.cells)
    shutil.copy("results/detectors-few.csv", out)
    flags = ["--table", "few", "--seeds", "0", "--dataset", "cifar10", "--noise"]
    detector_table.main([*flags, "worse_0.4", "--out", str(tmp_path)])
    assert "detectors-few.csv: has the rows of 1 cells already" in capsys.readouterr().out
    assert out.read_text() == Path("results/detectors-few.csv").read_text()
    for noise, message in (("wors_0.4", "Did you mean worse_0.4"), ("worse_0.4", "there is no folder .*nothing")):
        with pytest.raises(UserError, match=message):
            detector_table.main(
                [*flags, noise, "--out", str(tmp_path / "new"), "--data_root", str(tmp_path / "nothing")]
            )
    with pytest.raises(UserError, match="no worse_0.4 of cifar100"):
        detector_table.wanted_cells(table, SimpleNamespace(dataset=["cifar100"], noise=["worse_0.4"]))


def test_rows_of_runs_that_trained(cell, monkeypatch):
    """Rows of the detectors that train are those of their finished runs, and of no run on other images."""
    monkeypatch.setattr(detector_table, "TRAINED", {"a": "deft", "gone": "gone-{}"})
    cfg = load_config(phase1(cell[0]))
    data = load_data(cfg)
    ((name, found, seconds),) = detector_table.trained_rows(["a", "gone"], cfg, data)
    measured = detector_table.measures(found, data.true_labels == data.train.labels)
    of_run = cell[1]["deft"]
    assert (name, seconds) == ("a", of_run["seconds"])
    assert [measured[k] for k in ("f1", "auroc", "auprc_mislabelled")] == [
        pytest.approx(of_run[k]) for k in ("f1", "auroc", "auprc_mislabelled")
    ]
    data.train.labels[0] += 1
    with pytest.raises(UserError, match="deft: was made of other labels"):
        list(detector_table.trained_rows(["a"], cfg, data))
    data.train.labels[0] -= 1
    data.train = data.train.take(np.arange(len(data.train.labels))[::-1])
    with pytest.raises(UserError, match="deft: was made of other images"):
        list(detector_table.trained_rows(["a"], cfg, data))


def test_figures_of_the_photographs():
    """The short table of docs/methods.md is part of the whole one."""
    page, whole = (
        Path(name).read_text(encoding="utf-8") for name in ("docs/methods.md", "results/detectors-photos.md")
    )
    cells, short = {}, page.split("| F1 | ")[1].split("\n\n")[0].splitlines()
    for table in whole.split("## ")[1].strip().split("\n\n")[1:]:
        (dataset, *noises), _, *lines = (
            [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()
        )
        cells |= {(name, f"{dataset} {n}"): text for name, *texts in lines for n, text in zip(noises, texts)}
    of = {
        "`auto`, texts withheld": "auto, no texts",
        "DeFT, `mask_by: pair`": "deft",
        "DeFT, `mask_by: margin`": "deft, mask_by margin",
    }
    columns = [column.strip() for column in short[0].split("|")[:-1]]
    for name, *texts in ([cell.strip() for cell in line.split("|")[1:-1]] for line in short[2:]):
        assert texts == [cells.get((of.get(name, name.strip("`")), column), "not run") for column in columns]
    assert len(short) > 6


def test_figures_of_few_photographs():
    """The table of the README is of the rows in results/: F1 of the selection, accuracy of the last epoch, three seeds."""
    seeds = {}
    with open("results/detectors-few.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            seeds.setdefault((row["detector"], row["dataset"], row["noise"], "F1"), []).append(100 * float(row["f1"]))
    figures = {key: (np.mean(f1), np.std(f1, ddof=1)) for key, f1 in seeds.items() if len(f1) == 3}
    with open("results/label-noises-photos.csv", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "last" and row["n"] == "3":
                mode, ratio = row["column"].split("_")
                noise = mode if mode in HUMAN else f"{mode} {ratio}"
                place = (row["dataset"].removeprefix("photos_"), noise, "acc.")
                figures[row["method"], *place] = (float(row["ours"]), float(row["sd"]))
    names = {
        "`label-match`, zero-shot CLIP": ("label-match", "zero-shot CLIP"),
        "DeFT, phase 1": ("deft", "DeFT, phase 1's text classifier"),
        "DeFT, `mask_by: margin`": ("deft, mask_by margin", ""),
        "DeFT, phase 2": ("", "DeFT, phase 2"),
        "small-loss, visual prompts": ("small-loss, visual prompts", "small-loss, visual prompts"),
        "GMM": ("gmm", "GMM"),
        "fine-tuning on all labels (CE)": ("", "CE"),
    }
    head, _, *lines = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in Path("README.md")
        .read_text(encoding="utf-8")
        .split("The next table is for photographs")[1]
        .split("\n\n")[1]
        .splitlines()
        if line.startswith("|")
    )
    assert len(lines) == len(names) + 2
    for name, *texts in lines:
        selection, training = names.get(name, (name.strip("`"), ""))
        for column, text in zip(head[1:], texts, strict=True):
            dataset, *noise, measure = column.replace(",", "").split()
            dataset = dataset.lower().replace("-10n", "-10").replace("-", "")
            found = figures.get((selection if measure == "F1" else training, dataset, " ".join(noise), measure))
            assert text == (found and "{:.1f} ± {:.1f}".format(*found) or ""), (name, column)


def test_how_often_estimates_hold_on_few_photographs():
    """What the page and the docs say of the interval is counted in its tables of noises."""
    page = Path("results/estimates-few.md").read_text(encoding="utf-8")

    def held(section, few):
        """{detector: in how many runs the interval holds the truth} of the noises with 5 % wrong labels or less, or of the others."""
        head, _, *rows = (
            [cell.strip() for cell in line.split("|")[1:-1]]
            for line in page.split(f"## {section}, by noise")[1].split("\n## ")[0].splitlines()
            if line.startswith("|")
        )
        cells = zip(head[3:], zip(*(row[3:] for row in rows if (float(row[2]) < 6) == few)))
        return {name: sum(int(cell.split("(")[1].split(" of ")[0]) for cell in column) for name, column in cells}

    alone, sample, sample_of_few = (
        held(*key)
        for key in (("Scores alone", False), ("A sample of 100 checked", False), ("A sample of 100 checked", True))
    )
    text, methods, own = (
        " ".join(Path(name).read_text(encoding="utf-8").split())
        for name in ("results/estimates-few.md", "docs/methods.md", "docs/own-images.md")
    )
    assert f"that of `auto` holds it in {alone['auto']} of 38 runs" in text
    assert (
        f"`clip-margin` in {alone['clip-margin']}, of `confident-learning` in {alone['confident-learning']} and of"
        in text
    )
    assert f"`label-match` in {alone['label-match']}." in text and not any(held("Scores alone", True).values())
    for page_of in (methods, own):
        assert f"{alone['auto']} of 38 runs, that of `label-match` in {alone['label-match']}" in page_of
    names = ("label-match", "auto", "clip-margin", "confident-learning")
    assert "truth in {}, {}, {} and {} of 38 runs".format(*(sample[name] for name in names)) in text
    assert f"below, in {sum(sample_of_few.values())} of 72 of all four" in text
    assert f"the interval contained the true number in {sample['auto'] + sample_of_few['auto']} of 56 runs" in own
