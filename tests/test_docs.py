"""README and docs/: links, commands and flags exist, every page is reachable, and the README stays short."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from utils.config import default_values

PAGES = [Path("README.md"), Path("CONTRIBUTING.md"), Path("benchmarks/README.md"), *sorted(Path("docs").glob("*.md"))]


def links(page):
    """(file, anchor) of every relative link and image of a page."""
    text = page.read_text(encoding="utf-8")
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
        scripts = [w for w in words if re.fullmatch(r"main_\w+\.py|reproduce\.py", w)]
        modules = [words[i + 1] for i, w in enumerate(words[:-1]) if w == "-m" and "." in words[i + 1]]
        for module in modules:
            assert Path(module.replace(".", "/") + ".py").is_file(), f"{page}: {module}"
        for name in scripts:
            assert Path(name).is_file(), f"{page}: {name}"
        for i, word in enumerate(words):
            if word == "--cfg":
                assert Path(words[i + 1]).is_file(), f"{page}: {words[i + 1]}"
            elif word.startswith("--") and any(name.startswith("main_") for name in scripts) and words[0] == "python":
                assert word[2:] in default_values(), f"{page}: {word}"


def test_settings_that_the_documentation_names_exist():
    """The first column of the table in docs/settings.md."""
    rows = re.findall(r"^\| (`[^|]*) \|", Path("docs/settings.md").read_text(encoding="utf-8"), re.M)
    keys = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert len(keys) > 20 and keys <= default_values().keys(), keys - default_values().keys()


def test_one_version():
    version = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load(Path("CITATION.cff").read_text())["version"] == version
