"""A trained classifier saved as two files gives the logits of the run: through the project, and through open_clip alone."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import main_baseline
from dataloader.dataset import Split, View
from dataloader.load import load_data
from dataloader.loaders import Loader
from dataloader.transforms import Pixels
from methods.fine_tuning import fine_tune
from model.classifier import build_classifier, frozen
from model.saved import load_classifier, save_classifier
from report import predict
from tests.helpers import Killed, write_digits, write_folder
from utils.checkpoint import load_checkpoint
from utils.config import load_config
from utils.device import torch_generator
from utils.errors import UserError
from utils.files import EMBEDDED, as_text


def own_logits(folder, flags, split=None):
    """Logits of the un-augmented images of the test set, or of another split, as a run evaluates them."""
    cfg = load_config(flags)
    data = load_data(cfg)
    model, pixels = build_classifier(cfg, data, torch_generator(cfg.seed, 0))
    load_checkpoint(folder / "checkpoint.pt", model)
    loader = Loader(split or data.test, data.view, pixels, 64, torch.device("cpu"), False)
    with torch.no_grad():
        return torch.cat([frozen(model)(images) for images, _, _ in loader.eval()])


@pytest.mark.parametrize(
    "flags",
    [
        ["--finetune", "true"],
        ["--vpt_deep", "--vpt_len", "2", "--partial", "2", "--adapter", "--bias_tuning"],
        ["--vpt_shallow", "--lora", "--ssf", "--adaptformer"],
        ["--is_coop", "--n_ctx", "4", "--csc", "--lora"],
        ["--backbone", "timm:test_vit", "--pretrained", "none"],
    ],
)
def test_every_kind_of_classifier_comes_back(tmp_path, flags):
    """The two files alone give the logits of the network they were made of, with every trained weight moved."""
    cfg = load_config(["--backbone", "tiny-clip-digits", *flags])
    data = load_data(cfg)
    model, pixels = build_classifier(cfg, data, torch_generator(0, 0))
    noise = torch.Generator().manual_seed(1)
    images = torch.randn(5, 3, pixels.size, pixels.size, generator=noise)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=noise)
        logits = frozen(model)(images)
    save_classifier(tmp_path, model, cfg, data, pixels)
    again, info = load_classifier(tmp_path)
    torch.testing.assert_close(again(images), logits, atol=1e-5, rtol=1e-5)
    if "--is_coop" in flags:  # in low precision, too, cosines are in fp32
        predict = frozen(model)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(again(images), predict(images), atol=1e-5, rtol=1e-5)
    assert logits.std() > 0.01 and info["classes"] == data.label_names
    assert not any("parametrizations" in name for name in again.state_dict())  # merged


@pytest.mark.parametrize(
    "vision",
    [{"pool_type": "avg"}, {"layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "image_size": 32}],
    ids=["avg", "RN"],
)
def test_text_classifiers_of_other_image_encoders_come_back(tmp_path, vision):
    """Those without a class token, or without a transformer."""
    config = json.loads((EMBEDDED["tiny-clip-digits"] / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] |= vision
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "open_clip_config.json").write_text(json.dumps(config))
    flags = ["--backbone", str(tmp_path / "clip"), "--pretrained", "none", "--is_coop", "--n_ctx", "2"]
    cfg = load_config(flags)
    data = load_data(cfg)
    model, pixels = build_classifier(cfg, data, torch_generator(0, 0))
    images = torch.randn(3, 3, pixels.size, pixels.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = frozen(model.eval())(images)
    save_classifier(tmp_path, model, cfg, data, pixels)
    again, _ = load_classifier(tmp_path)
    torch.testing.assert_close(again(images), logits, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """A fully fine-tuned classifier of own images: its folder, and the flags."""
    root = tmp_path_factory.mktemp("own")
    source, *_ = write_digits(root / "data", 0.2, every=8)
    flags = [
        "--cfg",
        "config/FFT/own.yaml",
        "--data_path",
        str(source),
        "--backbone",
        "tiny-clip-digits",
        "--epochs",
        "1",
        "--lr",
        "0.01",
        "--batch_size",
        "16",
        "--device",
        "cpu",
        "--output_dir",
        str(root / "runs"),
    ]
    main_baseline.main(flags)
    return root / "runs/own-data/none/seed0/ce-tiny-clip-digits", flags


def test_the_open_clip_lines_of_the_documentation(own_run, tmp_path):
    """The Python block of docs/own-images.md, as it stands, gives the logits of the run's own evaluation for a file."""
    folder, flags = own_run
    block = next(
        b
        for b in re.findall(r"```python\n(.*?)```", Path("docs/own-images.md").read_text(), re.S)
        if "safetensors" in b
    )
    lines = block.splitlines()
    assert lines[0].startswith("run, file = ") and len(lines) == 1 + 10
    write_folder(tmp_path, {"a": 2})
    files = sorted(map(str, tmp_path.rglob("*.png")))  # 8 x 8 grey: resized, and made RGB
    logits = own_logits(folder, flags, Split(files, np.zeros(2, dtype=np.int64)))
    for file, expected in zip(files, logits):
        names = {"run": str(folder), "file": file}
        exec("\n".join(lines[1:]), names)
        torch.testing.assert_close(names["logits"][0], expected, atol=1e-5, rtol=1e-5)


def test_predict_prints_label_and_probability(own_run, tmp_path, capsys):
    folder, flags = own_run
    data = load_data(load_config(flags))
    logits = own_logits(folder, flags)
    probability, k = logits.softmax(1).max(1)
    capsys.readouterr()
    predict.main([str(folder), *data.test.images, "--device", "cpu"])
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == data.test.images
    assert [row[1] for row in rows] == [data.label_names[i] for i in k]
    assert [float(row[2]) for row in rows] == pytest.approx(probability.tolist(), abs=1e-4)

    predict.main([str(folder), *data.test.images[:2], "--device", "cpu", "--top", "3"])
    top = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    values, classes = logits[:2].softmax(1).topk(3)
    assert [row[1::2] for row in top] == [[data.label_names[i] for i in row] for row in classes]
    assert [[float(p) for p in row[2::2]] for row in top] == [pytest.approx(row.tolist(), abs=1e-4) for row in values]
    predict.main(
        [str(folder), data.test.images[0], "--device", "cpu", "--top", "2", "--csv", str(tmp_path / "top.csv")]
    )
    heading, *found = csv.reader((tmp_path / "top.csv").open())
    assert heading == ["path", "label", "probability", "label_2", "probability_2"] and found == [top[0][:5]]
    with pytest.raises(UserError, match="--top: expected 1 to 10, the number of classes, not 11"):
        predict.main([str(folder), data.test.images[0], "--top", "11"])

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "good.png").write_bytes(Path(data.test.images[0]).read_bytes())
    (tmp_path / "bad.png").write_bytes(b"no image")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="2 of 3 files could not be read as images: .*bad.png, .*pipe.png"):
        predict.main([str(folder), str(tmp_path), "--device", "cpu"])
    assert capsys.readouterr().out.splitlines()[0].split("\t")[1:] == rows[0][1:]
    with pytest.raises(
        UserError, match="2 of 3 files could .*bad.png, .*pipe.png; .*out.csv is written, with the other 1"
    ):
        predict.main([str(folder), str(tmp_path), "--device", "cpu", "--csv", str(tmp_path / "out.csv")])
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2
    (tmp_path / "out.csv").unlink()
    odd = [tmp_path / "sub" / "two\tparts.png", tmp_path / "sub" / os.fsdecode(b"latin\xe9.png")]
    for path in odd:
        path.write_bytes(Path(data.test.images[0]).read_bytes())
    (tmp_path / "sub" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"two\\tparts.png' has a tab or an end of line in it.*use --csv FILE"):
        predict.main([str(folder), str(tmp_path / "sub"), "--device", "cpu"])
    capsys.readouterr()
    predict.main([str(folder), str(tmp_path / "sub"), "--device", "cpu", "--csv", str(tmp_path / "out.csv")])
    assert "ignored files that are not images: .txt (1)" in capsys.readouterr().err
    found = list(csv.reader((tmp_path / "out.csv").open(encoding="utf-8", newline="")))
    assert [row[0] for row in found] == ["path", f"{tmp_path}/sub/good.png", as_text(odd[1]), str(odd[0])]
    assert [row[1:] for row in found[1:]] == [rows[0][1:]] * 3
    with pytest.raises(UserError, match="nowhere: neither an image file nor a folder"):
        predict.main([str(folder), "nowhere"])
    with pytest.raises(UserError, match="holds no model.json; expected the folder of a finished run of phase 2"):
        predict.main([str(tmp_path), str(tmp_path)])
    with pytest.raises(UserError, match=f"there is no folder {folder}s. Did you mean {folder}"):
        predict.main([f"{folder}s", str(tmp_path)])
    with pytest.raises(UserError, match="--devise: unknown flag. Did you mean --device"):
        predict.main([str(folder), "x", "--devise", "cpu"])


def test_images_are_cut_as_the_run_cuts_them(own_run, tmp_path):
    """Data sets that enlarge their test images, or resize the short side only: the pixels of Loader.eval."""
    from PIL import Image

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(tmp_path / "x.png")
    data, pixels = load_data(load_config(own_run[1])), Pixels(32, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    for view in (
        View(),
        View(test_enlarge=8 / 7),
        View(test_enlarge=8 / 7, short_side=True, mean=(0.4,) * 3, std=(1,) * 3),
    ):
        data.view = view
        save_classifier(tmp_path, torch.nn.Identity(), load_config(["--backbone", "timm:x"]), data, pixels)
        info = json.loads((tmp_path / "model.json").read_text())
        split = Split([str(tmp_path / "x.png")], np.zeros(1, dtype=np.int64))
        ((images, _, _),) = Loader(split, view, pixels, 1, torch.device("cpu"), False).eval()
        ((_, seen),) = predict.predict(torch.nn.Identity(), info, [tmp_path / "x.png"], torch.device("cpu"))
        assert torch.equal(seen, images[0])


def test_a_run_stopped_before_its_end_writes_the_model_on_the_next_try(own_run, tmp_path, monkeypatch):
    folder, flags = own_run
    flags = [*flags[:-1], str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setitem(fine_tune.__globals__, "save_classifier", lambda *a: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            main_baseline.main(flags)
    stopped = tmp_path / "own-data/none/seed0/ce-tiny-clip-digits"
    assert (stopped / "checkpoint.pt").exists() and not (stopped / "summary.json").exists()
    main_baseline.main(flags)
    for name in ("model.json", "model.safetensors"):
        assert (stopped / name).read_bytes() == (folder / name).read_bytes()
    (stopped / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="model.json and model.safetensors do not form a model"):
        load_classifier(stopped)
