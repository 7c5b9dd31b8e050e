import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

import main_baseline  # noqa: E402
import main_detect  # noqa: E402
import main_phase1  # noqa: E402
import main_phase2  # noqa: E402
from model.clip import load_clip  # noqa: E402
from report import page  # noqa: E402
from tests import recipe  # noqa: E402
from tests.helpers import LABEL_MATCH, NASTY, detection, phase1, phase2, write_clip, write_folder  # noqa: E402


@pytest.fixture(scope="session")
def random_clip(tmp_path_factory):
    """random_clip(meta) -> the small random CLIP of a golden file and its tokenizer, through load_clip."""
    folders = {}

    def build(meta):
        key = meta["state_dict_digest"]
        if key not in folders:
            weights = recipe.clip_weights(meta["clip_seed"], **meta["clip_config"])
            assert recipe.digest(weights) == key
            folders[key] = write_clip(tmp_path_factory.mktemp("clip"), weights, meta["clip_config"])
        return load_clip(folders[key])

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
