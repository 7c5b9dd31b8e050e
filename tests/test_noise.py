import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataloader import noise
from dataloader.load import load_data
from tests.helpers import golden, write_cifar, write_folder
from utils.config import load_config
from utils.errors import UserError


def cfg(mode, ratio=0.4, seed=0, **rest):
    return SimpleNamespace(**vars(load_config([])) | {"noise_mode": mode, "noise_ratio": ratio, "seed": seed, **rest})


def features(n=5000):
    return lambda: np.random.default_rng(0).integers(0, 256, (n, 48), dtype=np.uint8)


@pytest.mark.parametrize(
    "found, message",
    [
        (lambda labels: labels[:-1], "noise_mode mine: holds 99 labels"),
        (lambda labels: labels / 2, "noise_mode mine: expected one whole number per sample, found float64"),
        (lambda labels: labels - 1, "noise_mode mine: row 1 is -1"),
    ],
)
def test_what_a_noise_of_ones_own_returns_is_checked(monkeypatch, found, message):
    def in_place(labels, ratio, num_classes, rng):
        labels[:30] = 9
        return labels

    labels = np.arange(100) % 10
    for name, function in (("in place", in_place), ("mine", lambda labels, *_: found(labels))):
        monkeypatch.setitem(noise.DRAWN, name, function)
    monkeypatch.setattr(noise, "NOISE", (*noise.NOISE, "in place", "mine"))
    assert (noise.make_noise(cfg("in place"), labels, 10) != labels).sum() == 27  # the true labels are as they were
    with pytest.raises(UserError, match=message):
        noise.make_noise(cfg("mine"), labels, 10)


@pytest.mark.parametrize("mode", noise.DRAWN)
@pytest.mark.parametrize("rng", ["numpy", "official"])
def test_noise_is_pure_and_repeatable(mode, rng):
    if rng == "official" and mode not in noise.OFFICIAL:
        pytest.skip("not in the official code")
    labels = np.arange(5000) % 10
    states = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()

    def make(ratio=0.4, seed=3):
        return noise.make_noise(cfg(mode, ratio, seed, dataset="cifar10", noise_rng=rng), labels, 10, False, features())

    a = make()
    assert np.array_equal(a, make()) and np.array_equal(labels, np.arange(5000) % 10) and a.dtype == np.int64
    assert np.array_equal(np.random.get_state()[1], states[0]) and random.getstate() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])  # no global generator is touched
    assert (a != labels).any() and a.min() >= 0 and a.max() <= 9
    if (mode, rng) != ("idn", "official"):  # which knows one seed only
        assert not np.array_equal(a, make(seed=4))
    if mode != "idn":
        assert np.array_equal(make(ratio=0.0), labels)


def test_rates_and_targets():
    labels = np.arange(50000) % 10
    rng = np.random.default_rng(0)
    noisy = noise.sym(labels, 0.4, 10, rng)
    assert np.mean(noisy != labels) == pytest.approx(0.4 * 0.9, abs=0.01)  # a draw may hit the true class
    counts = np.bincount(noisy[(labels == 3) & (noisy != labels)], minlength=10)
    assert counts[3] == 0 and counts[np.arange(10) != 3].min() > 0.8 * counts.sum() / 9
    noisy = noise.asym(labels, 0.4, 10, rng)
    assert (noisy != labels).sum() == 20000 and set(((noisy - labels) % 10).tolist()) == {0, 1}
    noisy = noise.structured(labels, 0.4, 10, rng)
    changed = {k for k in range(10) if (noisy[labels == k] != k).any()}
    assert len(changed) == 5 and np.mean(noisy != labels) == pytest.approx(0.4 * 0.5 * 0.9, abs=0.01)
    x = rng.integers(0, 256, (20000, 48), dtype=np.uint8)
    noisy = noise.idn(labels[:20000], 0.3, 10, rng, x)
    assert np.mean(noisy != labels[:20000]) == pytest.approx(0.3, abs=0.015)


def test_idn_depends_on_the_instance():
    x = np.repeat(np.random.default_rng(1).integers(0, 256, (4, 48), dtype=np.uint8), 3000, axis=0)  # four images
    labels = np.zeros(12000, dtype=np.int64)
    noisy = noise.idn(labels, 0.4, 10, np.random.default_rng(0), x).reshape(4, 3000)
    targets = {int(np.bincount(row[row > 0], minlength=10).argmax()) for row in noisy}
    assert len(targets) > 1
    for row in noisy:  # softmax of raw pixels: one wrong class takes nearly all
        assert np.bincount(row[row > 0]).max() > 0.9 * (row > 0).sum()


def test_conventional_confusions_of_cifar():
    names = {
        10: open("config/classnames/cifar10.txt").read().split("\n"),
        100: open("config/classnames/cifar100.txt").read().split("\n"),
    }

    def moves(K):
        return {names[K][i]: names[K][j] for i, j in enumerate(noise.similar_class(K)) if i != j}

    assert moves(10) == {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
    ring = moves(100)
    assert len(ring) == 100 and sorted(ring) == sorted(ring.values())
    for first, others in (
        ("beaver", "dolphin otter seal whale"),
        ("maple_tree", "oak_tree palm_tree pine_tree willow_tree"),
        ("baby", "boy girl man woman"),
        ("orchid", "poppy rose sunflower tulip"),
    ):
        seen, name = [], ring[first]
        while name != first:
            seen.append(name)
            name = ring[name]
        assert seen == others.split()
    assert (np.bincount(noise.CIFAR100_SUPERCLASS) == 5).all()


# --- the official stream


@pytest.mark.parametrize("mode", ["sym", "asym", "str"])
@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
def test_golden_class_noise(mode, ratio):
    g, meta = golden("noise")
    labels, rng = np.arange(50000) % 100, random.Random(meta["seed"])
    noisy = noise.official_class_noise(mode, labels, ratio, 100, rng)
    np.testing.assert_array_equal(noisy, g[f"{mode}_{ratio}"])
    assert rng.random() == meta["facts"][f"{mode}_{ratio}"]["next_random"]
    assert (noisy != labels).sum() == meta["facts"][f"{mode}_{ratio}"]["changed"]


@pytest.mark.parametrize("mode", ["sym", "asym", "str"])
def test_golden_folder_noise(mode):
    g, meta = golden("noise")
    labels = g["folder_labels"].astype(np.int64)
    noisy = noise.official_class_noise(mode, labels, 0.4, 20, random.Random(meta["seed"]), folder=True)
    np.testing.assert_array_equal(noisy, g[f"folder_{mode}_0.4"])


def test_official_noise_of_cub():
    """The official loader of CUB draws new labels right after the order of the samples; it shuffles no classes."""
    labels, rng = np.arange(600) % 200, random.Random(3)
    order = list(range(600))
    rng.shuffle(order)
    expected = labels.copy()
    for sample in sorted(order[:240]):
        expected[sample] = rng.randint(0, 199)
    cfg = SimpleNamespace(
        dataset="cub-200-2011", data_path="nowhere", noise_mode="sym", noise_ratio=0.4, noise_rng="official", seed=3
    )
    np.testing.assert_array_equal(noise.make_noise(cfg, labels, 200, is_folder=True), expected)
    cfg.noise_mode = "asym"
    with pytest.raises(UserError, match="the official code has no asym for CUB"):
        noise.make_noise(cfg, labels, 200, is_folder=True)


def test_official_noise_of_files_in_the_order_of_the_disk(capsys):
    cfg = SimpleNamespace(
        dataset="tiny_imagenet", data_path="nowhere", noise_mode="sym", noise_ratio=0.4, noise_rng="official", seed=3
    )
    noise.make_noise(cfg, np.arange(600) % 200, 200, is_folder=True)
    assert "in the order of the disk" in capsys.readouterr().out


@pytest.mark.parametrize("ratio", [0.2, 0.3, 0.4])
@pytest.mark.parametrize("case", ["idn", "idn_soft"])
def test_golden_idn(ratio, case):
    g, meta = golden("noise")
    labels, x = g["idn_labels"].astype(np.int64), g["idn_pixels"].astype(np.float32)
    x = x / np.float32(2560) if case == "idn_soft" else x
    rng = np.random.RandomState(meta["idn"]["seed"])
    flip_rate = noise._truncated_rates(len(labels), ratio, rng)
    np.testing.assert_allclose(flip_rate, g[f"idn_flip_rate_{ratio}"], rtol=1e-14)
    P = noise.flip_probabilities(labels, flip_rate, 10, x, lambda k: rng.randn(192, 10).astype(np.float32))
    np.testing.assert_allclose(P, g[f"{case}_P_{ratio}"], atol=2e-3 if case == "idn" else 1e-5)
    np.testing.assert_array_equal(noise.official_idn(labels, ratio, 10, x), g[f"{case}_{ratio}"])


def test_official_cache_file(tmp_path):
    labels = write_cifar(tmp_path, "cifar100")
    (tmp_path / "noise_file").mkdir()
    cached = (labels + 1) % 100
    (tmp_path / "noise_file" / "cifar100_sym_0.2").write_text(str(cached.tolist()))
    flags = ["--dataset", "cifar100", "--data_path", str(tmp_path), "--noise_mode", "sym", "--noise_ratio", "0.2"]
    data = load_data(load_config([*flags, "--noise_rng", "official"]))
    assert np.array_equal(data.train.labels, cached) and data.noise_name == "sym-0.2-official"
    assert not np.array_equal(load_data(load_config(flags)).train.labels, cached)
    (tmp_path / "noise_file" / "cifar100_sym_0.2").write_text(str(cached.tolist()[:-1]))
    with pytest.raises(UserError, match="cifar100_sym_0.2: holds 59 labels, the training set has 60 images"):
        load_data(load_config([*flags, "--noise_rng", "official"]))


# --- from files


@pytest.mark.parametrize(
    "name, content", [("a.npy", None), ("cifar100_sym_0.2", "[0, 2, 1]"), ("a.txt", "0\r\n2\r\n1\r\n")]
)
def test_labels_from_a_file(tmp_path, name, content):
    path = tmp_path / name
    np.save(path, np.array([0, 2, 1])) if content is None else path.write_text(content)
    mode = cfg("file", noise_file=str(path))
    assert np.array_equal(noise.make_noise(mode, np.array([0, 1, 2]), 3), [0, 2, 1])
    with pytest.raises(UserError, match="holds 3 labels, the training set has 4 images"):
        noise.make_noise(mode, np.zeros(4, dtype=np.int64), 3)
    with pytest.raises(UserError, match="row 2 is 2, expected a label from 0 to 1"):
        noise.make_noise(mode, np.array([0, 1, 1]), 2)


@pytest.mark.parametrize("content", ["0\nx\n", "[0, 1.5]", "[[0]]", "{}", ""])
def test_bad_label_file(tmp_path, content):
    path = tmp_path / "labels"
    path.write_text(content)
    with pytest.raises(UserError, match=str(path)):
        noise.make_noise(cfg("file", noise_file=str(path)), np.array([0, 1]), 2)


def test_seeds_of_one_transition_matrix_have_one_name(tmp_path):
    names = []
    for seed, stay in ((0, 0.6), (1, 0.6), (0, 0.8)):
        np.save(tmp_path / "T.npy", stay * np.eye(10) + (1 - stay) / 10)
        flags = ["--noise_mode", "transition", "--noise_file", str(tmp_path / "T.npy"), "--seed", str(seed)]
        names.append(load_data(load_config(["--cfg", "config/PEFT/digits.yaml", *flags])).noise_name)
    assert names[0] == names[1] != names[2]


def test_transition_matrix(tmp_path):
    labels, path = np.arange(30000) % 3, tmp_path / "T.csv"
    path.write_text("1,0,0\n0.3,0.7,0\n0.2,0.2,0.6\n")
    noisy = noise.make_noise(cfg("transition", noise_file=str(path)), labels, 3)
    counts = np.stack([np.bincount(noisy[labels == k], minlength=3) for k in range(3)]) / 10000
    np.testing.assert_allclose(counts, [[1, 0, 0], [0.3, 0.7, 0], [0.2, 0.2, 0.6]], atol=0.015)
    for content, message in (
        ("1,0,0\n0.3,0.6,0\n0,0,1\n", "row 2 sums to 0.9, expected probabilities that sum to 1"),
        ("1,0\n0,1\n", "expected a 3x3 matrix, found shape"),
        ("a,b\n", "not a matrix"),
        ("1,0,0\n-1,2,0\n0,0,1\n", "row 2 sums to 1"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=f"T.csv: .*{message}|T.csv: {message}"):
            noise.make_noise(cfg("transition", noise_file=str(path)), labels, 3)


def test_human_labels(tmp_path):
    labels = write_cifar(tmp_path, "cifar10")
    entries = {
        k: (labels + i) % 10
        for i, k in enumerate(
            ["clean_label", "worse_label", "aggre_label", "random_label1", "random_label2", "random_label3"]
        )
    }
    torch.save(entries, tmp_path / "CIFAR-10_human.pt")
    flags = ["--dataset", "cifar10", "--data_path", str(tmp_path), "--noise_mode"]
    for i, mode in enumerate(["worse", "aggre", "random1", "random2", "random3"]):
        data = load_data(load_config([*flags, mode]))
        assert np.array_equal(data.train.labels, (labels + i + 1) % 10) and data.noise_name == mode
    assert np.array_equal(load_data(load_config([*flags, "real"])).train.labels, (labels + 1) % 10)
    torch.save(entries | {"clean_label": labels[::-1].copy()}, tmp_path / "CIFAR-10_human.pt")
    with pytest.raises(UserError, match="clean_label differs from the labels of this training set"):
        load_data(load_config([*flags, "worse"]))
    (tmp_path / "CIFAR-10_human.pt").unlink()
    with pytest.raises(UserError, match="worse needs the human labels of CIFAR-10N at .*CIFAR-10_human.pt"):
        load_data(load_config([*flags, "worse"]))
    write_cifar(tmp_path / "c", "cifar100")
    with pytest.raises(UserError, match="aggre labels exist for CIFAR-10 only"):
        load_data(load_config(["--dataset", "cifar100", "--data_path", str(tmp_path / "c"), "--noise_mode", "aggre"]))


def test_idn_on_files_of_any_size(tmp_path):
    write_folder(tmp_path / "data", {"a": 20, "b": 20, "c": 20})
    flags = [
        "--dataset",
        "own",
        "--data_path",
        str(tmp_path / "data"),
        "--output_dir",
        str(tmp_path),
        "--noise_mode",
        "idn",
        "--noise_ratio",
        "0.4",
    ]
    for rng in ("numpy", "official"):
        data = load_data(load_config([*flags, "--noise_rng", rng]))
        assert 0.1 < np.mean(data.train.labels != data.true_labels) < 0.7


def test_a_ratio_alone_makes_no_noise_and_says_so(capsys):
    labels = np.arange(10)
    assert noise.make_noise(cfg("none", 0.4), labels, 10) is labels
    assert "noise_ratio: 0.4 makes no noise, since noise_mode is none" in capsys.readouterr().out
    noise.make_noise(cfg("none", 0.4, dataset="webvision"), labels, 10)  # has its own
    noise.make_noise(cfg("none", 0.0), labels, 10)
    assert not capsys.readouterr().out


def test_unknown_noise():
    with pytest.raises(UserError, match="noise_mode: unknown name 'symm'.*Did you mean sym"):
        noise.make_noise(cfg("symm"), np.array([0, 1]), 2)


def test_ten_million_labels_are_quick():
    labels = np.random.default_rng(0).integers(1000, size=10_000_000)
    start = time.process_time()
    noise.sym(labels, 0.4, 1000, np.random.default_rng(0))
    assert time.process_time() - start < 5


def test_published_instance_dependent_labels(tmp_path):
    """CIFAR-10's dependent<ratio>.csv, found in noise_file/; its column of true labels must be the training set's."""
    labels = write_cifar(tmp_path / "c", "cifar10")
    flags = ["--dataset", "cifar10", "--data_path", str(tmp_path / "c"), "--noise_mode", "file"]
    flags += ["--noise_file", "dependent0.4.csv"]
    file = tmp_path / "c" / "noise_file" / "dependent0.4.csv"
    file.parent.mkdir()
    noisy = np.where(np.arange(60) % 3 == 0, (labels + 2) % 10, labels)
    file.write_text("label,label_noisy\n" + "".join(f"{a},{b}\n" for a, b in zip(labels, noisy)))
    data = load_data(load_config(flags))
    assert np.array_equal(data.train.labels, noisy) and np.array_equal(data.true_labels, labels)
    file.write_text("label,label_noisy\n" + "".join(f"{a},{b}\n" for a, b in zip(labels[::-1], noisy)))
    with pytest.raises(
        UserError, match="dependent0.4.csv: its column .label. differs from the labels of this training set"
    ):
        load_data(load_config(flags))
    file.write_text("label,label_noisy\n3\n")
    with pytest.raises(UserError, match="dependent0.4.csv: not a list of labels"):
        load_data(load_config(flags))
