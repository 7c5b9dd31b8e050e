"""Unpack Parquet files, saved data sets of Hugging Face, and WebDataset tar files, once, into image files and a table.

All other code reads that table. Files are named after the keys in the archive, so that scores and decisions stay with their
image in whatever order the rows come.
"""

import contextlib
import glob
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import IO, Any, NamedTuple, cast

from PIL import Image
from tqdm import tqdm

from dataloader.files import HEIF, IMAGE_SUFFIXES, data_root, file_identity, image_files
from dataloader.rows import COLUMNS, SPLITS, read_jsonl, shortened
from utils.errors import UserError, brief
from utils.files import from_json, safe_name, slug, unused, write_text
from utils.lock import lock

TAR = (".tar", ".tar.gz", ".tgz")
LABELS = ("json", "cls", "txt")  # members of a WebDataset sample that say what its image shows
IMAGES = IMAGE_SUFFIXES | HEIF  # unpacked in any case, so that pillow-heif can be installed later
TABLE, RECORD = "images.jsonl", ".source.json"  # in the folder of an unpacked archive; the record is written last


class Sample(NamedTuple):
    """One image of an archive: its key, its encoded content, and {column: text} of what else is known of it."""

    key: str
    content: bytes
    fields: dict[str, str]


def opened(source: str | Path, cfg: SimpleNamespace, key: str = "data_path") -> Path:
    """The path to read images from: of an archive, the table of its unpacked images; else `source` itself.

    An archive is a .parquet or .tar file, a pattern of several (`shards-{000..003}.tar`, `data/*.parquet`), a folder of
    these, or what `save_to_disk` of Hugging Face datasets wrote. It is unpacked into <output_dir>/images/, and again after
    it has changed. Raises UserError if the library that reads it is missing or fails. key: the setting that names `source`,
    for the error.
    """
    files, read = _find(source, key)
    if read is None:
        return Path(source)
    where = os.path.abspath(source)
    name = f"{slug(Path(where).name)}-{hashlib.sha256(os.fsencode(where)).hexdigest()[:8]}"
    folder = Path(os.path.abspath(cfg.output_dir)) / "images" / name
    all_files = [file for part, _ in files for file in (sorted(part.rglob("*")) if part.is_dir() else [part])]
    identity = [[os.fsencode(os.path.abspath(file)).hex(), file_identity(file)] for file in all_files]
    record = json.dumps([cfg.path_column, cfg.split_column, identity])
    is_there = all((folder / name).is_file() for name in (TABLE, RECORD))
    if not is_there or (folder / RECORD).read_text(encoding="utf-8") != record:
        if not os.path.isfile(source):
            _say_missing([file for file, _ in files])
        advice = "Wait until it has, then start this command again."
        held = lock(Path(cfg.output_dir), folder, f"unpacking {source}", advice)
        _unpack(_guarded(read(files, cfg), where, key), source, folder, record, cfg)
        del held
    return folder / TABLE


def source_root(source: str | Path, cfg: SimpleNamespace) -> str:
    """The folder, absolute, that the paths of a data set are relative to, see `opened`."""
    return data_root(opened(source, cfg))


def _find(source: str | Path, key: str) -> tuple[list[tuple[Path, str]], Any]:
    """([(file or folder, split or "")], the function that reads them), or ([], None) where `source` is no archive."""
    path, text = Path(source), str(source)
    if path.is_file():
        return _of_kind([(path, "")])
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return [(path, "")], _read_datasets
        inside = [p for depth in ("*", "*/*") for p in sorted(glob.iglob(f"{glob.escape(text)}/{depth}"))]
        for kind in (".parquet", TAR):
            found = [Path(p) for p in inside if p.lower().endswith(kind) and os.path.isfile(p)]
            if found and not image_files(path)[0]:
                return _of_kind([(p, _split_of(p.relative_to(path))) for p in found])
        return [], None
    if not re.search(r"[{*?\[]", text) or not text.lower().endswith((".parquet", *TAR)):
        return [], None
    shards: dict[Path, None] = {}
    try:
        for pattern in _library("braceexpand", "webdataset").braceexpand(text) if "{" in text else [text]:
            paths = sorted(glob.glob(pattern)) if re.search(r"[*?\[]", pattern) else [pattern]
            if not paths or not os.path.isfile(paths[0]):
                raise UserError(
                    f"{key}: there is no file {pattern}" + (f", which {text} stands for." if pattern != text else ".")
                )
            shards |= dict.fromkeys(map(Path, paths))
    except ValueError as error:
        raise UserError(f"{key}: {text} is no pattern of files ({brief(error)}).") from None
    root = os.path.commonpath([os.path.abspath(file.parent) for file in shards])
    return _of_kind([(file, _split_of(Path(os.path.relpath(file, root)))) for file in shards])


def _of_kind(files: list[tuple[Path, str]]) -> tuple[list[tuple[Path, str]], Any]:
    name = files[0][0].name.lower()
    read = _read_datasets if name.endswith(".parquet") else _read_tars if name.endswith(TAR) else None
    return files, read


def _split_of(path: Path) -> str:
    """The split by the first word that names one, in a file's name or else in its folder's: data/validation-0.parquet -> val.

    train where there is none.
    """
    words = re.findall("[a-z]+", f"{path.name} {path.parent}".lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "train")


def _say_missing(files: list[Path]) -> None:
    """Print which files are missing of those that are numbered as in train-00000-of-00003.parquet."""
    series: dict[tuple[str, str, int], set[int]] = defaultdict(set)
    for file in files:
        if match := re.fullmatch(r"(.*-)(\d+)(-of-(\d+).*)", str(file)):
            series[match[1], match[3], int(match[4])].add(int(match[2]))
    for (start, end, count), found in series.items():
        first = int(0 not in found and 1 in found)  # some count from 1
        if missing := sorted(set(range(first, first + count)) - found):
            print(f"warning: {start}*{end}: {len(missing)} of {count} files are not there: number {shortened(missing)}")


def _library(name: str, package: str) -> ModuleType:
    """A module of an optional package; UserError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"data_path: is read by the package {package}: `pip install {package}` ({error}).") from None


def _guarded(samples: Iterator[Sample], where: str, key: str) -> Iterator[Sample]:
    """The samples; whatever a library raises on a damaged file is a UserError."""
    try:
        yield from samples
    except (UserError, GeneratorExit, MemoryError):
        raise
    except Exception as error:
        several = len(error.args) > 1 and isinstance(error.args[0], str)  # WebDataset adds where it was
        raise UserError(f"{key}: {where} cannot be read ({brief(error.args[0] if several else error)}).") from None


# --- Hugging Face datasets


def _read_datasets(files: list[tuple[Path, str]], cfg: SimpleNamespace) -> Iterator[Sample]:
    datasets = _library("datasets", "datasets")
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors come as exceptions, too
    parts: list[tuple[Any, str, str]] = []  # (data set, split, what an error calls it)
    for path, split in files:
        if path.is_dir():
            saved = datasets.load_from_disk(str(path))
            several = saved.items() if isinstance(saved, datasets.DatasetDict) else [("", saved)]
            parts += [(part, name, f"{path}: {name}".rstrip(": ")) for name, part in several]
        else:
            rows = datasets.load_dataset("parquet", data_files=[glob.escape(str(path))], split="train", streaming=True)
            parts.append((rows, split, str(path)))
    several = len({split for _, split, _ in parts}) > 1
    for part, split, where in parts:
        extra = {cfg.split_column or "split": split} if several else {}
        yield from _rows(part, image_column(part.features, cfg.path_column, where), extra)


def _rows(rows: Any, column: str, extra: dict[str, str]) -> Iterator[Sample]:
    """The rows of one data set of the library, whose images are in a column."""
    texts = {
        name: feature
        for name, feature in rows.features.items()
        if type(feature).__name__ in ("Value", "ClassLabel") and not str(feature.dtype).endswith("binary")
    }
    for row in rows.cast_column(column, _library("datasets", "datasets").Image(decode=False)):
        image = row[column] or {"bytes": b"", "path": None}
        fields = {name: _text(row[name], feature) for name, feature in texts.items() if name != column}
        paths = [image["path"], *(fields.get(name) for name in COLUMNS["path_column"])]
        content, name = image["bytes"], next(filter(None, paths), "")
        if content is None:  # the path is a file's; a missing one is found by the check of all files, as an empty one
            content = Path(name).read_bytes() if os.path.isfile(name) else b""
        name = "/".join(Path(name).parts[-2:]) if os.path.isabs(name) else name
        yield Sample(name, content, fields | extra)


def saved_rows(rows: Any, cfg: SimpleNamespace) -> list[str]:
    """Paths of the image files of a `datasets.Dataset`, in its order: its own files, or written below output_dir."""
    column = image_column(rows.features, cfg.path_column, "the data set")
    images = rows.select_columns([column]).cast_column(column, _library("datasets", "datasets").Image(decode=False))
    content, paths = hashlib.sha256(), []
    for row in images:
        image = row[column] or {"bytes": b"", "path": None}
        paths += [image["path"]] if image["bytes"] is None else []
        content.update(f"{image['path']} {len(image['bytes'] or b'')} ".encode() + (image["bytes"] or b""))
    if len(paths) == len(rows):
        return paths
    folder = Path(os.path.abspath(cfg.output_dir)) / "images" / f"dataset-{content.hexdigest()[:16]}"
    if not all((folder / name).is_file() for name in (TABLE, RECORD)):
        samples = _guarded(_rows(images, column, {}), "the data set", "images")
        _unpack(samples, "the data set", folder, content.hexdigest(), cfg)
    # the first field, whatever it is called
    names = (next(iter(row.values())) for _, row in read_jsonl(folder / TABLE))
    return [str(folder / name) for name in names]


def image_column(features: dict[str, Any], wanted: str, where: str) -> str:
    """The column of the features of a Hugging Face data set that holds the images: the one `wanted`, or the only one."""
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    images = images or [name for name, f in features.items() if isinstance(f, dict) and {"bytes", "path"} <= f.keys()]
    images = images or [name for name, f in features.items() if str(getattr(f, "dtype", "")).endswith("binary")]
    if wanted and wanted not in features:
        raise UserError(f"path_column: {where} has no column '{wanted}', only {', '.join(features)}.")
    if len(images) != 1 and not wanted:
        found = f"images in {len(images)} of its columns {', '.join(images or features)}"
        raise UserError(f"{where}: {found}, expected one; --path_column names it.")
    return wanted or images[0]


def _text(value: Any, feature: Any) -> str:
    """A field of a row as text: a class by its name; "" where there is none, as -1 says of a class."""
    if type(feature).__name__ == "ClassLabel":
        return feature.int2str(value) if value is not None and value >= 0 else ""
    return "" if value is None else str(value)


# --- WebDataset


def _read_tars(files: list[tuple[Path, str]], cfg: SimpleNamespace) -> Iterator[Sample]:
    """A sample is the members of one key: an image, and its label in .cls, .txt or a field of .json.

    Prints how many samples have no image, by the suffixes that they have instead.
    """
    wds, others = _library("webdataset", "webdataset"), Counter[str]()
    several = len({split for _, split in files}) > 1
    for path, split in files:
        for sample in wds.WebDataset(
            [str(path.absolute())], shardshuffle=False, nodesplitter=lambda urls: urls, empty_check=False
        ):
            where = f"{path}: {sample['__key__']}"
            members = {name: content for name, content in sample.items() if isinstance(content, bytes)}
            images = [name for name in members if f".{name.rpartition('.')[2]}" in IMAGES]
            images = [name for name in images if name == cfg.path_column] if cfg.path_column else images
            if len(images) > 1:
                raise UserError(f"{where} has the images {', '.join(images)}, expected one; --path_column names it.")
            if images:
                fields = _fields(members, where) | ({cfg.split_column or "split": split} if several else {})
                yield Sample(f"{sample['__key__']}.{images[0]}", members[images[0]], fields)
            else:
                others.update(f".{name}" for name in members.keys() - set(LABELS) or members)
        _check_end(path)
    if others:
        what, found = f".{cfg.path_column}" if cfg.path_column else "image", sorted(others.items())
        print(f"ignored samples without {what}: {', '.join(f'{suffix} ({n})' for suffix, n in found)}")


def _check_end(path: Path) -> None:
    """UserError unless a tar file ends in zeros after its last member: libraries take a damaged header for the end."""
    with tarfile.open(path) as tar:
        names, file = tar.getnames(), cast(IO[bytes], tar.fileobj)
        file.seek(tar.offset)
        only_zeros = all(not part.strip(b"\0") for part in iter(lambda: file.read(1 << 20), b""))
        if not only_zeros or file.tell() < tar.offset + tarfile.BLOCKSIZE:
            where = f"after member {names[-1]}" if names else "at its start"
            raise UserError(f"{path}: is cut off or damaged {where}; copy or download it again.")


def _fields(members: dict[str, bytes], where: str) -> dict[str, str]:
    try:
        texts = {name: members[name].decode().strip() for name in LABELS if name in members}
        content = from_json(texts.pop("json", "{}"))
    except ValueError as error:
        raise UserError(f"{where} has a .json, .cls or .txt that cannot be read ({brief(error)}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{where} has a .json that is no object.")
    return {k: str(v) for k, v in content.items() if v is not None and not isinstance(v, (list, dict))} | texts


# --- files


def _unpack(samples: Iterator[Sample], source: str | Path, folder: Path, record: str, cfg: SimpleNamespace) -> None:
    """Write the samples and the table of them as `folder`, in place of an earlier one: whole, or not at all."""
    new, column, rows = folder.with_name(f".{folder.name}.tmp"), cfg.path_column or "path", []
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        for sample in tqdm(samples, "unpacking", leave=False, disable=None):
            digest = hashlib.blake2b(sample.content, digest_size=16).hexdigest()
            if not (new / digest).is_file():
                (new / digest).write_bytes(sample.content)
            fields = {name: text for name, text in sample.fields.items() if name != column}
            rows.append((_file_name(sample, digest), digest, fields))
        if not rows:
            raise UserError(f"{source}: holds no image.")
        names, uses = _unique(rows), Counter(digest for _, digest, _ in rows)
        for name, (_, digest, _) in zip(names, rows):
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copyfile if uses[digest] > 1 else os.rename)(new / digest, new / name)
            uses[digest] -= 1
        table = [json.dumps({column: name, **fields}) + "\n" for name, (_, _, fields) in zip(names, rows)]
        write_text(new / TABLE, "".join(table))
        write_text(new / RECORD, record)
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    print(f"{source}: {len(rows)} images unpacked to {folder}")


def _file_name(sample: Sample, digest: str) -> str:
    """What the file of a sample should be called: its key, or where it has none, the hash of its content."""
    stem, suffix = os.path.splitext(sample.key or digest)
    if suffix.lower() not in IMAGES:
        stem, suffix = sample.key or digest, ""
        with contextlib.suppress(Exception):  # it is no image, as a check of all files will find
            suffix = f".{str(Image.open(io.BytesIO(sample.content)).format).lower()}"
    parts = [part for part in re.split(r"[/\\]", stem) if part not in ("", ".", "..")] or [digest]
    return "/".join(map(safe_name, parts)) + (suffix or ".unknown")


def _unique(rows: list[tuple[str, str, dict[str, str]]]) -> list[str]:
    """Names of (wanted name, digest, fields): with a part of the digest where different images want the same.

    They do not depend on the order of the rows.
    """
    contents: dict[str, set[str]] = defaultdict(set)
    for name, digest, _ in rows:
        contents[name.casefold()].add(digest)
    names, taken = [""] * len(rows), set[str]()
    for i in sorted(range(len(rows)), key=lambda i: (rows[i][0], rows[i][1], sorted(rows[i][2].items()))):
        name, digest, _ = rows[i]
        if len(contents[name.casefold()]) > 1:
            stem, suffix = os.path.splitext(name)
            name = f"{stem}-{digest[:8]}{suffix}"
        names[i] = unused(name, taken)
    return names
