import os
import shutil
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path, PureWindowsPath

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.model_selection import StratifiedGroupKFold

from agelib import data, images

# the fixture's faces are noise of one grey
pytestmark = pytest.mark.filterwarnings("ignore:.*hardly show a face")


def rewrite(csv: Path, change: Callable[[str], str]) -> None:
    csv.write_text(change(csv.read_text(encoding="utf-8")), encoding="utf-8")


def list_faces(csv: Path, *file_ids: str) -> None:
    """Writes a table with these ids, all aged 26, from line 2 on."""
    rows = "".join(f'"{file_id}",26\n' for file_id in file_ids)
    csv.write_text(f"file_id,age\n{rows}", encoding="utf-8")


def test_the_training_table_holds_every_face_with_its_path_and_age(dataset):
    table = data.read_train(dataset)
    assert list(table) == ["file_id", "path", "age", "digest"]
    assert table["age"].tolist() == [1 + 2 * i for i in range(40)]
    assert table["path"][7] == str(dataset / "train" / "image_7.jpg")
    assert table["digest"].is_unique


def test_the_test_table_keeps_the_templates_order_and_has_no_age(dataset):
    list_faces(dataset / "submission.csv", "image_3.jpg", "image_0.jpg")
    table = data.read_test(dataset)
    assert table["file_id"].tolist() == ["image_3.jpg", "image_0.jpg"]
    assert table["path"][0] == str(dataset / "test" / "image_3.jpg")
    assert "age" not in table


@pytest.mark.parametrize(
    ("name", "file_id"),
    [
        ("a.jpg", "a.jpg"),
        ("a.jpg", "a"),
        ("a.JPG", "a.JPG"),
        ("a.JPG", "a.jpg"),
        ("a.JPG", "a"),
        ("a.b.jpeg", "a.b"),
        ("NA.jpg", "NA"),
        ("007.jpg", "007"),
        ("a", "a"),
        ("women/a.jpg", "women/a.jpg"),
        ("Women/a.jpg", "women/a"),
        ("a.jpg", "./a.jpg"),
        ("👩‍🦰.jpg", "👩‍🦰.jpg"),
        ("'a,b' (1).jpg", "'a,b' (1).jpg"),
        (
            unicodedata.normalize("NFD", "café.jpg"),
            unicodedata.normalize("NFC", "café"),
        ),
        (
            unicodedata.normalize("NFC", "café.jpg"),
            unicodedata.normalize("NFD", "café"),
        ),
    ],
)
def test_an_id_is_kept_as_written_and_leads_to_its_image(dataset, name, file_id):
    image = dataset / "train" / name
    image.parent.mkdir(exist_ok=True)
    (dataset / "train" / "image_7.jpg").rename(image)
    list_faces(dataset / "train.csv", "image_0", file_id)
    table = data.read_train(dataset)
    assert table["file_id"].tolist() == ["image_0", file_id]
    assert table["path"].tolist() == [str(dataset / "train/image_0.jpg"), str(image)]


def test_an_id_may_leave_out_the_suffix_of_every_format_that_is_opened():
    known = Image.registered_extensions().items()
    assert {s for s, kind in known if kind in images.FORMATS} <= data.SUFFIXES


def test_the_name_in_full_goes_before_others_like_it(dataset):
    folder = dataset / "train"
    (folder / "image_1.jpg").rename(folder / "image_0.JPG")
    (folder / "image_2.jpg").rename(folder / "image_0")
    ids = ["image_0.JPG", "image_0", "image_0.jpg"]
    list_faces(dataset / "train.csv", *ids)
    assert data.read_train(dataset)["path"].tolist() == [str(folder / i) for i in ids]


def test_an_id_that_fits_several_files_is_refused(dataset):
    (dataset / "train" / "image_1.jpg").rename(dataset / "train" / "image_0.PNG")
    list_faces(dataset / "train.csv", "image_3", "image_0")
    with pytest.raises(
        ValueError, match=r"train\.csv line 3 .*several files.*'image_0'"
    ):
        data.read_train(dataset)


@pytest.mark.parametrize(
    "file_id", ["", ".", "./", "..", "../test/image_0.jpg", "train/../../x", "/x"]
)
@pytest.mark.parametrize("csv", ["train.csv", "submission.csv"])
def test_an_id_names_a_file_inside_the_folder(dataset, csv, file_id):
    list_faces(dataset / csv, "image_0.jpg", file_id)
    read = {"train.csv": data.read_train, "submission.csv": data.read_test}[csv]
    with pytest.raises(
        ValueError, match=rf"{csv} line 3 .* names no file .*\('{file_id}'\)"
    ):
        read(dataset)


def test_an_absolute_path_is_no_id_even_into_the_folder(dataset):
    list_faces(dataset / "train.csv", str(dataset / "train" / "image_0.jpg"))
    with pytest.raises(ValueError, match=r"line 2 has a file_id that names no file"):
        data.read_train(dataset)


@pytest.mark.parametrize(
    "file_id", ["..\\x", "C:\\x", "C:x", "\\x", "\\\\server\\share\\x"]
)
def test_an_id_names_a_file_inside_the_folder_as_windows_reads_it(
    dataset, monkeypatch, file_id
):
    monkeypatch.setattr(data, "PurePath", PureWindowsPath)
    list_faces(dataset / "train.csv", "image_0.jpg", file_id)
    with pytest.raises(ValueError, match=r"line 3 has a file_id that names no file"):
        data.read_train(dataset)


@pytest.mark.parametrize(
    "other", ["./image_0.jpg", "image_0.jpg/", ".//image_0", "image_0", "IMAGE_0.JPG"]
)
def test_an_image_under_two_ids_is_refused(dataset, other):
    list_faces(dataset / "train.csv", "image_0.jpg", "image_1.jpg", other)
    with pytest.raises(
        ValueError, match=rf"line 4 lists an image a second .*'{other}'"
    ):
        data.read_train(dataset)


def test_images_and_folders_may_be_links(dataset):
    (dataset / "train").rename(dataset / "elsewhere")
    (dataset / "train").symlink_to(dataset / "elsewhere")
    (dataset / "elsewhere" / "linked.jpg").symlink_to(dataset / "test" / "image_0.jpg")
    (dataset / "elsewhere" / "women").symlink_to(dataset / "test")
    ids = ["image_0.jpg", "linked", "women/image_1.jpg"]
    list_faces(dataset / "train.csv", *ids)
    assert data.read_train(dataset)["file_id"].tolist() == ids


def test_spaces_around_an_id_are_left_out_and_said(dataset):
    list_faces(dataset / "train.csv", "image_0.jpg", "image_1.jpg ", "\u00a0image_2")
    with pytest.warns(
        UserWarning, match=r"train\.csv line 3 \(and 1 more\) .*'image_1\.jpg '"
    ) as warned:
        table = data.read_train(dataset)
    assert warned[0].filename == __file__
    assert table["file_id"].tolist() == ["image_0.jpg", "image_1.jpg", "image_2"]


def test_what_cannot_be_seen_in_an_id_is_shown(dataset):
    list_faces(dataset / "train.csv", "image_0.jpg\u200b")
    with pytest.raises(ValueError, match=r"image_0\.jpg\\u200b' \(No such file"):
        data.read_train(dataset)


@pytest.mark.parametrize("age", ["abc", "-3", "400", "", "nan", "inf"])
def test_an_impossible_age_is_named_with_its_line(dataset, age):
    rewrite(
        dataset / "train.csv",
        lambda t: "\n" + t.replace("image_3.jpg,7", f"\nimage_3.jpg,{age}"),
    )
    with pytest.raises(ValueError, match=rf"train\.csv line 7 .*\('{age}'\): correct"):
        data.read_train(dataset)


def test_ages_may_be_fractions_from_0_to_120(dataset):
    rewrite(
        dataset / "train.csv",
        lambda _: "file_id,age\nimage_0.jpg,0.5\nimage_1.jpg,120\n",
    )
    assert data.read_train(dataset)["age"].tolist() == [0.5, 120]


def test_a_repeated_id_is_named_and_further_lines_are_counted(dataset):
    rewrite(dataset / "train.csv", lambda t: t + "image_3.jpg,9\nimage_4.jpg,9\n")
    with pytest.raises(ValueError, match=r"line 42 \(and 1 more\) .*'image_3\.jpg'"):
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


@pytest.mark.parametrize("csv", ["train.csv", "submission.csv", "solution.csv"])
def test_every_table_is_read_in_the_same_way(dataset, csv):
    read = {
        "train.csv": data.read_train,
        "submission.csv": data.read_test,
        "solution.csv": lambda folder: data.read_ages(folder / "solution.csv"),
    }[csv]
    (dataset / csv).write_bytes("\ufeffage; file_id\n26,5; image_0\n".encode())
    assert read(dataset)["file_id"].tolist() == ["image_0"]
    (dataset / csv).write_bytes("file_id,age\nimage_é,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{csv} is not text in UTF-8 \(line 2\)"):
        read(dataset)
    (dataset / csv).write_text("file_id,age\nimage_0,26,5\n")
    with pytest.raises(ValueError, match=rf"{csv} line 2 has 3 fields"):
        read(dataset)
    (dataset / csv).write_text("file_id,age\n")
    with pytest.raises(ValueError, match=rf"{csv} has no rows"):
        read(dataset)
    (dataset / csv).unlink()
    with pytest.raises(FileNotFoundError, match=rf"no table .*{csv}"):
        read(dataset)


def test_ages_are_read_without_images_and_merge_by_ids_that_are_numbers(tmp_path):
    (tmp_path / "a.csv").write_text("file_id,age\n1,26\n\n02,27.5\n")
    (tmp_path / "b.csv").write_text("age, file_id\n3, 02\n4, 1\n")
    a, b = (data.read_ages(tmp_path / name) for name in ("a.csv", "b.csv"))
    assert a.to_dict("list") == {"file_id": ["1", "02"], "age": [26, 27.5]}
    assert a.index.tolist() == [0, 1]
    assert a.merge(b, on="file_id")["age_y"].tolist() == [4, 3]
    (tmp_path / "a.csv").write_text("file_id,age\n1,26\n02,27.5\n1,26\n")
    with pytest.raises(ValueError, match=r"a\.csv line 4 lists a file_id a second"):
        data.read_ages(tmp_path / "a.csv")


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


@pytest.mark.parametrize("csv", ["train.csv", "submission.csv"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_never_opened(dataset, csv, kind):
    folder = dataset / {"train.csv": "train", "submission.csv": "test"}[csv]
    path = folder / "image_1.jpg"
    path.unlink()
    {
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
    }[kind]()
    read = {"train.csv": data.read_train, "submission.csv": data.read_test}[csv]
    with pytest.raises(ValueError, match=r"1 of .*/image_1\.jpg \(not a file\)"):
        read(dataset)


def test_images_that_hardly_show_a_face_are_counted_and_named(dataset):
    rng = np.random.default_rng(0)
    sizes = {"image_0.png": (40, 40), "image_1.png": (20, 20), "image_2.png": (20, 90)}
    for name, size in sizes.items():
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(dataset / "train" / name)
    Image.new("RGB", (40, 40)).save(dataset / "train" / "image_3.png")
    list_faces(dataset / "train.csv", *sizes, "image_3.png")
    message = r"3 of 4 images hardly .*: image_1\.png \(20 x 20 .*image_3\.png \(all of"
    with pytest.warns(UserWarning, match=message):
        assert len(data.read_train(dataset)) == 4
    list_faces(dataset / "train.csv", "image_0.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.read_train(dataset)


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


def faces_with_copies(*copies: int) -> pd.DataFrame:
    """So many copies of each photo, no two of one age."""
    digest = np.repeat(np.arange(len(copies)), copies)
    return pd.DataFrame({"age": 1.0 + np.arange(len(digest)), "digest": digest})


@pytest.mark.parametrize(
    ("copies", "folds"),
    [
        ([1, 1], 2),
        ([1, 1, 1], 3),
        ([1] * 9, 9),
        ([1] * 40, 10),
        ([37, 1, 1, 1], 4),
        ([1] * 9 + [91], 10),
        ([17, 1, 1], 3),
        # these leave a fold empty if it is not seen to
        ([14, 6, 6, 4, 6], 5),
        ([4] * 8, 8),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_fold_is_empty_however_few_the_photos(copies, folds, seed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = data.split(faces_with_copies(*copies), 10, seed)
    assert set(table["fold"]) == set(range(folds))
    assert len(table[["digest", "fold"]].drop_duplicates()) == len(copies)


def test_where_a_fold_would_be_empty_the_photo_with_most_copies_is_not_held_out():
    sizes = data.split(faces_with_copies(14, 6, 6, 4, 6), 5).groupby("fold").size()
    # which fold holds which photo is the library's choice, but for the first
    assert sorted(sizes) == [4, 6, 6, 6, 14]
    assert sizes[0] < 14


@pytest.mark.parametrize(("folds", "fold"), [(10, 0), (4, 0), (4, 3)])
def test_the_faces_held_out_are_those_of_one_fold(dataset, folds, fold):
    faces = data.read_train(dataset)
    numbered = data.split(faces, folds)
    held_out = numbered["fold"] == fold
    learned, judged = data.hold_out(faces, folds, fold)
    pd.testing.assert_frame_equal(learned, numbered[~held_out])
    pd.testing.assert_frame_equal(judged, numbered[held_out])
    assert len(judged) == 40 // folds
    # of ten folds the first, unless told
    if (folds, fold) == (10, 0):
        assert data.hold_out(faces)[1].equals(judged)


@pytest.mark.parametrize("faces", [1, 12])
def test_one_photo_alone_cannot_be_split(faces):
    with pytest.raises(ValueError, match=rf"these {faces} are all the same photo"):
        data.split(faces_with_copies(faces))


def test_three_faces_are_read_and_split(dataset):
    list_faces(dataset / "train.csv", "image_0", "image_1", "image_2")
    list_faces(dataset / "submission.csv", "image_4")
    assert sorted(data.split(data.read_train(dataset))["fold"]) == [0, 1, 2]
    assert len(data.read_test(dataset)) == 1


def test_folds_of_many_faces_are_those_of_scikit_learn():
    """Published results rest on them."""
    table = many_faces()
    oldest = np.argsort(table["age"], kind="stable")
    band = np.empty(1000, dtype=int)
    band[oldest] = np.arange(1000) // 50
    splitter = StratifiedGroupKFold(10, shuffle=True, random_state=0)
    _, first = next(splitter.split(table, band, table["digest"]))
    fold = data.split(table)["fold"]
    assert np.flatnonzero(fold == 0).tolist() == first.tolist()


def test_a_folder_may_have_no_test_faces_where_they_are_optional(dataset):
    (dataset / "submission.csv").unlink()
    table = data.read_test(dataset, optional=True)
    assert table.empty
    assert list(table) == ["file_id", "path", "digest"]
    with pytest.raises(FileNotFoundError, match=r"submission\.csv"):
        data.read_test(dataset)


def add_columns(dataset: Path, **columns: list[str]) -> None:
    csv = dataset / "train.csv"
    pd.read_csv(csv).assign(**columns).to_csv(csv, index=False)


def test_further_columns_of_the_labels_are_kept_as_text(dataset):
    camera = ["001", " phone "] * 19 + ["", "001"]
    add_columns(dataset, camera=camera, note=["x"] * 40)
    table = data.read_train(dataset)
    assert table.columns.tolist() == [
        *("file_id", "path", "age"),
        *("camera", "note", "digest"),
    ]
    assert table["camera"].head(2).tolist() == ["001", "phone"]
    assert table["camera"].isna().tolist() == [False] * 38 + [True, False]
    _, held_out = data.hold_out(table, folds=4)
    assert held_out["camera"].tolist() == table.loc[held_out.index, "camera"].tolist()


@pytest.mark.parametrize("name", ["path", "fold", "pred_age", "digest"])
def test_a_further_column_that_is_called_as_agelibs_is_left_out(dataset, name):
    add_columns(dataset, **{name: ["9"] * 40, "camera": ["phone"] * 40})
    with pytest.warns(UserWarning, match=rf"train\.csv has a column '{name}'.*rename"):
        table = data.read_train(dataset)
    assert (table["camera"] == "phone").all()
    assert not (table.get(name, pd.Series()) == "9").any()
