"""A person's own images in a table: columns, true labels, errors; the class names that CLIP reads."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

import main_detect
from dataloader.load import load_data
from dataloader.rows import shortened, sorted_labels, tidy_names
from methods.decisions import UNDECIDED
from report.sections import against_truth
from report.suspects import read_run
from tests.helpers import LABEL_MATCH, NO_TEST, SIX, SUMMARY, load_own, write_cifar, write_table
from utils.config import load_config
from utils.errors import UserError


def test_true_labels_count_where_all_are_given(tmp_path):
    """One is missing: nothing is known of any image, on whichever side of the split it comes to lie."""
    rows = "path,label,true_label\na.png,x,x\nb.png,x,y\nc.png,x,x\nd.png,y,\ne.png,y,y\nf.png,y,x\n"
    path = write_table(tmp_path, rows)
    for seed in range(4):
        data = load_own(path, "--test_fraction", "0.34", "--seed", str(seed))
        assert len(data.test.images) == 2 and data.train.true_labels is data.test.true_labels is None
        assert len(data.whole().train.labels) == 6
    path.write_text(rows.replace("y,\n", "y,y\n"))
    whole = load_own(path, "--test_fraction", "0.34").whole()
    assert whole.true_labels.tolist() == [0, 1, 0, 1, 1, 0]


def test_noise_on_labels_that_may_be_wrong_themselves_is_said(tmp_path):
    path = write_table(tmp_path, SIX)
    data = load_own(path, *NO_TEST, "--noise_mode", "sym", "--noise_ratio", "0.5")
    assert data.facts()["truth"] == "labels on disk" and data.true_labels.tolist() == [0, 0, 0, 1, 1, 1]
    zeros = {"p_clean": np.linspace(0, 1, 6), "predicted": np.zeros(6, dtype=np.int64), "confidence": np.zeros(6)}
    zeros |= {"labels": data.train.labels, "mask": np.arange(6) > 2, "by_detector": np.arange(6) > 2}
    zeros |= {"decision": np.full(6, UNDECIDED), "new_labels": np.full(6, -1), "there": np.full(6, True)}
    assert "they may be wrong themselves" in against_truth(data, zeros, 0.9)[2]
    flags = ["--data_path", str(path), "--output_dir", str(tmp_path / "runs"), "--backbone", "tiny-clip-digits"]
    main_detect.main([*LABEL_MATCH, *flags, *NO_TEST, "--noise_mode", "sym", "--noise_ratio", "0.5", "--device", "cpu"])
    (run,) = (found.parent for found in tmp_path.rglob("summary.json"))
    _, arrays, judged, _ = read_run(run)
    assert "they may be wrong themselves" in against_truth(judged, arrays, 0.9)[2]
    given = path.with_name("given.csv")
    given.write_text(SIX.replace("label\n", "label,true_label\n").replace(",x\n", ",x,x\n").replace(",y\n", ",y,y\n"))
    data = load_own(given, *NO_TEST, "--noise_mode", "sym", "--noise_ratio", "0.5")
    assert (
        "truth" not in data.facts()
        and "The true labels of these images are known" in against_truth(data, zeros, 0.9)[2]
    )


@pytest.mark.parametrize(
    "text, name",
    [
        (SIX, "labels.csv"),
        (SIX.replace("\n", "\r\n"), "labels.csv"),
        (b"\xef\xbb\xbf" + SIX.encode(), "labels.csv"),
        (SIX.replace("path,label", "Image Path,Class Name"), "labels.csv"),
        (SIX.replace(",", ";"), "labels.csv"),
        (SIX.replace(",", "\t"), "labels.tsv"),
        (SIX.replace("x", '"x"') + "\n\n", "labels.csv"),
        (
            "note,path,label\n"
            + SIX.split("\n", 1)[1]
            .replace("a.png", '"two, lines\nand ""quotes""",a.png')
            .replace("\nb", "\n,b")
            .replace("\nc", "\n,c")
            .replace("\nd", "\n,d")
            .replace("\ne", "\n,e")
            .replace("\nf", "\n,f"),
            "labels.csv",
        ),
        (
            "\n".join(
                json.dumps({"path": f"{p}.png", "label": k, "id": i})
                for i, (p, k) in enumerate(zip("abcdef", "xxxyyy"))
            ),
            "labels.jsonl",
        ),
        (
            "\r\n".join(
                f'{{"path": "{p}.png", "label": "{k}", "id": {i}, "note": "two\u2028lines\x85or three"}}'
                for i, (p, k) in enumerate(zip("abcdef", "xxxyyy"))
            ),
            "labels.jsonl",
        ),
    ],
)
def test_tables(tmp_path, text, name):
    path = write_table(tmp_path, text, name)
    data = load_own(path, *NO_TEST)
    assert data.train.images == [str(tmp_path / f"{c}.png") for c in "abcdef"]
    assert data.label_names == ["x", "y"] and data.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and data.test is None
    assert data.ids == (list("012345") if name.endswith("jsonl") else None)


def test_all_columns(tmp_path):
    text = "k;f;given;part;truth\n" + "".join(
        f"n{i};{tmp_path}/{c}.png;{g};{s};{t}\n"
        for i, (c, g, s, t) in enumerate(
            zip(
                "abcdef",
                ["007", "7", "007", "7", "7", "7"],
                ["train", "", "Training", "train", "test", "test"],
                ["007", "007", "7", "7", "7", "007"],
            )
        )
    )
    path = write_table(tmp_path / "elsewhere", text)
    write_table(tmp_path, "")
    data = load_own(
        path,
        "--path_column",
        "f",
        "--label_column",
        "given",
        "--split_column",
        "part",
        "--id_column",
        "k",
        "--true_label_column",
        "truth",
    )
    assert data.label_names == ["007", "7"] and data.train.labels.tolist() == [0, 1, 0, 1]  # labels stay text
    assert data.ids == ["n0", "n1", "n2", "n3"] and data.true_labels.tolist() == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [1, 1] and data.tests["test"].labels.tolist() == [1, 0]  # tested by the truth
    no_truth = write_table(
        tmp_path, SIX.replace("path,label", "path,label,true_label").replace("x\n", "x,x\n").replace("y\n", "y,\n")
    )
    assert load_own(no_truth, *NO_TEST).true_labels is None  # known for some only


@pytest.mark.parametrize(
    "text, flags, message",
    [
        (
            SIX,
            ["--label_column", "lable"],
            "label_column: .*csv has no column 'lable', only path, label. Did you mean label",
        ),
        (
            SIX.replace("label", "lbel"),
            [],
            "none of its columns path, lbel is called label; name the columns with --path_column",
        ),
        (SIX.replace("b.png,x", "b.png,"), [], "labels.csv: line 3 has nothing in column 'label'\\."),
        (SIX.replace(",x", ","), [], r"labels.csv: line 2 has nothing in column 'label' \(in all 3: lines 2, 3, 4\)"),
        (SIX.replace("b.png,x", ",x"), [], "labels.csv: line 3 has nothing in column 'path'"),
        (SIX.replace("b.png,x", "b.png,x,z"), [], "labels.csv: line 3 has 3 fields, the first line has 2"),
        (
            SIX.replace("label", "id"),
            ["--label_column", "path", "--id_column", "id"],
            "line 3 has the id 'x' of line 2; ids must differ",
        ),
        (
            SIX.replace("label", "split"),
            ["--label_column", "path", "--split_column", "split"],
            "line 2 has the split 'x' in column 'split', expected train, test or val",
        ),
        (
            SIX.replace("label\n", "label,split\n").replace(",x\n", ",x,train\n").replace(",y\n", ",y,tset\n"),
            [],
            "line 5 has the split 'tset' in column 'split', expected train, test or val. Did you mean test",
        ),
        (
            SIX.replace("label\n", "label,split\n").replace(",x\n", ",x,trn\n").replace(",y\n", ",y,tst\n"),
            [],
            "line 2 has the split 'trn' in column 'split', expected train, test or val",
        ),
        (SIX.replace("e.png,y", 'e.png,"y'), [], "labels.csv: line 6 cannot be read"),
        (SIX.encode("utf-16"), [], "labels.csv: not a UTF-8 text file"),
        ("", [], "labels.csv: holds no row"),
        ("path,label\n", [], "labels.csv: holds no row"),
        ("path,path\n1,2\n", [], "two columns have the same name"),
    ],
)
def test_bad_tables(tmp_path, text, flags, message):
    path = write_table(tmp_path, text)
    with pytest.raises(UserError, match=message):
        load_own(path, *flags)


def test_a_column_that_is_only_called_as_a_split_or_an_id(tmp_path, capsys):
    """It is not used, which is said; where some of its values are splits, the others are mistakes."""
    rows = [line + ",north,7" if i else line + ",subset,image_id" for i, line in enumerate(SIX.split())]
    data = load_own(write_table(tmp_path, "\n".join(rows)), *NO_TEST)
    assert len(data.train.labels) == 6 and data.ids is None
    printed = capsys.readouterr().out
    assert "column 'subset' is not used as the split: it holds north, not train, test or val" in printed
    assert "column 'image_id' is not used as the id: 6 rows have '7'" in printed


def test_a_column_of_splits_with_another_name(tmp_path, capsys):
    """It is named; used, the test images are the same whatever happens to the training images."""
    lines = SIX.split()
    rows = [f"{line},{'test' if i % 3 == 2 else ''}" if i else f"{line},usage" for i, line in enumerate(lines)]
    table = write_table(tmp_path, "\n".join(rows))
    load_own(table, *NO_TEST)
    warning = "column 'usage' holds splits (nothing 4, test 2) and is not used; --split_column usage uses it"
    assert warning in capsys.readouterr().out
    before = load_own(table, "--split_column", "usage").identity
    assert warning not in capsys.readouterr().out
    after = load_own(write_table(tmp_path, "\n".join(rows[:1] + rows[2:])), "--split_column", "usage").identity
    assert before["images"] != after["images"] and before["test images"] == after["test images"]


def test_what_excel_and_browsers_write(tmp_path, capsys):
    """Excel's first line that names the separator, rows that repeat an image, and addresses instead of files."""
    text = "sep=;\r\n" + (SIX + "a.png,x\n./b.png,y\n").replace(",", ";")
    data = load_own(write_table(tmp_path, text), *NO_TEST)
    assert len(data.train.labels) == 8
    assert "name the image of an earlier row: 2 (line 9 that of line 3, line 10 that of line 4 as y instead of x)" in (
        capsys.readouterr().out
    )
    with pytest.raises(UserError, match="line 4 has 3 fields, the first line has 2"):
        load_own(write_table(tmp_path, "sep=;\npath;label\na.png;x\nb.png;y;z\n"))
    with pytest.raises(UserError, match="line 8 has a URL in column 'path', expected the path of a file"):
        load_own(write_table(tmp_path, SIX + "https://example.com/a.png,x\n"))
    with pytest.raises(UserError, match=r"labels.json is no folder .*file\. Write it as JSON Lines"):
        load_own(write_table(tmp_path, "{}", "labels.json"))


def test_a_zero_character_in_a_json_table(tmp_path):
    path = write_table(
        tmp_path, '{"path": "a.png", "label": "x"}\n{"path": "b\\u0000.png", "label": "y"}\n', "labels.jsonl"
    )
    with pytest.raises(UserError, match=r"labels.jsonl: line 2 contains a null character.*b\\x00.png"):
        load_own(path, *NO_TEST)


def test_classes_that_a_table_of_corrected_labels_has_lost_are_named(tmp_path, capsys):
    checked = (
        SIX.replace("label\n", "label,trusted_by\n").replace(",x\n", ",x,person\n").replace(",y\n", ",y,detector\n")
    )
    path = write_table(tmp_path, checked, "labels_fixed.csv")
    load_own(path, *NO_TEST)
    assert "no image left" not in capsys.readouterr().out
    (tmp_path / "summary.json").write_text(json.dumps({**SUMMARY, "classes": ["w", "x", "y", "z"]}))
    load_own(path, *NO_TEST)
    assert "labels_fixed.csv has no image left of 2 of the run's classes" in (printed := capsys.readouterr().out)
    assert "will not know them: w, z" in printed


def test_a_summary_beside_a_persons_own_table_is_theirs(tmp_path, capsys):
    (tmp_path / "summary.json").write_text('{"anything": 1}')
    assert load_own(write_table(tmp_path, SIX), *NO_TEST).num_classes == 2
    assert "summary.json" not in capsys.readouterr().out


def test_other_files_are_no_tables(tmp_path):
    with pytest.raises(UserError, match="line 2 is no JSON object"):
        load_own(write_table(tmp_path, '{"path": "a.png", "label": 1}\n[1]\n', "labels.jsonl"))
    with pytest.raises(UserError, match="labels.xlsx is no folder and no .csv, .jsonl, .tsv, .parquet or .tar file"):
        load_own(write_table(tmp_path, "x", "labels.xlsx"))
    with pytest.raises(UserError, match="line 8: 'z' is no class of the training images"):
        load_own(
            write_table(
                tmp_path,
                SIX.replace("label", "label,split").replace("\n", ",train\n").replace("split,train", "split")
                + "a.png,z,test\n",
            )
        )


def test_what_clip_reads(tmp_path, capsys):
    assert tidy_names(["001.Black_footed_Albatross", "200.Common_Yellowthroat"]) == [
        "Black footed Albatross",
        "Common Yellowthroat",
    ]
    assert tidy_names(["goldenRetriever", "hot_dog", "T-Shirt", "3_series"]) == [
        "golden Retriever",
        "hot dog",
        "T-Shirt",
        "3 series",
    ]
    assert tidy_names(["3_series", "5_series"]) == ["3 series", "5 series"]  # they would be the same without
    assert tidy_names(["birds (2)", "cats(1)", "Golf (1998)", "(3)"]) == ["birds", "cats", "Golf (1998)", "(3)"]
    assert tidy_names(["7 up", "1 007"]) == ["7 up", "1 007"]
    assert tidy_names(["cafe\u0301"]) == ["caf\u00e9"]
    assert shortened(["plain, with comma", "dog"]) == "'plain, with comma', dog"
    data = load_own(write_table(tmp_path, SIX.replace("x", "hot_dog").replace("y", "Hot dog")), *NO_TEST)
    assert data.num_classes == 2
    assert "the classes 'Hot dog' and 'hot_dog' have the same name for CLIP, 'hot dog'" in capsys.readouterr().out
    load_own(write_table(tmp_path, SIX.replace("x", "n01440764").replace("y", "12")), *NO_TEST)
    assert "CLIP cannot know 12, n01440764; --classnames" in (printed := capsys.readouterr().out)
    load_own(
        write_table(tmp_path, SIX.replace("x", "1.0").replace("y", "2.0")), *NO_TEST
    )  # numbers that passed through pandas
    assert "CLIP cannot know 1.0, 2.0; --classnames" in capsys.readouterr().out
    load_own(write_table(tmp_path, SIX.replace("x", "c01").replace("y", "class 2")), *NO_TEST)
    assert "CLIP cannot know c01, class 2; --classnames" in capsys.readouterr().out
    load_own(write_table(tmp_path, SIX.replace("x", "A320").replace("y", "glider")), *NO_TEST)
    assert "CLIP cannot know" not in capsys.readouterr().out
    assert "look like missing values" not in printed
    load_own(write_table(tmp_path, SIX.replace("x", "nan").replace("y", "N/A")), *NO_TEST)  # as pandas writes them
    assert (
        "labels that look like missing values are classes now: N/A, nan; to leave their images out"
        in capsys.readouterr().out
    )
    load_own(write_table(tmp_path, SIX.replace("x", "_Unsorted").replace("y", "cat|dog")), *NO_TEST)
    assert (
        "missing values are classes now: _Unsorted;" in (printed := capsys.readouterr().out)
        and "several" not in printed
    )
    load_own(write_table(tmp_path, SIX.replace("x", "dog").replace("y", "dog | cat")), *NO_TEST)
    assert "labels that name several classes are classes of their own: dog | cat\n" in capsys.readouterr().out


def test_whole_numbers_are_sorted_as_numbers():
    assert sorted_labels(["10", "2", "02"]) == ["02", "2", "10"] and sorted_labels(["10", "2", "x"]) == ["10", "2", "x"]
    assert sorted_labels(["0.0", "10.0", "2.0"]) == ["0.0", "2.0", "10.0"]  # as pandas writes a column with a gap
    assert sorted_labels(["10.5", "2.0"]) == ["10.5", "2.0"]


def test_class_names_from_a_file(tmp_path, capsys):
    path, names = write_table(tmp_path, SIX), tmp_path / "names.txt"
    names.write_text("tench\ngreat white shark\n")
    data = load_own(path, "--classnames", str(names))
    assert data.classnames == ["tench", "great white shark"] and data.label_names == ["x", "y"]
    table = tmp_path / "names.csv"
    for text in (
        'label,name\ny,great white shark\nx,"tench, a fish"\n',
        "name;label\n great white shark; y\ntench, a fish;x\n",
    ):
        table.write_text(text)  # by label, in any order
        assert load_own(path, "--classnames", str(table)).classnames == ["tench, a fish", "great white shark"]
    for text, message in (
        ("label,name\nx,a\ny,b\nx,c\n", "line 4: 'x' is there twice"),
        ("label,name\nx,a\nY,b\n", "line 3: 'Y' is no label of the data. Did you mean y?"),
        ("label,name\ny,b\nx,\n", "line 3: 'x' is without a name"),
        ("x,a\ny,b\n", "expected the columns label and name, found x, a"),
        ("label,name\ny,b, c\n", "line 2 has 3 fields"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=re.escape(message)):
            load_own(path, "--classnames", str(table))
    table.write_text("label,name\ny,shark\n")  # the others stay as they are
    assert load_own(path, "--classnames", str(table)).classnames == ["x", "shark"]
    names.write_text("x, the first\ny, the second\n")  # names, as in every file that is no table
    assert load_own(path, "--classnames", str(names)).classnames == ["x, the first", "y, the second"]
    assert "every line of" in capsys.readouterr().out
    names.write_text("maple, Acer\noak, Quercus\n")  # names with commas, in every line or in some
    assert load_own(path, "--classnames", str(names)).classnames == ["maple, Acer", "oak, Quercus"]
    names.write_text("shark, great white\ntench\n")
    assert load_own(path, "--classnames", str(names)).classnames[0] == "shark, great white"
    names.write_text("tench\n")
    with pytest.raises(UserError, match="names.txt: holds 1 class names, the data set has 2 classes"):
        load_own(path, "--classnames", str(names))
    names.write_text("tench\n\nshark\n")
    with pytest.raises(UserError, match="names.txt: line 2 is empty"):
        load_own(path, "--classnames", str(names))
    with pytest.raises(UserError, match="num_class: is 3, but own has 2 classes"):
        load_own(path, "--num_class", "3")
    write_cifar(tmp_path / "c", "cifar100")
    with pytest.raises(UserError, match="label 2 of training image 2 is out of range"):
        load_data(
            SimpleNamespace(
                **vars(load_config(["--dataset", "cifar100", "--data_path", str(tmp_path / "c")]))
                | {"class_names": ["a", "b"]}
            )
        )
