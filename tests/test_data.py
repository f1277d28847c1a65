import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agelib import data


def rewrite(csv: Path, change: Callable[[str], str]) -> None:
    csv.write_text(change(csv.read_text()))


def test_the_training_table_holds_every_face_with_its_path_and_age(dataset):
    table = data.read_train(dataset)
    assert list(table) == ["file_id", "path", "age", "digest"]
    assert table["age"].tolist() == [1 + 2 * i for i in range(40)]
    assert table["path"][7] == str(dataset / "train" / "image_7.jpg")
    assert table["digest"].is_unique


def test_the_test_table_keeps_the_templates_order_and_has_no_age(dataset):
    rewrite(
        dataset / "submission.csv",
        lambda _: "file_id,age\nimage_3.jpg,0\nimage_0.jpg,0\n",
    )
    table = data.read_test(dataset)
    assert table["file_id"].tolist() == ["image_3.jpg", "image_0.jpg"]
    assert table["path"][0] == str(dataset / "test" / "image_3.jpg")
    assert "age" not in table


def test_ids_may_leave_out_the_suffix(dataset):
    rewrite(dataset / "train.csv", lambda text: text.replace(".jpg", ""))
    table = data.read_train(dataset)
    assert table["file_id"][2] == "image_2"
    assert table["path"][2].endswith("image_2.jpg")


@pytest.mark.parametrize("age", ["abc", "-3", "400", "", "nan", "inf"])
def test_an_impossible_age_is_named_with_its_line(dataset, age):
    rewrite(
        dataset / "train.csv",
        lambda t: t.replace("image_3.jpg,7", f"image_3.jpg,{age}"),
    )
    with pytest.raises(ValueError, match=rf"train\.csv line 5 .*\('{age}'\): correct"):
        data.read_train(dataset)


def test_ages_may_be_fractions_from_0_to_120(dataset):
    rewrite(
        dataset / "train.csv",
        lambda _: "file_id,age\nimage_0.jpg,0.5\nimage_1.jpg,120\n",
    )
    assert data.read_train(dataset)["age"].tolist() == [0.5, 120]


def test_a_repeated_id_is_named_and_further_lines_are_counted(dataset):
    rewrite(dataset / "train.csv", lambda t: t + "image_3.jpg,9\nimage_4.jpg,9\n")
    with pytest.raises(ValueError, match=r"line 42 and 1 more lines .*'image_3\.jpg'"):
        data.read_train(dataset)


@pytest.mark.parametrize("column", ["file_id", "age"])
@pytest.mark.parametrize("csv", ["train.csv", "submission.csv"])
def test_a_missing_column_is_named(dataset, csv, column):
    rewrite(dataset / csv, lambda t: t.replace(column, "other", 1))
    read = {"train.csv": data.read_train, "submission.csv": data.read_test}[csv]
    with pytest.raises(
        ValueError, match=f"{csv} has no column '{column}', only .*other"
    ):
        read(dataset)


@pytest.mark.parametrize(
    "content", [b"", b"file_id,age\na,1\nb,1,2,3\n", b"\xff\xfe\x00\x01"]
)
def test_a_file_that_is_no_table_is_named(dataset, content):
    (dataset / "train.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.csv (is no table|has no column)"):
        data.read_train(dataset)


def test_a_table_saved_by_excel_is_read(dataset):
    rewrite(dataset / "train.csv", lambda text: "\ufeff" + text)
    assert len(data.read_train(dataset)) == 40


def test_an_empty_table_and_a_missing_one_are_named(dataset):
    rewrite(dataset / "train.csv", lambda _: "file_id,age\n")
    with pytest.raises(ValueError, match=r"train\.csv has no rows"):
        data.read_train(dataset)
    (dataset / "submission.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"No table .*submission\.csv"):
        data.read_test(dataset)


def break_image(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "zero bytes":
        path.touch()
    elif how == "not an image":
        path.write_text("hello")


FAULTS = {
    "missing": "No such file",
    "truncated": "[Tt]runcated",
    "zero bytes": "zero bytes",
    "not an image": "not an image",
}


@pytest.mark.parametrize("how", FAULTS)
def test_an_unreadable_image_is_named_or_left_out_with_a_count(dataset, how):
    break_image(dataset / "train" / "image_3.jpg", how)
    with pytest.raises(ValueError, match=rf"1 of 40 .*image_3\.jpg \(.*{FAULTS[how]}"):
        data.read_train(dataset)
    with pytest.warns(UserWarning, match=r"1 of 40 .*Left out: image_3\.jpg"):
        table = data.read_train(dataset, unreadable="drop")
    assert len(table) == 39
    assert "image_3.jpg" not in set(table["file_id"])


def test_a_test_face_is_never_left_out(dataset):
    break_image(dataset / "test" / "image_1.jpg", "truncated")
    with pytest.raises(
        ValueError, match=r"1 of 5 .*image_1\.jpg .*Restore the file\.$"
    ):
        data.read_test(dataset)


def test_a_dataset_without_any_readable_image_is_refused(dataset):
    shutil.rmtree(dataset / "train")
    with pytest.raises(ValueError, match="40 of 40 images"):
        data.read_train(dataset, unreadable="drop")


def many_faces() -> pd.DataFrame:
    """1,000 faces, each tenth a copy of the one before with another age."""
    rng = np.random.default_rng(0)
    number = np.arange(1000)
    digest = np.where(number % 10 == 9, number - 1, number).astype(str)
    return pd.DataFrame({"age": rng.integers(1, 90, 1000), "digest": digest})


def test_folds_have_the_same_ages_and_keep_copies_together():
    table = data.split(many_faces(), folds=5)
    assert table.groupby("fold").size().between(190, 210).all()
    assert table.groupby("fold")["age"].mean().std() < 1
    assert len(table[["digest", "fold"]].drop_duplicates()) == 900


def test_the_split_follows_its_seed():
    folds = [data.split(many_faces(), seed=s)["fold"] for s in (0, 0, 1)]
    assert folds[0].equals(folds[1])
    assert not folds[0].equals(folds[2])


def test_fewer_faces_than_folds_are_refused():
    with pytest.raises(ValueError, match="3 faces can't be split into 10"):
        data.split(many_faces().head(3))


def test_held_out_faces_are_found_where_they_lie_now(dataset, tmp_path):
    faces = data.read_train(dataset)
    written = faces.iloc[[3, 1]].assign(path="/elsewhere/" + faces["file_id"])
    written.to_csv(tmp_path / "validation.csv", index=False)
    found = data.read_validation(tmp_path / "validation.csv", faces)
    assert found["path"].tolist() == faces["path"].iloc[[3, 1]].tolist()
    with pytest.raises(ValueError, match=r"image_3\.jpg is not in train\.csv"):
        data.read_validation(tmp_path / "validation.csv", faces.drop(index=3))
