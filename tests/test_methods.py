"""Methods, tuners and backbones through the scripts' main()."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import main_baseline
import main_phase2
import main_real_baseline
import main_real_phase1
import main_real_phase2
import main_small_loss
from dataloader.dataset import View
from dataloader.load import load_data
from dataloader.loaders import Loader
from dataloader.transforms import Pixels
from methods.deft import build_detector
from model.classifier import build_classifier
from model.clip import load_clip
from model.saved import load_classifier
from tests.helpers import DIGITS, checkpoint, phase2, write_folder
from utils.checkpoint import trained_state
from utils.config import load_config
from utils.errors import UserError
from utils.summaries import read_summary, with_checksum, write_summary


def test_real_world_scripts_on_a_folder(tmp_path):
    write_folder(tmp_path / "data", {"zero": 30, "one": 30, "two": 30})
    flags = [
        "--dataset",
        "own",
        "--data_path",
        str(tmp_path / "data"),
        "--backbone",
        "tiny-clip-digits",
        "--output_dir",
        str(tmp_path / "runs"),
        "--device",
        "cpu",
    ]
    prompts = ["--n_ctx", "4", "--vpt_deep", "--vpt_len", "2"]
    summary = main_real_phase1.main([*flags, *prompts, "--epochs", "2", "--warmup", "1"])
    assert "precision" not in summary and "noise_rate" not in summary  # nobody knows the truth
    config = yaml.safe_load((tmp_path / "runs/own-data/none/seed0/deft/config.yaml").read_text())
    assert {k: config[k] for k in ("require_agreement", "warmup_loss", "pseudo_from", "schedule", "warmup")} == {
        "require_agreement": True,
        "warmup_loss": "sce",
        "pseudo_from": 2,
        "schedule": "constant",
        "warmup": 1,
    }
    train = [*flags, "--finetune", "--lr", "0.001", "--mask"]
    masks = {name: tmp_path / f"{name}.npy" for name in ("some", "none")}
    np.save(masks["some"], np.arange(summary["num_train"]) % 3 > 0)
    np.save(masks["none"], np.zeros(summary["num_train"], dtype=bool))
    assert main_real_phase2.main([*train, str(masks["some"])])["epochs"] == 5
    lines = (tmp_path / "runs/own-data/none/seed0/phase2-some-tiny-clip-digits/log.jsonl").read_text()
    assert {json.loads(line)["lr"] for line in lines.splitlines()} == {0.001}
    with pytest.raises(UserError, match="selects no sample"):
        main_real_phase2.main([*train, str(masks["none"])])


def test_vit_b16_as_both_phases_train_it():
    """The real architecture with the settings of the YAML files, untrained: what of it is trained, and its outputs."""
    cfg = load_config(["--cfg", "config/PEFT/cifar10.yaml", "--pretrained", "none"])
    detector = build_detector(cfg, DIGITS, torch.device("cpu")).eval()
    trained = trained_state(detector)
    assert cfg.backbone == "ViT-B/16" and len(trained) == 2 + 12
    assert trained["prompts.pos_ctx"].shape == (16, 512)
    assert trained["clip.visual.transformer.resblocks.11.prompts"].shape == (20, 768)
    with torch.no_grad():
        positive, negative = detector(torch.zeros(1, 3, 224, 224))
    assert positive.shape == negative.shape == (1, 10)
    cfg = load_config(["--cfg", "config/FFT/cifar10.yaml", "--pretrained", "none"])
    classifier, pixels = build_classifier(cfg, SimpleNamespace(num_classes=10))
    trained = trained_state(classifier)
    assert trained["head.weight"].shape == (10, 768)
    assert {k.split(".")[0] for k in trained} == {"head", "backbone"} and len(trained) == 2 + 12 * 12
    with torch.no_grad():
        assert pixels.size == 224 and classifier.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 10)


@pytest.mark.parametrize(
    "script, method",
    [
        (main_baseline, "SCE"),
        (main_baseline, "GCE"),
        (main_baseline, "ELR"),
        (main_baseline, "GMM"),
        (main_baseline, "TURN"),
        (main_baseline, "AUM"),
        (main_baseline, "mean-p"),
        (main_small_loss, "small-loss"),
        (main_real_baseline, "GMM"),
    ],
)
def test_baselines_leave_the_same_record(cell, tmp_path, script, method):
    flags = [] if script is main_small_loss else ["--lnl_methods", method]
    summary = script.main(phase2(tmp_path, *flags))
    folder = tmp_path / "digits/sym-0.4/seed0" / f"{method.lower()}-tiny-clip-digits"
    assert json.loads((folder / "summary.json").read_text()) == summary and summary["epochs"] == 2
    lrs = {json.loads(line)["lr"] for line in (folder / "log.jsonl").read_text().splitlines()}
    assert len(lrs) == (1 if script is main_real_baseline else 2)
    if method in ("GMM", "TURN", "small-loss", "AUM", "mean-p"):  # detectors too: their mask trains phase 2
        assert 0 < summary["selected"] < 1 and summary["precision"] > 1 - summary["noise_rate"]
    if method in ("GMM", "AUM") and script is main_baseline:  # by the probability and by a ranking
        again = main_phase2.main(phase2(tmp_path, "--mask", folder.name, "--epochs", "1"))
        assert again["selected"] == summary["selected"]


@pytest.mark.parametrize(
    "flags, parameter",
    [
        (["--finetune", "false", "--vpt_deep", "--vpt_len", "2"], "backbone.transformer.resblocks.3.prompts"),
        (
            ["--finetune", "false", "--lora", "--ssf"],
            "backbone.transformer.resblocks.0.attn.parametrizations.in_proj_weight.1.q_A",
        ),
        (["--is_coop", "--n_ctx", "4", "--csc"], "detector.prompts.pos_ctx"),
    ],
)
def test_peft_and_text_classifier_as_adaptation(cell, tmp_path, flags, parameter):
    out, _ = cell
    mask = str(out / "digits/sym-0.4/seed0/deft/clean_mask.npz")
    main_phase2.main(phase2(tmp_path, "--mask", mask, "--epochs", "1", *flags))
    saved = checkpoint(tmp_path / "digits/sym-0.4/seed0/phase2-deft-tiny-clip-digits")["model"]
    assert parameter in saved and "detector.prompts.neg_ctx" not in saved


def test_the_text_classifier_starts_from_words_too():
    cfg = load_config(["--backbone", "tiny-clip-digits", "--is_coop", "--n_ctx", "4", "--ctx_init", "a photo of a"])
    model, _ = build_classifier(cfg, SimpleNamespace(classnames=["one", "two"]))
    clip, tokenizer = load_clip(cfg.backbone)
    assert torch.equal(
        model.detector.prompts.pos_ctx, clip.token_embedding(tokenizer(["a photo of a"])[0, 1:5])
    )  # behind the first token


def test_adaptation_none_peft_and_fft(cell, tmp_path, capsys):
    out, finished = cell
    mask = ["--mask", str(out / "digits/sym-0.4/seed0/deft/clean_mask.npz"), "--epochs", "1"]
    none = main_phase2.main(phase2(tmp_path, *mask, "--adaptation", "none"))
    assert none["name"] == "phase2-deft-tiny-clip-digits-none" and none["acc_last"] == finished["deft"]["acc_last"]
    model, info = load_classifier(tmp_path / "digits/sym-0.4/seed0" / none["name"])  # for report.predict
    test, pixels = load_data(load_config(phase2(tmp_path))).test, Pixels(info["pixels"], info["mean"], info["std"])
    seen = Loader(test, View(), pixels, 100, torch.device("cpu"), False).eval()
    right = sum((model(images).argmax(1) == labels).sum().item() for images, labels, _ in seen)
    assert 100 * right / len(test.labels) == pytest.approx(none["acc_last"])
    for adaptation, trained in (("peft", 2 + 4), ("fft", 2 + 4 * 12)):  # the head, and prompts or blocks
        vpt_len = ["--vpt_len", "2"] * (adaptation == "peft")
        main_phase2.main(phase2(tmp_path, *mask, "--adaptation", adaptation, *vpt_len))
        run = tmp_path / f"digits/sym-0.4/seed0/phase2-deft-tiny-clip-digits-{adaptation}"
        assert len(checkpoint(run)["model"]) == trained
    assert load_config(phase2(tmp_path, "--adaptation", "peft")).lr == 0.03
    assert load_config(["--cfg", "config/PEFT/cifar100.yaml", "--adaptation", "fft"]).lr == 5e-4  # not phase 1's
    assert load_config(phase2(tmp_path, "--adaptation", "peft", "--lr", "0.5")).lr == 0.5
    with pytest.raises(
        UserError, match="backbone: adaptation none takes the classifier of .*deft, which is of tiny-clip-digits"
    ):
        main_phase2.main(phase2(tmp_path, *mask, "--adaptation", "none", "--backbone", "preact_resnet18"))
    copied = Path(shutil.copytree(Path(mask[1]).parent, tmp_path / "other" / "deft"))
    before = read_summary(copied / "summary.json")
    for changed, message in (
        ({"test labels": "others"}, "adaptation: none shows the accuracy of .*deft, which was tested on other images"),
        ({"weights": "others"}, "backbone: the weights of tiny-clip-digits have changed since .*deft was trained"),
    ):
        identity = before["identity"] | changed
        write_summary(copied / "summary.json", with_checksum(before | {"identity": identity}))
        with pytest.raises(UserError, match=message):
            main_phase2.main(
                phase2(tmp_path / "other", "--mask", str(copied / "clean_mask.npz"), "--adaptation", "none")
            )
    beside = tmp_path / "digits/sym-0.4/seed0/label-match"
    shutil.copytree(out / "digits/sym-0.4/seed0/label-match", beside)
    write_summary(beside / "summary.json", with_checksum(finished["label-match"] | {"acc_last": 99.9}))
    capsys.readouterr()
    main_phase2.main(phase2(tmp_path, *mask, "--adaptation", "none", "--tag", "again"))
    assert f"warning: this model is worse than zero-shot CLIP ({beside})" in capsys.readouterr().out
    np.save(tmp_path / "mask.npy", np.ones(359, dtype=bool))
    for detector, hint in (("deft", True), ("label-match", False)):
        with pytest.raises(
            UserError, match="holds no model.json; expected the folder of a finished run of phase 2"
        ) as seen:
            load_classifier(out / "digits/sym-0.4/seed0" / detector)
        assert ("--adaptation none saves" in str(seen.value)) == hint
    for other in (tmp_path / "mask.npy", out / "digits/sym-0.4/seed0/label-match/clean_mask.npz", "all"):
        with pytest.raises(
            UserError, match=f"adaptation: none takes the classifier of phase 1, and .*{other} has none"
        ):
            main_phase2.main(phase2(tmp_path, "--mask", str(other), "--adaptation", "none"))
    (tmp_path / "names.txt").write_text("\n".join(f"digit {k}" for k in range(10)))
    with pytest.raises(UserError, match="seed0/deft was trained with other class names"):
        main_phase2.main(
            phase2(tmp_path / "renamed", *mask, "--adaptation", "none", "--classnames", str(tmp_path / "names.txt"))
        )
    with pytest.raises(UserError, match="is for phase 2 only"):
        main_baseline.main(phase2(tmp_path, "--adaptation", "none"))


def test_timm_backbones(cell, tmp_path):
    out, _ = cell
    mask = ["--mask", str(out / "digits/sym-0.4/seed0/deft/clean_mask.npz"), "--epochs", "1", "--pretrained", "none"]
    summary = main_phase2.main(phase2(tmp_path, *mask, "--backbone", "timm:test_vit"))
    assert summary["name"] == "phase2-deft-timm-test_vit"
    turn = main_baseline.main(phase2(tmp_path, *mask[2:], "--backbone", "timm:test_vit", "--lnl_methods", "TURN"))
    assert 0 < turn["selected"] < 1
    with pytest.raises(UserError, match="timm has no model 'test_vitt'. Did you mean test_vit"):
        main_phase2.main(phase2(tmp_path, *mask, "--backbone", "timm:test_vitt"))
    (tmp_path / "mae.yaml").write_text("backbone: mae\nlr: 0.5\n")
    cfg = load_config(["--cfg", str(tmp_path / "mae.yaml")])
    assert (cfg.lr, cfg.optimizer, cfg.weight_decay) == (0.5, "adamw", 1e-3)  # what the file says itself stays
    (tmp_path / "upper.yaml").write_text("BACKBONE: resnet\n")
    assert load_config(["--cfg", str(tmp_path / "upper.yaml")]).optimizer == "adamw"
    for name, (optimizer, lr, weight_decay) in {
        "vit": ("sgd", 1e-2, 1e-5),
        "resnet": ("adamw", 1e-3, 1e-5),
        "convnext": ("adamw", 1e-4, 1e-4),
        "mae": ("adamw", 1e-4, 1e-3),
    }.items():
        cfg = load_config(phase2(tmp_path, "--backbone", name))
        assert (cfg.optimizer, cfg.lr, cfg.weight_decay) == (optimizer, lr, weight_decay)
        (tmp_path / "own.yaml").write_text(f"backbone: {name}\n")
        for flags in (["--backbone", name], ["--cfg", str(tmp_path / "own.yaml")]):  # CLIP's lr is not for others
            assert load_config([*flags, "--adaptation", "fft"]).lr == lr
    assert load_config(phase2(tmp_path, "--backbone", "vit", "--lr", "0.5")).lr == 0.5
