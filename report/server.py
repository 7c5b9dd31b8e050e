"""The server of a review: serves the page of a run on this machine only, and logs each decision in the run's folder."""

import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from methods.decisions import Images, Log, as_arrays, by_image
from report.flags import RELABEL_ABOVE
from report.pictures import THUMBNAIL, encoded, thumbnail
from report.render import label_sections, other_sections, page_html
from report.similar import find_features, nearest_of_classes
from report.suspects import follow, read_run
from utils.errors import UserError

LARGE = 1200  # pixels of the longer side of the large picture


class Review:
    """A run under review, with its images by their identifiers, and its log of decisions."""

    def __init__(
        self,
        folder: str | Path,
        data_path: str | None = None,
        decisions: str | Path | None = None,
        relabel_above: float = RELABEL_ABOVE,
    ) -> None:
        self.folder = folder
        self.cfg, self.arrays, self.data, self.summary = read_run(folder, data_path, decisions)
        self.features, self.relabel_above = find_features(folder, self.data), relabel_above
        self.sections = other_sections(folder, self.cfg, self.data, self.arrays, self.summary, self.features)
        self.images, self.log, self.lock = Images(self.data), Log(folder), threading.Lock()
        self.index = {self.images.row(i).key: i for i in range(len(self.data.train.labels))}

    def page(self) -> str:
        """The page, with all decisions so far."""
        with self.lock:
            decided, _ = by_image(self.log.rows(self.data.label_names), self.images, last_counts=True)
            there = {i: row for i, row in decided.items() if self.arrays["there"][i]}
            follow(self.arrays, *as_arrays(there, self.data))
            sections = [*label_sections(self.data, self.arrays, self.relabel_above), *self.sections]
            return page_html(self.folder, self.data, self.arrays, self.summary, sections, server=True)

    def picture(self, image: str, size: int) -> tuple[str, bytes]:
        """An image at most `size` pixels large, see `encoded`; KeyError for one that is not of the run."""
        return encoded(thumbnail(self.data.train.images, self.index[image], size), quality=88)

    def nearest(self, image: str) -> dict[str, list[str]]:
        """Identifiers of the nearest images of its given and of its suggested class; KeyError as for picture."""
        if self.features is None:
            return {}
        near = nearest_of_classes(self.features, self.arrays, self.index[image])
        return {side: [self.images.row(i).key for i in found] for side, found in near.items()}

    def decide(self, image: str, decision: str, new_label: str) -> None:
        """Add a decision, `right`, `wrong` or "", to the log; ValueError or KeyError for one that cannot be."""
        if decision not in ("right", "wrong", "") or new_label not in ("", *self.data.label_names):
            raise ValueError(f"no such decision: {decision!r}, {new_label!r}")
        row = self.images.row(self.index[image], decision, new_label)
        if row.contradicts_itself:  # a log with such a line cannot be read
            raise ValueError(
                f"the label {row.given_label!r} is {decision or 'undecided'}, but the new label is {new_label!r}"
            )
        with self.lock:
            self.log.add([row])


class Handler(BaseHTTPRequestHandler):
    """Answers requests below /<token>/ only, and only if the Host header names this machine."""

    protocol_version = "HTTP/1.1"
    review: Review  # set by `serve`, as is the token
    token: str

    def do_GET(self) -> None:
        """The page, and its images."""
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        if not self._allowed(url.path):
            return self._answer(404, "text/plain", b"not found")
        try:
            if url.path == f"/{self.token}/":
                return self._answer(200, "text/html; charset=utf-8", self.review.page().encode())
            if url.path == f"/{self.token}/image":
                kind, content = self.review.picture(query["of"][0], LARGE if "large" in query else THUMBNAIL)
                return self._answer(200, f"image/{kind}", content, keep=True)
            if url.path == f"/{self.token}/near":
                return self._answer(200, "application/json", json.dumps(self.review.nearest(query["of"][0])).encode())
        except UserError as error:  # such as a log that cannot be read
            return self._answer(500, "text/plain; charset=utf-8", str(error).encode())
        except KeyError:
            pass
        return self._answer(404, "text/plain", b"not found")

    def do_POST(self) -> None:
        """A decision: {image, decision, new_label} as JSON. It is on disk before the answer is sent."""
        if self.path != f"/{self.token}/decide" or not self._allowed(self.path):
            self.close_connection = True  # the request's content is not read
            return self._answer(404, "text/plain", b"not found")
        try:
            said = json.loads(self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 100_000)))
            self.review.decide(str(said["image"]), str(said["decision"]), str(said["new_label"]))
        except (ValueError, KeyError, TypeError) as error:
            self.close_connection = True  # its length may have been wrong
            return self._answer(400, "text/plain", str(error).encode())
        except UserError as error:  # a full disk: the page tries again
            return self._answer(507, "text/plain", str(error).encode())
        return self._answer(200, "text/plain", b"saved")

    def _allowed(self, path: str) -> bool:
        host, port = self.connection.getsockname()
        by_name = self.headers.get("Host") in (f"{host}:{port}", f"localhost:{port}")  # no other site's name for us
        first = path.removeprefix("/").partition("/")[0]
        return by_name and secrets.compare_digest(first.encode(), self.token.encode())

    def _answer(self, status: int, kind: str, content: bytes, keep: bool = False) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "private, max-age=3600" if keep else "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Do not log requests."""


def serve(review: Review, port: int = 0) -> tuple[ThreadingHTTPServer, str]:
    """(server, its address), not started yet; port 0 takes a free one."""
    token = secrets.token_urlsafe(16)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"review": review, "token": token}))
    except (OSError, OverflowError) as error:
        raise UserError(f"--port: {port} cannot be used ({error}).") from None
    server.daemon_threads = True
    return server, f"http://127.0.0.1:{server.server_address[1]}/{token}/"
