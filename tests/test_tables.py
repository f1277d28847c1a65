import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from agelib import data, tables
from agelib.tables import finite, require


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return tmp_path / "faces.csv"


def read(csv: Path, content: str | bytes) -> list[list[str]]:
    """The file_id and age of each row, as text."""
    csv.write_bytes(content if isinstance(content, bytes) else content.encode())
    return (
        tables.read_table(csv, "file_id", "age")[["file_id", "age"]].to_numpy().tolist()
    )


ONE = [["a.jpg", "26"]]


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("file_id,age\nNA,1\n007,nan\n", [["NA", "1"], ["007", "nan"]]),
        ("file_id;age\na.jpg;26,5\n", [["a.jpg", "26,5"]]),
        ('"file_id";"age"\n"a.jpg";"26,5"\n', [["a.jpg", "26,5"]]),
        ('"file_id"\t"age"\n"a.jpg"\t"26"\n', ONE),
        ("file_id\tage\na.jpg\t26\n", ONE),
        ("file_id|age\na.jpg|26\n", ONE),
        ("age, file_id\n26, a.jpg\n", ONE),
        (" file_id , age \na.jpg, 26\n", ONE),
        ('file_id, age\na.jpg, "26"\n', ONE),
        ('\ufeff"file_id","age"\n"a.jpg","26"\n', ONE),
        ("file_id,age\ra.jpg,26\r", ONE),
        ("file_id,age\r\na.jpg,26", ONE),
        ("\n\nfile_id,age\n\n  \na.jpg,26\n\n", ONE),
        (",file_id,age\n0,a.jpg,26\n", ONE),
        ("file_id,age,,\na.jpg,26,,\n", ONE),
        ('file_id,age\n"a,""b"".jpg",26\n', [['a,"b".jpg', "26"]]),
        ('file_id,age\na"b.jpg,26\n', [['a"b.jpg', "26"]]),
        ("file_id,age\ncafé 👩‍🦰.jpg,26\n", [["café 👩‍🦰.jpg", "26"]]),
    ],
    ids=[
        "values that look missing",
        "semicolons",
        "semicolons between quotes",
        "tabs between quotes",
        "tabs",
        "bars",
        "spaces after commas",
        "spaces around names",
        "a quote after a space",
        "a mark before a quote",
        "old line ends",
        "no last line end",
        "blank lines",
        "an index without a name",
        "empty columns",
        "quotes and commas in quotes",
        "a quote inside",
        "other characters",
    ],
)
def test_values_are_read_as_they_are_written(csv, content, rows):
    assert read(csv, content) == rows


def test_rows_are_numbered_by_the_line_they_begin_in(csv):
    read(csv, '\nfile_id,age\n\na,1\n"b\n\nb",2\r\nc,3\n  \nd,4\n')
    assert tables.read_table(csv, "file_id").index.tolist() == [4, 5, 8, 10]


def test_further_columns_are_kept_if_they_have_a_name(csv):
    read(csv, ",note,file_id,age,\n0,x,a,1,\n")
    table = tables.read_table(csv, "age")
    assert table.to_dict("list") == {"note": ["x"], "file_id": ["a"], "age": ["1"]}


NOT_UTF8 = r"faces\.csv is not text in UTF-8 \(line {}\): save it as CSV, as UTF-8"
QUOTE = r"faces\.csv line {} is no row of a table .*does a quote begin there"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"faces\.csv is empty: its first line should name file_id,age"),
        ("\ufeff\n\n", r"faces\.csv is empty"),
        ("file_id,age\n\n", r"faces\.csv has no rows below its first line"),
        ("<!DOCTYPE html>\n<html>", "no column 'file_id', only '<!DOCTYPE html>': its"),
        ("a.jpg,26\n", "no column 'file_id', only 'a.jpg', '26': its first line"),
        ("File_ID,Age\na,1\n", "no column 'file_id', but 'File_ID': its first line"),
        ("file_id,ages\na,1\n", "no column 'age', but 'ages': its first line"),
        ("\u200bfile_id,age\na,1\n", r"no column 'file_id', but '\\u200bfile_id'"),
        ("# by me\nfile_id,age\na,1\n", "no column 'file_id', only '# by me'"),
        ("file_id,age,age\na,1,2\n", r"faces\.csv has 2 columns 'age': leave one"),
        ("file_id,age,x,x\na,1,2,3\n", r"faces\.csv has 2 columns 'x': leave one"),
        (b"PK\3\4\x14\0\6\0\xff", NOT_UTF8.format(1)),
        (b"file_id,age\na,1\nb\0,2\n", NOT_UTF8.format(3)),
        ("file_id,age\na,1\ncafé,2\n".encode("latin-1"), NOT_UTF8.format(3)),
        ("file_id,age\na,1\n".encode("utf-16"), NOT_UTF8.format(1)),
        ("file_id,age\na,1\n".encode("utf-16-le"), NOT_UTF8.format(1)),
        ('file_id,age\na,1\n"b,2\nc,3\n', QUOTE.format(3)),
        ('file_id,age\n\na,1\n"b,2\n"c",3\n', QUOTE.format(4)),
        ('file_id,age\n"a,1\n' + "b,2\n" * 50_000, QUOTE.format(2)),
        ('{"file_id": "a", "age": 1}', r"faces\.csv line 1 is no row"),
    ],
    ids=[
        "empty",
        "blank",
        "names alone",
        "a web page",
        "no names",
        "capitals",
        "another name",
        "a name with a space of no width",
        "a comment first",
        "two ages",
        "two others",
        "a spreadsheet",
        "a zero byte",
        "Latin-1",
        "UTF-16",
        "UTF-16 without its mark",
        "an open quote",
        "a quote that ends elsewhere",
        "an open quote in a large table",
        "JSON",
    ],
)
def test_what_is_no_such_table_is_refused_in_one_sentence(csv, content, message):
    with pytest.raises(ValueError, match=message) as refused:
        read(csv, content)
    assert len(str(refused.value)) < 300 + len(str(csv))


@pytest.mark.parametrize(
    ("row", "odd"),
    [
        ("1,31,1", "has 3 fields where the first line has 2: a decimal comma"),
        ("c,26,5", "has 3 fields where the first line has 2: a decimal comma"),
        ("c,26,", "has 3 fields .*, a comma at its end, or a column without a name"),
        ("c;26", "has 1 field where the first line has 2: is a value missing"),
        ("# c", "has 1 field where the first line has 2"),
    ],
)
def test_an_uneven_row_is_named_with_what_is_odd(csv, row, odd):
    with pytest.raises(ValueError, match=rf"faces\.csv line 5 {odd}"):
        read(csv, f"file_id,age\na,1\n\nb,2\n{row}\n")
    # also where all rows are alike
    with pytest.raises(ValueError, match=rf"faces\.csv line 2 {odd}"):
        read(csv, f"file_id,age\n{row}\n{row}\n")


def test_what_is_no_file_is_named_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "device", "folder"):
        with pytest.raises(OSError, match=rf"{name} is a .*, not a file"):
            tables.read_table(tmp_path / name)
    for name in ("missing", "dangling"):
        with pytest.raises(FileNotFoundError, match=rf"no table .*{name}: .* list age"):
            tables.read_table(tmp_path / name, "age")


def test_a_file_too_large_for_a_table_is_not_read(csv):
    with csv.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"faces\.csv has 1,048,576 MB, too many"):
        tables.read_table(csv)


def numbers(csv: Path, *values: str, **limits: float) -> list[float]:
    read(csv, "file_id,age\n" + "".join(f'a,"{value}"\n' for value in values))
    table = tables.read_table(csv, "age")
    return tables.numbers(table, "age", csv, **limits).tolist()


def test_numbers_are_what_is_written(csv):
    written = ("26", " 26 ", "26.", "+5", "-0", "1e2", "26,5", "0,25", "26\u00a0")
    assert numbers(csv, *written) == [26, 26, 26, 5, 0, 100, 26.5, 0.25, 26]


@pytest.mark.parametrize(
    "value",
    ["", "26 years", "nan", "NaN", "inf", "1e400", "1,234", "2 6", "0x1A", "1_0", "½"],
)
def test_what_is_no_number_is_named_with_its_line(csv, value):
    with pytest.raises(
        ValueError, match=rf"faces\.csv line 3 \(and 1 more\) has no .*\('{value}'\): "
    ):
        numbers(csv, "1", value, "2", value)


def test_numbers_outside_the_limits_are_refused(csv):
    assert numbers(csv, "0", "120", low=0, high=120) == [0, 120]
    for value in ("-0.1", "120.5", "9" * 40):
        with pytest.raises(ValueError, match=f"no number from 0 to 120 .*'{value}'"):
            numbers(csv, value, low=0, high=120)


def test_a_value_too_long_to_be_read_is_named_by_its_ends(csv):
    with pytest.raises(
        ValueError, match=r"line 2 has no .*'xx.*\.\.\..*yy'"
    ) as refused:
        numbers(csv, "x" * 5000 + "y" * 5000)
    assert len(str(refused.value)) < 400 + len(str(csv))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_is_not_utf_8_is_named_by_its_line_whatever_ends_lines(csv, end):
    content = end.join(["file_id,age", "a,1", "", "é,2"]).encode("latin-1")
    with pytest.raises(ValueError, match=r"not text in UTF-8 \(line 4\)"):
        read(csv, content)


def test_one_bad_line_of_many_is_found(csv):
    rows = "".join(f"{i},{i % 90}\n" for i in range(100_000))
    csv.write_text(f"file_id,age\n{rows}x,?\n")
    with pytest.raises(ValueError, match=r"line 100002 has no .*\('\?'\)"):
        data.read_ages(csv)


def test_require_names_the_missing_column_and_what_is_there():
    ages = pd.DataFrame({"age": [20.0], "pred_age": [21.0]})
    with pytest.raises(ValueError, match="'path', only age, pred_age"):
        require(ages, "age", "path")
    with pytest.raises(ValueError, match="empty"):
        require(ages.head(0), "age")


def test_finite_names_the_column_and_the_row():
    table = pd.DataFrame(
        {"age": [20.0, 30], "pred_age": [np.inf, 1]}, index=["first", "second"]
    )
    with pytest.raises(ValueError, match=r"'pred_age'.* 1 of 2 rows.*row first"):
        finite(table, "pred_age")
    assert finite(table, "age").tolist() == [20, 30]
