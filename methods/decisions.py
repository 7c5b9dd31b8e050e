"""Decisions of a person about labels: their files, the images they belong to, and the labels that result.

A decision is of one image and its given label: `right`, or `wrong`, with what it is in new_label where the person said so.
"""

import difflib
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from dataloader.dataset import Dataset
from dataloader.rows import read_csv, shortened
from utils.errors import UserError, brief, nearest
from utils.files import from_json

LOG = "decisions.jsonl"  # in a run's folder: one line a decision, only ever added to; the last one of an image counts
COLUMNS = ("id", "path", "content", "given_label", "decision", "new_label")  # of a file of decisions
UNDECIDED, RIGHT, WRONG = 0, 1, 2


@dataclass(frozen=True)
class Decision:
    """One row of a file of decisions. An image is known by its id, else its path below the data's root, and its content."""

    id: str
    path: str
    content: str
    given_label: str
    decision: str  # right, wrong, or "": taken back
    new_label: str = ""
    where: str = ""  # file and line, for errors
    file: str = ""  # in a log: hash of the file that it was added from

    @property
    def image(self) -> str:
        """What identifies the image within its data set, as text."""
        return f"id {self.id}" if self.id else f"path {self.path}" if self.path else f"content {self.content}"

    @property
    def key(self) -> str:
        """What a page knows the image and its label by: a table may list a file under two labels."""
        return f"{self.image}\n{self.given_label}"

    @property
    def contradicts_itself(self) -> bool:
        """Whether it calls the given label right and names another, or wrong and names the given one, or names one undecided."""
        return bool(self.new_label) and (
            not self.decision or (self.decision == "right") != (self.new_label == self.given_label)
        )


class Images:
    """The training images of a Dataset, found by what a Decision knows of them."""

    def __init__(self, data: Dataset) -> None:
        self.data, self.paths = data, [data.path(i) for i in range(len(data.train.labels))]
        self.contents = data.digests or [""] * len(self.paths)
        self.by_id = {name: [i] for i, name in enumerate(data.ids or []) if name}
        self.by_path, self.by_content = _places(self.paths), _places(self.contents)

    def row(self, i: int, decision: str = "", new_label: str = "") -> Decision:
        """The Decision about image i."""
        ids = self.data.ids
        return Decision(ids[i] if ids else "", self.paths[i], self.contents[i], self.label(i), decision, new_label)

    def find(self, row: Decision) -> tuple[list[int], str]:
        """(indices, "") of the images that a Decision is about, or ([], why there is none).

        An image whose file has another name now is found by its content. Rows of one file, or identical images of an array,
        share a decision where they have the same label. A label that has since been corrected as the Decision says counts.
        """
        path = row.path if row.path in self.by_path else row.path.replace("\\", "/")  # as Windows writes paths
        named = self.by_id.get(row.id) or self.by_path.get(path) or []
        has_changed = bool(named and row.content) and self.contents[named[0]] not in ("", row.content)
        found = self.by_content.get(row.content, []) if has_changed or not named else named
        for label in filter(None, (row.given_label, row.new_label)):
            same = [i for i in found if self.label(i) == label]
            if same:
                return same, ""
        return [], "has another label" if found else "has changed" if has_changed else "is gone"

    def label(self, i: int) -> str:
        """The given label of image i."""
        return self.data.label_names[self.data.train.labels[i]]


def _places(names: list[str]) -> dict[str, list[int]]:
    """{name: its indices}, without ""."""
    places: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name:
            places.setdefault(name, []).append(i)
    return places


def read_decisions(path: str | Path, classes: list[str]) -> list[Decision]:
    """The Decisions of a CSV file, as the report saves it, or of a run's log (.jsonl), in the order of the file.

    `undecided` takes back an earlier decision. Rows without a decision take back in a log, and are passed over in a CSV.
    UserError for any other decision, a new label that is no class, or a column that is missing or misspelt.
    """
    path, rows = Path(path), []
    if not path.is_file():
        raise UserError(f"decisions: there is no file {path}.")
    is_log = path.suffix == ".jsonl"
    lines = _log_lines(path) if is_log else read_csv(path)
    if lines and not is_log:
        _check_columns(path, list(lines[0][1]))
    for line, fields in lines:
        where = f"{path}: line {line}"
        row = Decision(**{k: str(fields.get(k, "")) for k in (*COLUMNS, *["file"] * is_log)}, where=where)
        row = replace(row, decision=row.decision.lower())
        if not (is_log or row.decision):
            if row.new_label:
                raise UserError(f"{where} has a new_label but no decision; expected the decision wrong.")
            continue
        if row.decision in ("", "undecided"):
            row = replace(row, decision="", new_label="")
        if not (row.id or row.path or row.content):
            raise UserError(f"{where} names no image; expected an id, a path or a content.")
        if row.decision not in ("right", "wrong", ""):
            raise UserError(
                f"{where} has the decision '{row.decision}', expected right, wrong or undecided."
                f"{nearest(row.decision, ['right', 'wrong', 'undecided'])}"
            )
        if row.new_label and row.new_label not in classes:
            raise UserError(f"{where}: the new_label '{row.new_label}' is no class.{nearest(row.new_label, classes)}")
        if row.contradicts_itself:
            raise UserError(
                f"{where} calls the label '{row.given_label}' {row.decision} and the new_label is '{row.new_label}'."
            )
        rows.append(row)
    return rows


def _check_columns(path: Path, names: list[str]) -> None:
    """UserError where a CSV lacks a column that decisions need, or has a misspelt one; others may be there."""
    others = {name.lower().replace(" ", "_"): name for name in names if name not in COLUMNS}
    of_image = [] if {"id", "path", "content"} & {*names} else ["id", "path", "content"]
    for column in (c for c in (*of_image, "given_label", "decision", "new_label") if c not in names):
        for close in difflib.get_close_matches(column, others, n=1, cutoff=0.8):
            raise UserError(f"{path}: has no column {column}; is '{others[close]}' meant?")
        if column in ("given_label", "decision"):
            raise UserError(f"{path}: has no column {column}; found {', '.join(names)}.")


def _log_lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """[(line number, fields)] of a log; a last line that was cut off by a kill is ignored."""
    try:
        lines = [from_json(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
        if not all(isinstance(fields, dict) for fields in lines):
            raise ValueError("expected an object in each line")
        return list(enumerate(lines, 1))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a log of decisions ({brief(error)}).") from None


def by_image(
    rows: Iterable[Decision], images: Images, last_counts: bool = False
) -> tuple[dict[int, Decision], dict[str, list[Decision]]]:
    """{index: Decision} of Decisions about Images, and {why: [Decision …]} of those whose image is not there.

    Two rows that contradict each other are a UserError, unless last_counts, as in a log. A label called wrong that is now
    what the row says it is, is right.
    """
    found: dict[int, Decision] = {}
    missing: dict[str, list[Decision]] = {}
    if last_counts:  # before images are looked for: what was taken back must not count by an image's new label
        last: dict[tuple[str, ...], Decision] = {}
        for row in rows:
            last.pop(about := (row.image, row.content, row.given_label), None)
            last[about] = row
        rows = last.values()
    for row in rows:
        indices, reason = images.find(row)
        if not indices and row.decision:
            missing.setdefault(reason, []).append(row)
        for i in indices:
            if last_counts and not row.decision:  # also of a decision under an earlier name or label
                found.pop(i, None)
                continue
            if row.decision and images.label(i) != row.given_label:
                row = replace(row, given_label=row.new_label, decision="right", new_label="")
            before = found.get(i)
            if before and not last_counts and said(before) != said(row):
                raise UserError(
                    f"{before.where} says {_in_words(before)}, {row.where.rsplit(': ')[-1]} says "
                    f"{_in_words(row)} of the same image ({row.id or row.path or row.content})."
                )
            found[i] = row
    return found, missing


def said(row: Decision) -> tuple[str, str]:
    """(decision, new label) of a Decision, to compare."""
    return row.decision, row.new_label if row.decision == "wrong" else ""


def _in_words(row: Decision) -> str:
    return " ".join(filter(None, said(row))) or "undecided"


class Log:
    """The log of decisions in a run's folder, to read and to add to."""

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOG

    def rows(self, classes: list[str]) -> list[Decision]:
        """Its Decisions, [] where there is no log."""
        return read_decisions(self.path, classes) if self.path.is_file() else []

    def add(self, rows: Iterable[Decision]) -> None:
        """Append Decisions; they are on the disk when this returns. UserError where they cannot be written."""
        shown = [{k: v for k, v in asdict(row).items() if k in COLUMNS or (k == "file" and v)} for row in rows]
        lines = [json.dumps(fields) for fields in shown]
        try:
            with self.path.open("a+b") as file:
                with suppress(OSError):  # some network file systems have no locks
                    fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed; another process may be adding, too
                file.seek(0)
                rest = file.read().rpartition(b"\n")[2]  # of a line that was being written when a kill came
                if rest:
                    file.truncate(file.tell() - len(rest))
                file.write("".join(line + "\n" for line in lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}; the decisions were not saved.") from None


def settle(
    folder: str | Path, data: Dataset, file: str | Path | None = None, there: np.ndarray | None = None
) -> dict[int, Decision]:
    """{index: Decision} that counts for a Dataset, by the log in the run's folder; what happened is printed.

    file: a CSV of decisions, which are first added to the log and replace earlier ones, once: what is decided later stands,
    though the same command is given again. there: which images (N,) bool still are what the run judged, all by default;
    decisions about the others stay in the log but do not count.
    """
    images, log = Images(data), Log(folder)
    logged = log.rows(data.label_names)
    decided, missing = by_image(logged, images, last_counts=True)
    unused = {log.path: missing}
    if file:
        rows = read_decisions(file, data.label_names)
        if not rows:
            raise UserError(f"{file}: holds no decision.")
        new, unused[Path(file)] = by_image(rows, images, Path(file).suffix == ".jsonl")
        if not (new or data.test) and set(unused[Path(file)]) == {"is gone"}:
            raise UserError(f"{file}: names no image of this run; these are named as in '{images.row(0).image}'.")
        content = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
        before = {i for row in logged if row.file == content for i in images.find(row)[0]}
        differ = {i for i, row in new.items() if said(row) != (said(decided[i]) if i in decided else ("", ""))}
        if differ & before:
            print(
                f"{file}: {len(differ & before)} of its decisions were changed after they had been added; the changes stand"
            )
        known, new = len(new), {i: row for i, row in new.items() if i not in before}
        changed = {i: row for i, row in new.items() if i in differ}
        taken_back = sum(not row.decision for row in changed.values())
        replaced = len(changed.keys() & decided.keys()) - taken_back
        if new:
            log.add(replace(images.row(i, *said(row)), file=content) for i, row in new.items())
        if changed:
            print(
                f"{file}: new decisions added to {log.path}: {len(changed) - taken_back}"
                + (f", {replaced} of them replace earlier ones" if replaced else "")
                + (f"; taken back: {taken_back}" if taken_back else "")
            )
        if not changed:
            print(f"{file}: no new decision; {known} of its {len(rows)} rows are of images of this run")
        decided = {i: row for i, row in (decided | new).items() if row.decision}
    lost = [i for i in decided if there is not None and not there[i]]
    if lost:
        missing["is gone or has changed"] = [decided.pop(i) for i in lost]
    _say_unused(unused, data)
    if decided:
        counts = Counter(row.decision for row in decided.values())
        relabelled = sum(bool(said(row)[1]) for row in decided.values())
        print(f"your decisions: {counts['right']} right, {counts['wrong']} wrong, {relabelled} of these relabelled")
    _say_others(log, images)
    return decided


def _say_unused(unused: dict[Path, dict[str, list[Decision]]], data: Dataset) -> None:
    """Print which decisions of each file, {why: [Decision …]}, do not count for a Dataset."""
    held_out = Images(replace(data, train=data.test)) if data.test else None
    for source, reasons in unused.items():
        gone = reasons.pop("is gone", [])
        if held_out:
            reasons["is held out for testing"] = [row for row in gone if held_out.find(row)[0]]
            reasons["is gone"] = [row for row in gone if not held_out.find(row)[0]]
        else:  # a report has the images that the run judged, and no others
            reasons["is none that the run judged"] = gone
        for reason, rows in reasons.items():
            if rows:
                names = shortened([row.id or row.path or row.content for row in rows], 5)
                print(f"{source}: decisions not used because the image {reason}: {len(rows)} ({names})")


def _say_others(log: Log, images: Images) -> None:
    """Print which runs beside this one, of other detectors, have decisions about images of which its log says nothing."""
    classes, folder = images.data.label_names, log.path.parent
    known = {i for row in log.rows(classes) for i in images.find(row)[0]}
    for path in sorted(folder.parent.glob(f"*/{LOG}")):
        try:
            others, _ = by_image(read_decisions(path, classes), images, last_counts=True)
        except UserError:  # of other classes, or not a log: no concern of this run
            continue
        if path != log.path and (more := len(others.keys() - known)):
            print(
                f"{path}: decisions about {more} images of this run are not used here; to use them: "
                f"python -m report.page {folder} --decisions {path}"
            )


def as_arrays(decided: dict[int, Decision], data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """decision (N,) int8, one of UNDECIDED, RIGHT, WRONG, and new_labels (N,) int64, -1 where none was given."""
    decision = np.zeros(len(data.train.labels), dtype=np.int8)
    new_labels, number = np.full(len(decision), -1), {name: k for k, name in enumerate(data.label_names)}
    for i, row in decided.items():
        decision[i] = RIGHT if row.decision == "right" else WRONG
        if row.decision == "wrong" and row.new_label:
            new_labels[i] = number[row.new_label]
    return decision, new_labels


def labels_to_train_on(
    mask: np.ndarray, labels: np.ndarray, decision: np.ndarray, new_labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(mask (N,) bool, labels (N,)) to train on: labels called right and relabelled ones are in, wrong ones are out."""
    relabelled = new_labels >= 0
    return (mask & (decision != WRONG)) | (decision == RIGHT) | relabelled, np.where(relabelled, new_labels, labels)


def differing_copies(data: Dataset) -> list[list[int]]:
    """Groups of identical training images that were given different labels, so that at least one label of each is wrong."""
    groups = _places(data.digests or []).values()
    return [group for group in groups if len(set(data.train.labels[group])) > 1]


def say_contradictions(data: Dataset, mask: np.ndarray, labels: np.ndarray, decision: np.ndarray) -> None:
    """Print which images are kept with a label that contradicts a decision about an identical image.

    mask (N,) bool and labels (N,) are those of `labels_to_train_on`, decision (N,) that of as_arrays.
    """
    if not decision.any():
        return
    images, against = Images(data), []
    for group in images.by_content.values():
        is_it = {labels[i] for i in group if decision[i] and mask[i]}
        is_not = {labels[i] for i in group if decision[i] and not mask[i]}
        against += [i for i in group if mask[i] and (is_it - {labels[i]} or labels[i] in is_not)]
    if against:
        names = [f"{images.row(i).image.partition(' ')[2]} ({data.label_names[labels[i]]})" for i in against]
        print(
            f"warning: labels kept although you decided otherwise about an identical image: {len(against)} "
            f"({shortened(names, 5)}); review all their copies"
        )
