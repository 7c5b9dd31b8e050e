import copy
import functools
import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import main_baseline  # noqa: E402
import main_detect  # noqa: E402
import main_phase1  # noqa: E402
import main_phase2  # noqa: E402
from model import clip as clip_module  # noqa: E402
from model.clip import load_clip  # noqa: E402
from report import page  # noqa: E402
from tests import recipe  # noqa: E402
from tests.helpers import LABEL_MATCH, NASTY, detection, phase1, phase2, write_clip, write_folder  # noqa: E402
from utils.files import EMBEDDED  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def embedded_clips_are_read_once():
    """An embedded CLIP is a copy of the one first built from its file: hundreds of tests load one. test_clip builds each."""
    build, built = clip_module._build, {}

    @functools.wraps(build)
    def copied(backbone, name, weights, source):
        if backbone not in EMBEDDED or not Path(weights).is_file():  # none builds it untrained
            return build(backbone, name, weights, source)
        key = name, weights, Path(weights).stat().st_mtime_ns
        if key not in built:
            built[key] = build(backbone, name, weights, source)
        return copy.deepcopy(built[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_module, "_build", copied)
        yield


@pytest.fixture(scope="session")
def random_clip(tmp_path_factory):
    """random_clip(meta) -> the small random CLIP of a golden file and its tokenizer, through load_clip."""
    loaded = {}

    def build(meta):
        key = meta["state_dict_digest"]
        if key not in loaded:
            weights = recipe.clip_weights(meta["clip_seed"], **meta["clip_config"])
            assert recipe.digest(weights) == key
            loaded[key] = load_clip(write_clip(tmp_path_factory.mktemp("clip"), weights, meta["clip_config"]))
        clip, tokenizer = loaded[key]
        return copy.deepcopy(clip), tokenizer

    return build


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, in order."""
    saved, save = [], Figure.savefig

    def keep(figure, *args, **kwargs):
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


@pytest.fixture(scope="session")
def cell(tmp_path_factory):
    """One finished cell: label-match, phase 1, phase 2, CE."""
    out = tmp_path_factory.mktemp("runs")
    return out, {
        "label-match": main_detect.main(detection(out)),
        "deft": main_phase1.main(phase1(out)),
        "phase2-deft-tiny-clip-digits": main_phase2.main(phase2(out)),
        "ce-tiny-clip-digits": main_baseline.main(phase2(out)),
    }


@pytest.fixture(scope="session")
def nasty_run(tmp_path_factory):
    """Label-match on files whose names and classes are HTML, CSV and mathtext syntax, with its report."""
    root = tmp_path_factory.mktemp("nasty")
    write_folder(root / "data", {name: 6 for name in NASTY})
    for folder in (root / "data").iterdir():
        for i, file in enumerate(sorted(folder.iterdir())[:4]):  # with the folder before: ends</script>
            file.rename(folder / f"script>\"><!--<script>alert({i})'.png")
    flags = ["--backbone", "tiny-clip-digits", "--test_fraction", "0", "--device", "cpu"]
    where = ["--data_path", str(root / "data"), "--output_dir", str(root / "runs")]
    main_detect.main([*LABEL_MATCH, *flags, *where])
    folder = next((root / "runs").glob("*/none/seed0/label-match"))
    page.main([str(folder)])
    return folder
