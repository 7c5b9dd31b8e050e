"""Tables of experiments: every figure of the paper has a cell, and every cell is a command that its script takes."""

import re
from pathlib import Path

import pytest
import yaml

import reproduce
from methods.baselines import METHODS
from report.comparison import compare
from report.experiments import check_apart, make_cells, make_step, title_of
from tests.helpers import SHARED
from utils.config import BACKBONES, load_config
from utils.errors import UserError

PAPER = SHARED / "paper" / "tables.yaml"
FIGURES = yaml.safe_load(Path("config/paper.yaml").read_text())
TABLES = yaml.safe_load(Path("config/tables.yaml").read_text())


def args_of(*flags):
    return reproduce.read_flags([*flags])


@pytest.mark.parametrize("name", [f"table{i}" for i in range(1, 12)])
def test_every_figure_of_the_paper_has_a_cell(name):
    """Reads every block of the paper's file: each figure is beside some cell, and each cell of a table has a figure."""
    table = TABLES["tables"][name]
    cells = make_cells(table, TABLES, {}, args_of())
    metrics = table.get("metrics") or table["settings"]
    rows = compare({cell.place: ["not run"] for cell in cells}, metrics, FIGURES[name], table["paper"])
    assert all(row["paper"] is not None for row in rows)

    def leaves(block):
        return sum(map(leaves, block.values())) if isinstance(block, dict) else 1

    apart = sum(len({"timm", "momentum_in_code"} & set(b)) for b in FIGURES[name].values()) if name == "table11" else 0
    assert (
        len({(row["dataset"], row["method"], row["column"], row["metric"]) for row in rows})
        == leaves(FIGURES[name]) - apart
    )


# of the paper's file: settings, which the tests below and test_clipcleaner_training.py compare with the YAML files …
SETTINGS = "implementation_in_paper configuration_in_code hyperparameters_in_readme_commands defaults_in_code".split()
# … words on the code and on other papers, and curves without printed values
WORDS = "paper code_facts figures oddities_to_expect missing selection_in_code fm_srm_port ido dkaf noisegpt".split()


def test_paper_figures_are_the_verified_ones():
    """Reads every block of the paper's file: it is one of ours, of known settings or words, or was read second hand."""
    if not PAPER.is_file():
        pytest.skip("the paper's file is not here")
    content = yaml.safe_load(PAPER.read_text())
    tables = {name.split("_")[0]: block for name, block in content["deft"].items() if name.startswith("table")}
    assert {name: block["values"] for name, block in tables.items()} == FIGURES
    assert all(block["verified"] is True for block in tables.values())
    for paper in content.keys() - {"about"}:
        for name, block in content[paper].items():
            second_hand = isinstance(block, dict) and block.get("verified") is False
            assert second_hand != (name in [*SETTINGS, *WORDS] or name.split("_")[0] in tables), name


def test_the_yaml_files_hold_the_published_settings():
    if not PAPER.is_file():
        pytest.skip("the paper's file is not here")
    published = yaml.safe_load(PAPER.read_text())["deft"]
    code, paper = published["configuration_in_code"], published["implementation_in_paper"]
    one, two, both = code["phase1_peft"], code["phase2_fft"], code["common"]
    assert (one["lr"], one["vpt_len"], one["n_ctx"], two["lr"]) == (
        paper["phase1"]["lr"],
        paper["visual_prompt_length"],
        paper["textual_prompt_length"],
        paper["phase2"]["lr"],
    )
    for name, warmup in code["phase1_warmup"].items():
        file = {"cifar100n": "cifar100N"}.get(name, name)
        cfg = load_config(["--cfg", f"config/PEFT/{file}.yaml"])
        shared = {key: both[key] for key in ("epochs", "batch_size", "weight_decay", "momentum", "seed")}
        expected = shared | {"warmup": warmup} | {key: one[key] for key in ("lr", "vpt_len", "n_ctx")}
        expected |= {
            "backbone": paper["clip_backbone"],
            "vpt_deep": one["vpt"] == "deep",
            "lora_dim": 8,
            "adapter_dim": 8,
        }
        assert {key: getattr(cfg, key) for key in expected} == expected, file
        tuning = load_config(["--cfg", f"config/FFT/{file}.yaml"])
        expected = shared | {"lr": two["lr"], "finetune": True, "backbone": paper["clip_backbone"]}
        expected["warmup"] = code["phase2_config_warmup_used_by_gmm_and_small_loss_baselines"][name]
        if name in code["noise_ratio_field"]:
            expected["noise_ratio"] = code["noise_ratio_field"][name]
        assert {key: getattr(tuning, key) for key in expected} == expected, file


def quoted(path):
    """The figures with two decimals that the header of a YAML file gives as the paper's, in order."""
    header = " ".join(line[1:].strip() for line in Path(path).read_text().splitlines() if line.startswith("#"))
    return [float(text) for text in re.findall(r"\b\d+\.\d\d\b", header[header.index("Paper (") :])]


def test_headers_of_the_yaml_files_quote_the_same_figures():
    for name in ("cifar100", "tiny_imagenet", "stanford_cars", "cub200"):
        masks, accuracies = FIGURES["table1"][name]["deft"], FIGURES["table2"][name]
        columns = list(masks) if name != "cifar100" else [column for column in masks if column.startswith("sym")]
        assert quoted(f"config/PEFT/{name}.yaml") == [x for cell in masks.values() for x in cell.values()]
        expected = [x for method in ("deft", "ce") for c in columns for x in accuracies[method][c].values()]
        assert quoted(f"config/FFT/{name}.yaml") == expected
    for name in ("cifar100N", "clothing1m", "webvision"):
        figures = FIGURES["table3"][name.lower()]
        assert quoted(f"config/FFT/{name}.yaml") == [figures[method] for method in ("deft", "ce", "elr", "sce", "gmm")]
    assert quoted("config/PEFT/cifar100N.yaml") == list(FIGURES["table8"]["deft"].values())


def test_table_11_is_ours():
    rows = reproduce.main(["--table", "11"])["table11"]
    assert all(str(row["ours"]).lower() == str(row["paper"]).lower() for row in rows) and len(rows) == 12
    names = {"vit_b16": "vit", "resnet50": "resnet", "convnext_t": "convnext", "mae_vit_b": "mae"}
    for column, figures in FIGURES["table11"].items():
        assert BACKBONES[names[column]][0] == figures["timm"]


@pytest.mark.parametrize("profile", ["", *TABLES["profiles"]])
def test_every_command_is_one_that_its_script_takes(profile):
    known = TABLES["profiles"].get(profile, {})
    cells = [cell for table in TABLES["tables"].values() for cell in make_cells(table, TABLES, known, args_of())]
    steps = {step for cell in cells if cell.step for step in cell.step.chain()}
    of_a_folder = "noise_mode noise_ratio noise_file image_noise image_noise_on seed tag lnl_methods detector adaptation mask backbone noisy_samples phase2_loss"
    folders, taken = {}, set()
    for step in steps:
        flags = dict(step.flags)
        if (step.script, flags["cfg"], flags.get("lnl_methods"), *flags) not in taken:
            cfg = load_config(step.command()[1:])
            if "lnl_methods" in flags:
                METHODS[cfg.lnl_methods](cfg, 8, 2)  # which refuses a warm-up of all epochs
            taken.add((step.script, flags["cfg"], flags.get("lnl_methods"), *flags))
        # two commands of one script in one folder would refuse each other
        place = (step.script, Path(flags["cfg"]).name, *(flags.get(key) for key in of_a_folder.split()))
        assert folders.setdefault(place, step.flags) == step.flags, step


def test_profile_maps_data_and_backbones():
    digits = TABLES["profiles"]["digits"]
    cells = make_cells(TABLES["tables"]["table1"], TABLES, digits, args_of("--noise", "sym_0.2"))
    assert [cell.place for cell in cells] == [("digits", m, "sym_0.2") for m in ("label_match", "small_loss", "deft")]
    assert not make_cells(TABLES["tables"]["table3"], TABLES, digits, args_of())
    titles = (title_of(TABLES["tables"][table], digits) for table in ("table2", "table5"))
    assert [title[-18:] for title in titles] == ["the profile's CLIP"] * 2
    # the embedded CLIP stands for ViT-B/32 as well, so that the two tables share their runs
    fifth, first = (make_cells(TABLES["tables"][t], TABLES, digits, args_of()) for t in ("table5", "table1"))
    assert [cell.step for cell in fifth] == [cell.step for cell in first] and fifth[0].step
    by_backbone = TABLES["tables"]["table4"] | {"datasets": ["cifar100"]}
    (cell, *_) = make_cells(by_backbone, TABLES, digits, args_of())
    assert cell.step is None and "nothing for the backbone resnet" in cell.reason
    selection = make_cells(TABLES["tables"]["clipcleaner_selection"], TABLES, digits, args_of())
    assert {c.place[2]: c.reason for c in selection if not c.step} == {
        "asym_similar_0.4": digits["lacks"]["asym_similar_0.4"]
    }
    # of two data sets of a table that one stands for, each run counts once
    both = {"datasets": {"cifar100": "digits", "cub200": "digits"}, "backbones": []}
    assert make_cells(TABLES["tables"]["table1"], TABLES, both, args_of()) == first


def test_profile_of_photographs():
    """Its data sets are those of the paper that the embedded CLIP knows, and both phases see the same data and CLIP."""
    photos = TABLES["profiles"]["photos"]
    cells = make_cells(TABLES["tables"]["table2"], TABLES, photos, args_of("--noise", "sym_0.2"))
    assert {cell.place[0] for cell in cells} == {"photos_cifar100", "photos_tiny_imagenet"}
    first, second = next(cell.step for cell in cells if cell.place[1] == "deft").chain()
    assert [step.script for step in (first, second)] == ["main_phase1", "main_phase2"]
    for key, value in (("dataset", "cifar100"), ("backbone", "tiny-clip-photos"), ("data_path", "./data/cifar-100")):
        assert first.settings[key] == second.settings[key] == value
    # human labels of CIFAR-10N stand for those of CIFAR-100N, by the scripts for real-world noise, in folders of their own
    third, every = (make_cells(TABLES["tables"][t], TABLES, photos, args_of()) for t in ("table3", "methods"))
    assert {cell.place[0] for cell in third} == {"photos_cifar10n"} and len(third) == 9
    steps = [step for cell in third for step in cell.step.chain()]
    assert {step.script for step in steps} == {"main_real_phase1", "main_real_phase2", "main_real_baseline"}
    assert {dict(step.flags)["tag"] for step in steps} == {"real"}
    assert {step.settings["noise_mode"] for step in steps} == {"worse"}
    assert dict(third[-1].step.flags)["mask"] == "deft-real"
    check_apart([cell.step for cell in third + every])


def test_phase_2_uses_the_mask_of_the_command_before_it():
    digits, noise = {"yaml": "digits"}, {"noise_mode": "sym", "noise_ratio": 0.4, "seed": 0}

    def mask(detector, last="main_phase2 FFT", **flags):
        before = make_step(detector, digits, noise | flags)
        return dict(make_step(last, digits, noise | flags, before).flags).get("mask")

    assert mask("main_phase1 PEFT") is None  # the default, deft
    assert mask("main_phase1 PEFT --tag x") == "deft-x"
    assert mask("main_detect PEFT --detector knn") == "knn" and mask("main_detect PEFT") == "label-match"
    assert mask("main_detect PEFT --detector knn --tag x", epochs=2) == "knn-x-epochs-2"
    assert mask("main_detect PEFT --detector knn", "main_baseline FFT --lnl_methods MixFix") == "knn"
    assert mask("main_detect PEFT --detector knn", "main_baseline FFT --lnl_methods CE") is None
    steps = make_step("main_detect PEFT --detector knn --tag x", digits | {"real": True}, noise)
    steps = make_step("main_baseline FFT --lnl_methods MixFix", digits | {"real": True}, noise, steps)
    assert steps.script == "main_real_baseline" and dict(steps.flags)["mask"] == "knn-x"
    gmm = "main_baseline FFT --lnl_methods GMM"
    assert mask(gmm, "main_phase2 FFT --mask gmm-tiny-clip-digits") == "gmm-tiny-clip-digits"
    assert (
        mask("main_detect PEFT --detector knn", "main_baseline FFT", lnl_methods="MixFix") == "knn-lnl_methods-MixFix"
    )
    with pytest.raises(UserError, match="after main_baseline, the next command needs --mask"):
        mask(gmm)


def test_flags_of_one_end_of_a_method():
    table = TABLES["tables"]["table2"] | {"datasets": ["digits"], "columns": {"short": {"n_ctx": 4, "seed": 0}}}
    for end, with_flag in (("first", [True, False]), ("last", [False, True])):
        cells = make_cells(table | {"flags_to": end}, TABLES, {}, args_of())
        steps = next(cell.step for cell in cells if cell.place[1] == "deft").chain()
        assert ["n_ctx" in dict(step.flags) for step in steps] == with_flag
        assert dict(steps[1].flags).get("mask") == ("deft-n_ctx-4" if end == "first" else None)
