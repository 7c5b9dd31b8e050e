"""The page of a detector's run, as text: what it found, and the suspects to review (page.html, review.js)."""

import hashlib
import json
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import Any

import numpy as np

from dataloader.dataset import Dataset, label_hash
from methods.decisions import RIGHT, UNDECIDED, Images, differing_copies
from methods.estimates import spread
from report.pictures import thumbnails
from report.quality import quality_sections
from report.sections import Section, against_truth, by_class, confusions, overview, settings, training
from report.similar import nearest_of_classes, similar_sections
from report.suspects import ranking, score_rows, to_review
from utils.summaries import read_log, reason, usable

GALLERY = 5000  # images in the page; the server of report/server.py has no limit
WITH_NEAREST = 200  # of them with the nearest images of their classes
PIECE = 100  # thumbnails that the page unpacks at a time
HERE = Path(__file__).parent
KEPT = {
    False: "Decisions stay in this browser until you save them as CSV; <code>python -m report.page RUN --decisions "
    "FILE</code> adds them to the run and shows further suspects. <code>python -m report.review RUN</code> saves every "
    "decision at once.",
    True: "Every decision is saved at once in the run’s folder.",
}


def to_show(arrays: dict[str, np.ndarray], limit: int | None = None, copies: Sequence[int] = ()) -> np.ndarray:
    """Indices of the images in the page: the `limit` worst suspects to review, what is added to them, all reviewed.

    Added are the sample (methods/estimates.py, spread) and `copies`. They have labels that the detector keeps, too.
    """
    suspects = to_review(arrays)[:limit]
    others = np.array(list(dict.fromkeys([*spread(arrays["p_clean"]).tolist(), *copies])), dtype=int)
    decided, there = arrays["decision"] != UNDECIDED, arrays["there"]
    more = others[(there & ~decided)[others] & ~np.isin(others, suspects)]
    reviewed = ranking(arrays["p_clean"], arrays["mask"])
    return np.concatenate([suspects, more, reviewed[(there & decided)[reviewed]]])


def run_name(folder: str | Path, summary: dict[str, Any]) -> str:
    """The name of a run outside its folder."""
    return f"{summary['dataset']}-{summary['noise']}-seed{summary['seed']}-{Path(folder).resolve().name}"


def _near(
    data: Dataset, arrays: dict[str, np.ndarray], order: np.ndarray, features: np.ndarray | None
) -> tuple[dict[str, dict[str, list[int]]], list[str]]:
    """For the worst of the samples `order`: places of the nearest images of their classes among thumbnails, and these."""
    if features is None:
        return {}, []
    images = Images(data)
    pool: dict[int, int] = {}  # places of thumbnails
    near = {
        images.row(i).key: {
            side: [pool.setdefault(k, len(pool)) for k in found]
            for side, found in nearest_of_classes(features, arrays, i).items()
        }
        for i in order[:WITH_NEAREST]
    }
    return near, thumbnails(data.train.images, list(pool), 96)


def _rows(
    folder: str | Path,
    summary: dict[str, Any],
    data: Dataset,
    arrays: dict[str, np.ndarray],
    order: np.ndarray,
    near: dict[str, dict[str, list[int]]],
    server: bool,
) -> str:
    """What the page's script reads, as JSON: the rows of suspects.csv and of the sample, decisions, where images are."""
    header, *rows = score_rows(data, arrays, order)
    name, images, names = run_name(folder, summary), Images(data), [*data.label_names, ""]
    known_by = [summary["identity"]["images"], *images.contents, *names, label_hash(data.train.labels)]
    identity = hashlib.sha256("\n".join(known_by).encode())
    decisions = {
        images.row(i).key: {
            "decision": "right" if arrays["decision"][i] == RIGHT else "wrong",
            "new_label": names[arrays["new_labels"][i]],
        }
        for i in order
        if arrays["decision"][i] != UNDECIDED
    }
    content = {
        "run": f"{name} {identity.hexdigest()[:16]}",  # the browser keeps decisions of runs apart by this
        "name": f"{name}-decisions.csv",
        "classes": data.label_names,
        "shown": data.shown_names,
        "header": header,
        "rows": rows,
        "decisions": decisions,
        "sample": [images.row(i).key for i in spread(arrays["p_clean"]) if arrays["there"][i]],
        "near": near,
        "server": server,
        "piece": PIECE,
        "root": Path(os.path.relpath(data.root, folder)).as_posix() if data.root else "",
    }
    return json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")


def _pieces(data: Dataset, order: np.ndarray, nearest: list[str]) -> str:
    """Thumbnails as text in the page, in scripts that are never run; they are unpacked when they scroll into view."""
    uris = thumbnails(data.train.images, order)
    pieces = {f"images-{k // PIECE}": uris[k : k + PIECE] for k in range(0, len(uris), PIECE)}
    pieces |= {"nearest": nearest} if nearest else {}
    return "\n".join(
        f'<script type="text/plain" id="{name}">\n' + "\n".join(part) + "\n</script>" for name, part in pieces.items()
    )


def label_sections(data: Dataset, arrays: dict[str, np.ndarray], relabel_above: float) -> list[Section]:
    """The first sections of the page, (name, title, HTML) of each: what follows from the mask and from decisions."""
    sections = [overview(data, arrays, relabel_above)]
    sections += [against_truth(data, arrays, relabel_above)] if data.true_labels is not None else []
    return [*sections, by_class(data, arrays), confusions(data, arrays)]


def other_sections(
    folder: str | Path,
    cfg: SimpleNamespace,
    data: Dataset,
    arrays: dict[str, np.ndarray],
    summary: dict[str, Any],
    features: np.ndarray | None = None,
) -> list[Section]:
    """The sections behind them, which decisions do not change. features (N, D): see find_features."""
    history = read_log(folder)
    sections = [training(history)] if history else []
    sections += [*similar_sections(folder, data, arrays, features), *quality_sections(folder, data, arrays)]
    return [*sections, settings(cfg, summary)]


def page_html(
    folder: str | Path,
    data: Dataset,
    arrays: dict[str, np.ndarray],
    summary: dict[str, Any],
    sections: list[Section],
    features: np.ndarray | None = None,
    server: bool = False,
) -> str:
    """The page of a run as text: its sections and the suspects to review.

    It is one file that loads nothing but, where they are still there, the images themselves, to show them large; or, with
    server, what report/server.py serves, which has the images. features (N, D): see find_features.
    """
    order = to_show(arrays, None if server else GALLERY, [i for group in differing_copies(data) for i in group])
    links = [(name, title) for name, title, _ in sections]
    links.insert(1, ("gallery", "Review"))
    near, nearest = _near(data, arrays, order, None if server else features)
    level, why = summary.get("verdict", {"level": ""})["level"], reason(summary)
    why = f"usable: {why}" if level == "usable" else why  # the heading says the other levels
    return Template((HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"Suspect labels: {run_name(folder, summary)}"),
        images="img-src 'self' data:; connect-src 'self'" if server else "img-src data: file:",
        heading=heading(summary, arrays),
        verdict=escape(why),
        level=level,
        subtitle=escape(
            f"{summary['dataset']}{'' if summary['noise'] == 'none' else ', noise ' + summary['noise']}, seed {summary['seed']}: "
            f"{summary['name']} with {summary['backbone']}"
        ),
        links="".join(f'<a href="#{name}">{title}</a>' for name, title in links),
        overview=sections[0][2],
        sections="\n".join(html for *_, html in sections[1:]),
        kept=KEPT[server] + _not_shown(arrays, server),
        rows=_rows(folder, summary, data, arrays, order, near, server),
        pieces="" if server else _pieces(data, order, nearest),
        script=(HERE / "review.js").read_text(encoding="utf-8"),
    )


def heading(summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """How many labels look wrong, decisions included, or, if the detector failed, that it did."""
    mask, decided = arrays["mask"], int(np.sum(arrays["decision"] != UNDECIDED))
    found = f"{int(np.sum(~mask)):,} of {len(mask):,} labels look wrong"
    found += f"; you decided on {decided:,}" if decided else ""
    if usable(summary):
        return found
    return f"Doubtful: {found}" if summary["verdict"]["level"] == "doubtful" else "Not usable: the detector failed"


def _not_shown(arrays: dict[str, np.ndarray], server: bool) -> str:
    rest = len(to_review(arrays)) - GALLERY
    if server or rest <= 0:
        return ""
    return f" This page has the worst {GALLERY:,}; the server also has the other {rest:,}."
