import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest  # noqa: E402

import main_baseline  # noqa: E402
import main_detect  # noqa: E402
import main_phase1  # noqa: E402
import main_phase2  # noqa: E402
from model.clip import load_clip  # noqa: E402
from tests import recipe  # noqa: E402
from tests.helpers import phase1, phase2, write_clip  # noqa: E402


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


@pytest.fixture(scope="session")
def cell(tmp_path_factory):
    """One finished cell: label-match, phase 1, phase 2, CE."""
    out = tmp_path_factory.mktemp("runs")
    return out, {
        "label-match": main_detect.main(phase1(out)),
        "deft": main_phase1.main(phase1(out)),
        "phase2-deft-tiny-clip-digits": main_phase2.main(phase2(out)),
        "ce-tiny-clip-digits": main_baseline.main(phase2(out)),
    }
