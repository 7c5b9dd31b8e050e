"""Check image files before use: which cannot be read, and why, and which are identical."""

import hashlib
import io
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from dataloader.transforms import READS_HEIF, to_rgb
from utils.files import write_whole

HEIF = {".heic", ".heics", ".heif", ".heifs", ".hif"}
IMAGE_SUFFIXES = set(
    ".jpg .jpeg .jpe .jfif .png .apng .gif .webp .avif .avifs .tif .tiff .bmp .dib .jp2 .j2k .j2c .jpc .jpf .jpx "
    ".ppm .pgm .pbm .pnm .tga .psd .pcx .sgi .dds .qoi .ico .icns".split()
) | (HEIF if READS_HEIF else set())
# files and folders of operating systems, network drives and notebooks, in lower case; names with a leading dot count too
SYSTEM_NAMES = set(
    "@eadir @recycle #recycle @tmp #snapshot __macosx lost+found $recycle.bin __pycache__ thumbs.db ehthumbs.db "
    "desktop.ini".split()
) | {"system volume information"}


def is_system(name: str) -> bool:
    """Whether a name is that of a file or folder which systems create, not the user."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def image_files(folder: str | Path) -> tuple[list[str], Counter[str]]:
    """(sorted paths of the image files below a folder, {suffix: number of the other files}), without system files.

    Files without a suffix are images if they begin as one.

    Links to folders below it, which may lead in a circle, are not followed but counted with the others.
    """
    paths: list[str] = []
    others: Counter[str] = Counter()
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_system(name)]
        if linked := sum(os.path.islink(os.path.join(place, name)) for name in folders):
            others["links to folders"] += linked
        for name in files:
            suffix, path = os.path.splitext(name)[1].lower(), os.path.join(place, name)
            if not is_system(name) and (suffix in IMAGE_SUFFIXES or (not suffix and _opens(path))):
                paths.append(path)
            elif not is_system(name):
                others[suffix] += 1
    return sorted(paths, key=lambda path: path.split(os.sep)), others


def _opens(path: str) -> bool:
    """Whether Pillow takes a file, by its first bytes, for an image."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            with Image.open(path):
                return True
    except Exception:  # as in inspect_file
        pass
    return False


def passed_over(others: Mapping[str, int]) -> str:
    """{suffix: number} of files that are not images, as text."""
    text = ", ".join(f"{suffix or 'without a suffix'} ({n})" for suffix, n in sorted(others.items()))
    return text + ("; `pip install pillow-heif` makes HEIC readable" if HEIF & others.keys() else "")


def inspect_file(path: str | Path) -> tuple[str, str]:
    """(content hash, why it cannot be read or "") of one image file, decoded to its end."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a device or a pipe may never end
            return "", "not a file"
        content = Path(path).read_bytes()
    except OSError as error:
        return "", "missing" if isinstance(error, FileNotFoundError) else str(error.strerror)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft(image.mode, (64, 64))  # a JPEG is read whole, but at an eighth of its size
            to_rgb(image)
    except UnidentifiedImageError:
        if not READS_HEIF and Path(path).suffix.lower() in HEIF:
            return digest, "HEIC is read by pillow-heif, which is not installed"
        return digest, "not an image" if content else "empty"
    except Exception as error:  # Pillow's plugins raise anything on a damaged file
        return digest, " ".join(str(error).split()) or repr(error)
    return digest, ""


def file_identity(path: str | Path) -> list[int] | None:
    """[size, times of the last change of its content and of its entry] of a file; None where there is none.

    A tool that sets the first time back, as cp -p does, changes the second.
    """
    try:
        now = os.stat(path)
    except OSError:
        return None
    return [now.st_size, now.st_mtime_ns, now.st_ctime_ns]


def inspect_files(paths: Iterable[str], cache: Path) -> tuple[list[str], list[str]]:
    """inspect_file of every path, as two lists; unchanged files that are in the JSON file `cache` are not read again.

    Files that cannot be read are not in it, since the reason may be the network or a missing package, not the file.
    """
    try:
        known = json.loads(Path(cache).read_text(encoding="utf-8"))
        known = {path: entry for path, entry in known.items() if len(entry) == 5 and not entry[4]}
    except (OSError, ValueError, AttributeError, TypeError):
        known = {}
    paths = [os.path.abspath(path) for path in paths]
    identity = {path: file_identity(path) for path in paths}
    new = [path for path, now in identity.items() if known.get(path, [])[:3] != now]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for path, result in zip(
            new, tqdm(pool.map(inspect_file, new), "checking images", len(new), leave=False, disable=None)
        ):
            known[path] = [*(identity[path] or (None, None, None)), *result]
    if any(not known[path][4] for path in new):
        sound = {path: entry for path, entry in known.items() if not entry[4]}
        with write_whole(cache, shared=True) as file:
            file.write(json.dumps(sound).encode())
    return [known[path][3] for path in paths], [known[path][4] for path in paths]


def images_identity(images: Any) -> str:
    """A hash that identifies these images: of the pixels of an array or of Pillow images; of the path, size and times
    of files."""
    sha = hashlib.sha256()
    if isinstance(images, np.ndarray):
        sha.update(f"{images.shape}".encode() + np.ascontiguousarray(images).tobytes())
    for image in images if isinstance(images, list) else []:
        if isinstance(image, Image.Image):
            image = to_rgb(image)  # what is looked at, whatever its mode and palette
            sha.update(f"{image.size}".encode() + image.tobytes())
        else:
            sha.update(f"{os.path.abspath(image)} {file_identity(image)}\n".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()


def pixel_digests(images: Any) -> list[str]:
    """A hash of the pixels of each image of a uint8 array (N, H, W, 3) or a list of Pillow images."""
    arrays = (np.asarray(to_rgb(x) if isinstance(x, Image.Image) else x) for x in images)
    return [hashlib.blake2b(f"{x.shape}".encode() + x.tobytes(), digest_size=16).hexdigest() for x in arrays]


def data_root(source: str | Path) -> str:
    """The absolute folder that the paths of a data set are relative to: `source`, or the folder of a table."""
    return os.path.dirname(os.path.abspath(source)) if os.path.isfile(source) else os.path.abspath(source)


def below(root: str, path: str | Path) -> str:
    """A path relative to the folder `root`, with /; absolute if it is not below it, or there is no root."""
    path = os.path.abspath(path)
    is_below = root and path.startswith(os.path.join(root, ""))
    return path[len(root) :].lstrip(os.sep).replace(os.sep, "/") if is_below else path


def inspection_cache(cfg: SimpleNamespace) -> Path:
    """The file that caches what inspect_files found out about data_path."""
    return Path(cfg.output_dir) / "cache" / f"{cfg.dataset}-files.json"
