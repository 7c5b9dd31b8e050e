"""A person's own images: class folders, or a table with a path and a label column, read as rows of text."""

import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

from dataloader.files import IMAGE_SUFFIXES, image_files, is_system, passed_over
from utils.config import default_values
from utils.errors import UserError, brief, nearest
from utils.files import as_path, as_text, from_json

TABLE_SUFFIXES = {".csv", ".tsv", ".jsonl"}
INSTEAD = {  # of files that hold images or labels, but are not read
    ".zip": " Unpack it.",
    ".xlsx": " Save it as CSV (UTF-8).",
    ".xls": " Save it as CSV (UTF-8).",
    ".json": " Write it as JSON Lines (.jsonl), an object with path and label in each line.",
}
SPLITS = {
    "": "train",
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
}
COLUMNS = {  # setting: names it goes by where the setting is empty; the first two must be there
    "path_column": "path file filename file_name filepath file_path image image_path imagepath img img_path".split(),
    "label_column": "label labels class class_name classname category target given_label cls txt".split(),
    "split_column": "split subset partition".split(),
    "id_column": "id image_id sample_id uid uuid".split(),
    "true_label_column": "true_label true_labels clean_label gold_label correct_label".split(),
}


TRUSTED_BY = "trusted_by"  # column of the tables that a report writes: who trusts the label, a detector or a person
MISSING = {"nan", "na", "<na>", "n/a", "#n/a", "none", "null", "nat"}  # what programs write where there is no label
UNSORTED = {"unsorted", "unlabeled", "unlabelled", "unclassified", "unassigned", "unknown", "todo"}  # and people


@dataclass(frozen=True)
class Row:
    """One labelled image, all of it text; `where` is what an error calls it."""

    path: str
    label: str
    split: str = "train"  # train, test or val
    id: str = ""
    true_label: str = ""
    where: str = ""
    digest: str = ""  # of the file's content, in hex


def read_rows(source: str | Path, cfg: SimpleNamespace, key: str = "data_path") -> list[Row]:
    """The rows of a folder of class folders or of a CSV, TSV or JSONL file, in sorted or in the file's order.

    Of val and test, test is for testing and val is left out; val alone is for testing. Raises UserError where `source`,
    which it calls by its setting `key`, is neither, for an unknown column, and for the line of an empty or doubled field.
    """
    source = Path(source)
    if source.is_dir():
        rows = _read_folders(source, cfg, key)
    elif source.is_file() and source.suffix.lower() in TABLE_SUFFIXES:
        rows = _read_table(source, cfg)
    elif source.is_file():
        raise UserError(
            f"{key}: {source} is no folder and no {', '.join(sorted(TABLE_SUFFIXES))}, .parquet or .tar file."
            f"{INSTEAD.get(source.suffix.lower(), '')}"
        )
    else:
        if source == Path(default_values()["data_path"]):
            raise UserError(
                "data_path: --data_path names your folder of class folders, or a .csv, .tsv or .jsonl table."
            )
        there = [p.name for p in source.parent.glob("*")] if source.parent.is_dir() else []
        raise UserError(f"{key}: there is no folder or file {source}.{nearest(source.name, there)}")
    splits = {row.split for row in rows}
    if "val" in splits and "test" in splits:
        print(
            f"ignored: {sum(row.split == 'val' for row in rows)} images of the val split, since there is a test split"
        )
        rows = [row for row in rows if row.split != "val"]
    return rows


# --- class folders


def _metadata(folder: Path, cfg: SimpleNamespace) -> Path | None:
    """The table in a folder of images that gives their labels, as Hugging Face's imagefolder has it; None without one."""
    for table in (folder / "metadata.csv", folder / "metadata.jsonl"):
        if table.is_file():
            names = _first_names(table)
            if "file_name" in names and names & {cfg.label_column or "label", *COLUMNS["label_column"]}:
                return table
    return None


def _first_names(table: Path) -> set[str]:
    """The columns of a CSV or JSONL file, which may be no table: those of its first row, or of all lines that are objects."""
    text, names = _text(table), set[str]()
    if table.suffix == ".csv":
        with suppress(csv.Error):
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(table, text.split("\n", 1)[0]))
            names = {name.strip() for name in next(reader, [])}
        return names
    for line in text.split("\n"):
        with suppress(ValueError, AttributeError):
            names |= from_json(line).keys()
    return names


def _read_folders(root: Path, cfg: SimpleNamespace, key: str) -> list[Row]:
    rows, empty, splits = [], [], _split_folders(root, cfg, key)
    folders = {folder for _, folder, table in splits if not table}
    loose, others = _loose_files(folders | {root} - {folder for _, folder, table in splits if table})
    for split, folder, table in splits:
        if table:
            listed = _read_table(table, cfg)
            rows += [replace(row, split=split) if folder != root else row for row in listed]
            names = {os.path.normpath(row.path) for row in listed}
            left_out = [path for path in image_files(folder)[0] if os.path.normpath(path) not in names]
            if left_out:
                print(f"ignored images that {table} does not list ({len(left_out)}): {shortened(left_out, 5)}")
            continue
        for class_folder in _folders(folder):
            paths, passed = image_files(class_folder)
            rows += [Row(path, as_text(class_folder.name).strip(), split, where=as_text(path)) for path in paths]
            others += passed
            if not paths:
                empty.append(class_folder)
    if not rows:
        tables = sorted(str(p) for p in root.iterdir() if p.suffix.lower() in TABLE_SUFFIXES)
        beside = f"; {len(loose)} images lie in it directly, expected one folder for each class" if loose else ""
        raise UserError(
            f"{key}: {root} holds no class folder with an image in it"
            f"{beside or ' (' + ' '.join(sorted(IMAGE_SUFFIXES)) + ')'}."
            f"{' Did you mean ' + tables[0] + '?' if tables else ''}"
        )
    if empty:
        print(f"ignored class folders without images: {shortened(empty)}")
    if loose:
        print(f"ignored images outside the class folders ({len(loose)}): {shortened(loose, 5)}")
    if others:
        print(f"ignored files that are not images: {passed_over(others)}")
    return rows


def _loose_files(folders: Iterable[Path]) -> tuple[list[str], Counter[str]]:
    """(sorted paths of the images, {suffix: number of the other files}) that lie in these folders themselves."""
    files = [p for folder in folders for p in folder.iterdir() if p.is_file() and not is_system(p.name)]
    others = [p.suffix.lower() for p in files if p.suffix.lower() not in IMAGE_SUFFIXES]
    return sorted(str(p) for p in files if p.suffix.lower() in IMAGE_SUFFIXES), Counter(others)


def _folders(root: Path) -> list[Path]:
    return sorted(d for d in root.iterdir() if d.is_dir() and not is_system(d.name))


def _split_folders(root: Path, cfg: SimpleNamespace, key: str) -> list[tuple[str, Path, Path | None]]:
    """[(split, its folder, its table, if any)]. A folder is a split by its name, if it holds folders and no images, or a
    table of its images.

    Without any, root itself holds the class folders, to train on. UserError where splits are there, but none to train on.
    """
    folders = _folders(root)
    splits: dict[str, list[Path]] = {}
    tables: dict[Path, Path | None] = {}
    for folder in folders:
        if folder.name.lower() in SPLITS:
            tables[folder] = _metadata(folder, cfg)
            if tables[folder] or (_folders(folder) and not _holds_images(folder)):
                splits.setdefault(SPLITS[folder.name.lower()], []).append(folder)
    if not splits:
        return [("train", root, _metadata(root, cfg))]
    for split, found in splits.items():
        if len(found) > 1:
            raise UserError(f"{key}: {found[0]} and {found[1]} are both a {split} split, expected one.")
    if "train" not in splits:
        (only,) = next(iter(splits.values()))
        raise UserError(f"{key}: {only} is a test split, but there is no training split such as {root / 'train'}.")
    beside = [folder for folder in folders if [folder] not in splits.values()]
    if beside:
        print(f"ignored folders beside the training split: {shortened(beside)}")
    return [(split, folder, tables[folder]) for split, (folder,) in splits.items()]


def _holds_images(folder: Path) -> bool:
    return any(p.suffix.lower() in IMAGE_SUFFIXES and p.is_file() and not is_system(p.name) for p in folder.iterdir())


# --- tables


def _read_table(path: Path, cfg: SimpleNamespace) -> list[Row]:
    lines = read_jsonl(path) if path.suffix.lower() == ".jsonl" else read_csv(path)
    if not lines:
        raise UserError(f"{path}: holds no row.")
    columns = _columns(path, list(dict.fromkeys(key for _, fields in lines for key in fields)), cfg)
    _drop_unsuitable(path, columns, lines, cfg)
    if not columns["split_column"]:
        _say_unused_split(path, columns, lines)
    rows: list[Row] = []
    ids: dict[str, int] = {}
    empty: dict[str, list[int]] = {}  # lines by column
    for line, fields in lines:
        fields = {
            name: _decoded(text, path, line, name == columns["path_column"])
            for name, text in fields.items()
            if name in columns.values()
        }

        def field(key: str) -> str:
            return fields.get(columns[key] or "", "").strip()

        where = f"{path}: line {line}"
        if re.match(r"https?://", field("path_column")):
            raise UserError(f"{where} has a URL in column '{columns['path_column']}', expected the path of a file.")
        for key in ("path_column", "label_column", *(["id_column"] if columns["id_column"] else [])):
            if not field(key):
                empty.setdefault(str(columns[key]), []).append(line)
        split = field("split_column").lower()
        if split not in SPLITS:
            raise UserError(
                f"{where} has the split '{split}' in column '{columns['split_column']}', expected train, test or val."
                f"{nearest(split, SPLITS)}"
            )
        if field("id_column") and ids.setdefault(field("id_column"), line) != line:
            raise UserError(
                f"{where} has the id '{field('id_column')}' of line {ids[field('id_column')]}; "
                "ids must differ (id_column names another column)."
            )
        rows.append(
            Row(
                str(path.parent / field("path_column")),
                field("label_column"),
                SPLITS[split],
                field("id_column"),
                field("true_label_column"),
                where,
            )
        )
    for column, found in empty.items():
        others = f" (in all {len(found)}: lines {shortened(found)})" if len(found) > 1 else ""
        raise UserError(f"{path}: line {found[0]} has nothing in column '{column}'{others}.")
    print(f"{path}: " + ", ".join(f"{key} '{column}'" for key, column in columns.items() if column))
    _say_repeated(path, rows)
    return rows


def _say_repeated(path: Path, rows: list[Row]) -> None:
    """Print which rows of a table name the image of an earlier row."""
    first: dict[str, Row] = {}
    again = []
    for row in rows:
        before = first.setdefault(os.path.normpath(row.path), row)
        if before is not row:
            other = "" if before.label == row.label else f" as {row.label} instead of {before.label}"
            again.append(f"{row.where.rpartition(': ')[2]} that of {before.where.rpartition(': ')[2]}{other}")
    if again:
        print(f"{path}: rows that name the image of an earlier row: {len(again)} ({shortened(again, 3)})")


def _drop_unsuitable(
    path: Path, columns: dict[str, str | None], lines: list[tuple[int, dict[str, str]]], cfg: SimpleNamespace
) -> None:
    """Set an optional column to None, and say so, if it was found by its usual name only and holds something else.

    A column called `split` is one: other words in it than train, test and val are mistakes.
    """

    def values(key: str) -> list[str]:
        found = columns[key] if not getattr(cfg, key) else None
        return [str(fields.get(found, "")).strip() for _, fields in lines] if found else []

    splits, ids = {value.lower() for value in values("split_column")}, list(filter(None, values("id_column")))
    if splits and not splits & SPLITS.keys() and str(columns["split_column"]).strip().lower() != "split":
        print(
            f"{path}: column '{columns['split_column']}' is not used as the split: it holds {shortened(sorted(splits), 3)}, not "
            "train, test or val"
        )
        columns["split_column"] = None
    if len(set(ids)) < len(ids):
        value, count = Counter(ids).most_common(1)[0]
        print(f"{path}: column '{columns['id_column']}' is not used as the id: {count} rows have '{value}'")
        columns["id_column"] = None


def _say_unused_split(path: Path, columns: dict[str, str | None], lines: list[tuple[int, dict[str, str]]]) -> None:
    """Print which column, of another name than usual, holds nothing but splits."""
    for name in (name for name in lines[0][1] if name not in columns.values()):
        counts = Counter(str(fields.get(name, "")).strip().lower() for _, fields in lines)
        if counts.keys() <= SPLITS.keys() and len({SPLITS[split] for split in counts}) > 1:
            found = ", ".join(f"{split or 'nothing'} {count}" for split, count in counts.most_common())
            print(
                f"warning: {path}: column '{name}' holds splits ({found}) and is not used; --split_column {name} uses it"
            )


def _decoded(text: str, path: Path, line: int, is_path: bool) -> str:
    """A field of a table. A path may be bytes that are not UTF-8, or as_text of them, if a file has that name."""
    if not isinstance(text, str):
        raise UserError(f"{path}: line {line} has {brief(text)} where text is expected.")
    if "\0" in text:
        raise UserError(f"{path}: line {line} contains a null character, which file names cannot have ({text!r}).")
    if is_path and "\\udc" in text and not (path.parent / text).exists():
        text = as_path(text)
    if not text.isascii() and as_text(text) != text and not (is_path and (path.parent / text).exists()):
        raise UserError(f"{path}: line {line} is not UTF-8 text ({as_text(text)}); save the file as UTF-8.")
    if is_path and "\\" in text and not (path.parent / text.strip()).exists():  # as Windows writes paths
        text = text.replace("\\", "/")
    return text


def _columns(path: Path, header: list[str], cfg: SimpleNamespace) -> dict[str, str | None]:
    """{setting: column of the table}, None for an optional one that is not there."""
    plain, columns = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in reversed(header)}, {}
    for key, usual in COLUMNS.items():
        wanted = getattr(cfg, key)
        if wanted and wanted not in header:
            raise UserError(
                f"{key}: {path} has no column '{wanted}', only {', '.join(header)}.{nearest(wanted, header)}"
            )
        columns[key] = wanted or next((plain[name] for name in usual if name in plain), None)
        if columns[key] is None and key in ("path_column", "label_column"):
            raise UserError(
                f"{path}: none of its columns {', '.join(header)} is called {usual[0]}; name the columns "
                "with --path_column and --label_column."
            )
    return columns


def read_csv(path: Path) -> list[tuple[int, dict[str, str]]]:
    """[(line it begins on, {column: text})]; the separator is a tab, or what the header has most of."""
    text, said = _text(path), 0
    separator = _separator(path, text.split("\n", 1)[0])
    if by_excel := re.match(r"sep=(.)\r?\n", text):  # its own first line, which names the separator
        text, said, separator = text[by_excel.end() :], 1, by_excel[1]
    reader, rows, begins = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), [], 1 + said
    try:
        names = [name.strip() for name in next(reader, [])]
        if len(set(names)) < len(names):
            raise UserError(f"{path}: two columns have the same name; found {', '.join(names)}.")
        begins = reader.line_num + 1 + said
        for fields in reader:
            if fields:
                if len(fields) != len(names):
                    raise UserError(f"{path}: line {begins} has {len(fields)} fields, the first line has {len(names)}.")
                rows.append((begins, dict(zip(names, fields))))
            begins = reader.line_num + 1 + said
    except csv.Error as error:
        raise UserError(f"{path}: line {begins} cannot be read ({error}).") from None
    return rows


def _separator(path: Path, header: str) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)


def read_jsonl(path: Path) -> list[tuple[int, dict[str, str]]]:
    """[(line, {field: text})] of a file with one JSON object a line; lists and objects stay as they are."""
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):  # splitlines also breaks at U+2028 within a text
        if line.strip():
            try:
                fields = dict(from_json(line).items())
            except (ValueError, AttributeError):
                raise UserError(f"{path}: line {number} is no JSON object.") from None
            nested = {k: v for k, v in fields.items() if isinstance(v, (dict, list))}
            fields = {k: "" if v is None else str(v) for k, v in fields.items()} | nested
            rows.append((number, fields))
    return rows


def _text(path: Path) -> str:
    """The text of a UTF-8 file; other bytes, as in some file names, become surrogates, as in Python's paths."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            text = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    if "\0" in text:
        raise UserError(f"{path}: not a UTF-8 text file (it holds bytes that are 0); save it as UTF-8.")
    return text


# --- names


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Labels sorted: as numbers where all of them are whole numbers, so that 2 comes before 10, else as text.

    2.0 is one, too, as pandas writes a column in which a number is missing.
    """
    labels = list(labels)
    numbers = all(re.fullmatch(r"\d+(\.0+)?", label) for label in labels)
    return sorted(labels, key=lambda label: (int(label.partition(".")[0]), label) if numbers else (0, label))


def tidy_names(labels: Iterable[str]) -> list[str]:
    """The class name for CLIP of each label: 001.Black_footed_Albatross -> Black footed Albatross, goldenRetriever -> golden
    Retriever, birds (2), as systems name a copy -> birds. A number in front goes only where every label has one and they
    still differ without."""
    words = [" ".join(unicodedata.normalize("NFC", label).replace("_", " ").split()) for label in labels]
    words = [re.sub(r"(?<=.) ?\(\d\d?\)$", "", name) for name in words]
    bare = [re.sub(r"^\d+[.\s-]+", "", name) for name in words]
    if all(a != b and not b.isdigit() for a, b in zip(words, bare)) and len(set(bare)) == len(bare) and all(bare):
        words = bare
    return [name if " " in name else re.sub(r"(?<=[a-zß-ÿ])(?=[A-ZÀ-Þ])", " ", name) for name in words]


def say_names(classnames: list[str], label_names: list[str]) -> None:
    """Print the class names that CLIP reads, and warn of labels that may be none and of names that do not suit CLIP."""
    print(f"class names that CLIP reads: {shortened(classnames, 100)}")
    missing = [label for label in label_names if label.lower() in MISSING or label.lower().strip("_- ") in UNSORTED]
    if missing:
        print(
            f"warning: labels that look like missing values are classes now: {shortened(missing)}; to leave their images out, "
            "begin the name of the folder with a dot, or delete the rows"
        )
    known = set(label_names)
    joined = [
        label for label in label_names if {part.strip() for part in re.split(r"[|;,/+&]", label)} & (known - {label})
    ]
    if joined:
        print(f"warning: labels that name several classes are classes of their own: {shortened(joined)}")
    cannot = [name for name in classnames if re.fullmatch(r"n\d{8}|\d+(\.\d+)?", name)]
    codes = [re.fullmatch(r"[^\W\d_]{1,5}[ .-]?\d+", name) for name in classnames]  # c01, class 7
    if all(codes):  # an A320 may be among words
        cannot = classnames
    if cannot:
        print(
            f"warning: CLIP cannot know {shortened(cannot)}; --classnames FILE.csv gives it words, in columns label and name"
        )
    say_equal_names(classnames, label_names)


def say_equal_names(classnames: list[str], label_names: list[str]) -> None:
    """Warn of classes that have the same name for CLIP, which cannot tell them apart."""
    first: dict[str, str] = {}
    for name, label in zip(classnames, label_names):
        if first.setdefault(name.lower(), label) != label:
            print(
                f"warning: the classes {first[name.lower()]!r} and {label!r} have the same name for CLIP, '{name.lower()}'. "
                "If they are one class, give them one label; if not, distinguish them with --classnames FILE"
            )


def written_by_report(source: str | Path) -> bool:
    """Whether a data set is a labels_clean.csv or labels_fixed.csv of report.page, whose labels are all trusted."""
    path = Path(source)
    if not path.is_file() or path.suffix.lower() != ".csv":
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return TRUSTED_BY in file.readline().strip().split(",")


def shortened(words: Sequence[object], count: int = 12) -> str:
    """The first words of a list with commas, and how many there are in all."""
    rest = f" … ({len(words)} in all)" if len(words) > count else ""
    texts = map(as_text, words[:count])
    return ", ".join(f"'{text}'" if "," in text else text for text in texts) + rest
