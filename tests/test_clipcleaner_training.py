"""main_clipcleaner.py and the networks it trains, the learning rate in steps, and the moving average of the weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import main_baseline
import main_clipcleaner
import main_detect
import main_phase2
from dataloader.load import load_data
from methods import fine_tuning
from methods.loops import learning_rate
from methods.moving_average import MovingAverage
from model.classifier import build_classifier, head_input, linear_head
from model.preact_resnet import PreActResNet18
from model.saved import load_classifier
from tests.helpers import SHARED, checkpoint, copy_after_epoch_1, phase2, same, write_digits
from utils.config import load_config
from utils.errors import UserError

PUBLISHED = SHARED / "paper" / "tables.yaml"


def test_preact_resnet_18():
    network = PreActResNet18(10)
    assert (
        sum(p.numel() for p in network.parameters()) == 11_171_146 + 128
    )  # published count, and the stem's batch norm
    images = torch.randn(2, 3, 32, 32)
    assert network.forward_features(images).shape == (2, 512, 4, 4) and network(images[:, :, :16, :16]).shape == (2, 10)
    torch.testing.assert_close(linear_head(network)(head_input(network, images)), network(images))
    block = network.blocks[0].eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 64, 5, 5)
    assert torch.equal(block(x), x)  # the input passes by the block untouched


def test_learning_rate_in_steps(tmp_path):
    rates = [learning_rate(0.02, epoch, 300, "steps", [200, 250]) for epoch in (1, 200, 201, 250, 251)]
    assert rates == pytest.approx([0.02, 0.02, 0.002, 0.002, 0.0002])
    with pytest.raises(UserError, match="milestones: must be whole numbers, not 2, x"):
        flags = ["--cfg", "config/FFT/digits.yaml", "--schedule", "steps", "--milestones", "2,x"]
        main_baseline.main([*flags, "--output_dir", str(tmp_path)])


def test_the_yaml_files_hold_the_published_settings():
    """Against the table of the paper's settings, where it is at hand."""
    if not PUBLISHED.exists():
        pytest.skip("the table of the papers' settings is not here")
    published = yaml.safe_load(PUBLISHED.read_text())["clipcleaner"]
    networks = {"cifar10": "preact_resnet18", "cifar100": "preact_resnet18", "red_mini_imagenet": "preact_resnet18",
                "animal10n": "timm:vgg19_bn", "webvision": "timm:inception_resnet_v2", "clothing1m": "timm:resnet50.tv_in1k"}  # fmt: skip
    files = {path.stem: path for path in Path("config/CLIPCleaner").glob("*.yaml")}
    assert files.keys() == networks.keys()
    defaults = published["defaults_in_code"]
    for name, path in files.items():
        cfg, rows = load_config(["--cfg", str(path)]), published["hyperparameters_in_readme_commands"]["values"]
        row = {
            k: v
            for key, r in rows.items()
            if key.startswith(f"{name}_sym") or key in (name, f"{name}_0.4")
            for k, v in r.items()
        }
        expected = {"epochs": 300, "batch_size": 128, "beta": 1, "milestones": [200, 250], **defaults["theta"], **row}
        expected["mixup_beta"], expected["milestones"] = expected.pop("beta"), [str(m) for m in expected["milestones"]]
        assert {key: getattr(cfg, key) for key in expected} == expected, name
        assert cfg.backbone == networks[name] and cfg.clip_backbone == "ViT-B/32" and cfg.dataset == name
        sgd = {key: getattr(cfg, "schedule" if key == "name" else key) for key in ("lr", "momentum", "weight_decay")}
        assert sgd == {key: defaults["optimizer"][key] for key in sgd} and cfg.schedule == "steps"


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    folder, _, _ = write_digits(tmp_path_factory.mktemp("digits"), 0.0, every=10)
    return ["--dataset", "own", "--data_path", str(folder), "--test_fraction", "0.2", "--noise_mode", "sym", "--noise_ratio",
            "0.4", "--device", "cpu", "--prec", "fp32"]  # fmt: skip


def test_selects_and_trains(few_digits, tmp_path, monkeypatch):
    flags = [*few_digits, "--output_dir", str(tmp_path), "--clip_backbone", "tiny-clip-digits", "--batch_size", "32",
             "--epochs", "1", "--backbone", "preact_resnet18", "--resolution", "16"]  # fmt: skip
    trained, fine_tune = [], fine_tuning.fine_tune

    def noted(cfg, data, run, method, mask):
        trained.append((vars(cfg), type(method), mask))
        return ({}, None) if len(trained) > 1 else fine_tune(cfg, data, run, method, mask)  # once is enough

    monkeypatch.setattr(fine_tuning, "fine_tune", noted)
    summary = main_clipcleaner.main(flags)
    (folder,) = tmp_path.glob("*/sym-0.4/seed0")
    mask = np.load(folder / "clipcleaner/clean_mask.npz")["mask"]
    assert summary["name"] == "mixfix-clipcleaner-preact_resnet18" and 0.2 < mask.mean() < 0.9
    assert summary["mask"] == str(folder / "clipcleaner/clean_mask.npz") and summary["epochs"] == 1
    model, info = load_classifier(folder / summary["name"])
    assert info["pixels"] == 16 and model(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    # the selection does not depend on how is trained, so other settings take it as it is …
    cfg = load_config([*flags, "--lr", "0.5", "--theta_r2", "0.3", "--lora", "--n_ctx", "5"], detector="clipcleaner")
    assert main_clipcleaner.select(cfg, load_data(cfg)) == folder / "clipcleaner/clean_mask.npz"
    # … a selection with other settings has the training's tag
    with pytest.raises(
        UserError, match="theta_gmm: the run .*clipcleaner used 0.5, not 0.6. To keep it, use --tag NAME"
    ):
        main_clipcleaner.main([*flags, "--theta_gmm", "0.6"])
    tagged = main_clipcleaner.main([*flags, "--theta_gmm", "0.6", "--tag", "b"])
    assert tagged["mask"] == str(folder / "clipcleaner-b/clean_mask.npz")
    with pytest.raises(UserError, match="nowhere: not a CLIP weight file"):
        main_clipcleaner.main([*flags, "--clip_pretrained", "nowhere", "--tag", "c"])
    # … and the steps one by one come to the same
    i = flags.index("--clip_backbone")  # main_clipcleaner.py's alone
    rest = flags[:i] + flags[i + 2 :]
    again = main_baseline.main([*rest, "--lnl_methods", "MixFix", "--mask", "clipcleaner", "--tag", "again"])
    assert again["name"] == f"{summary['name']}-again"
    (cfg, method, used), _, (other, other_method, other_used) = trained
    assert np.array_equal(used, mask) and np.array_equal(other_used, mask) and other_method is method
    assert {key for key in cfg.keys() & other.keys() if cfg[key] != other[key]} == {"script", "tag"}
    # without noise, main_detect.py judges the images held out, too; its run is taken as well
    flags += ["--noise_mode", "none", "--noise_ratio", "0"]
    cfg = load_config(flags, script="main_clipcleaner", detector="clipcleaner")
    own = ["--noise_mode", "none", "--detector", "clipcleaner", "--backbone", "tiny-clip-digits"]
    found = main_detect.main([*few_digits, "--output_dir", str(tmp_path), *own, "--noise_ratio", "0"])
    path = main_clipcleaner.select(cfg, load_data(cfg))
    assert found["all_judged"] and path.parent.parent.parent.name == "none"


def test_networks_of_our_own_have_no_weights_to_load():
    for backbone in ("preact_resnet18", "timm:preact_resnet18"):
        cfg = load_config(["--backbone", backbone, "--pretrained", __file__])
        with pytest.raises(UserError, match=f"pretrained: {backbone} starts untrained"):
            build_classifier(cfg, type("Data", (), {"num_classes": 3}))


def test_moving_average_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    averaged = MovingAverage(model, 0.9, optimizer)
    weights = []
    for _ in range(3):
        model.weight.grad = torch.ones(1, 1)
        optimizer.step()
        weights.append(model.weight.item())
    expected = 0.9 * (0.9 * weights[0] + 0.1 * weights[1]) + 0.1 * weights[2]
    assert averaged.network.weight.item() == pytest.approx(expected)


def test_the_average_is_tested_saved_and_survives_a_stop(few_digits, tmp_path, monkeypatch):
    np.save(tmp_path / "mask.npy", np.ones(len(load_data(load_config(few_digits)).train.labels), dtype=bool))
    flags = [*few_digits, "--epochs", "2", "--mask", str(tmp_path / "mask.npy"), "--ema", "0.9"]
    averaged = []  # the networks whose batch-norm statistics are averaged over the processes
    with monkeypatch.context() as patch:
        patch.setattr(fine_tuning, "average_statistics", lambda network: averaged.append(id(network)))
        copy_after_epoch_1(patch, tmp_path / "cut")
        whole = main_phase2.main(phase2(tmp_path / "whole", *flags))
    assert len(averaged) == 4 and len(set(averaged)) == 2  # in two epochs: the network and its moving average
    plain = main_phase2.main(phase2(tmp_path / "plain", *flags, "--ema", "0"))
    assert main_phase2.main(phase2(tmp_path / "cut", *flags))["acc_last"] == whole["acc_last"]
    a, b, c = (checkpoint(next((tmp_path / run).glob("*/sym-0.4/seed0/*"))) for run in ("whole", "cut", "plain"))
    assert same(a["averaged"], b["averaged"]) and same(a["model"], c["model"]) and c["averaged"] is None
    assert not same(a["averaged"], a["model"]) and plain["epochs"] == 2
    exported, _ = load_classifier(next((tmp_path / "whole").glob("*/sym-0.4/seed0/*")))
    torch.testing.assert_close(exported.head.weight, a["averaged"]["head.weight"])


def test_convolutional_networks_take_other_sizes():
    cfg = load_config(["--backbone", "timm:resnet18", "--pretrained", "none", "--resolution", "48"])
    data = type("Data", (), {"num_classes": 3})
    model, pixels = build_classifier(cfg, data)
    assert pixels.size == 48 and model(torch.zeros(1, 3, 48, 48)).shape == (1, 3)
    cfg.backbone = "timm:test_vit"
    with pytest.raises(UserError, match="resolution: is 48, but test_vit takes images of"):
        build_classifier(cfg, data)
