"""Tables of attributes in files: separators, headers, names of files, missing values, and what is refused."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, Subset

from posthoc_inn.concepts import AttributeSource, as_source, read_table
from posthoc_inn.concepts.cells import read_cells
from posthoc_inn.concepts.columns import as_column, text_column
from posthoc_inn.concepts.matching import match_rows
from posthoc_inn.concepts.tables import open_table
from posthoc_inn.errors import ConfigError, DataError, UnknownNameError


class Images(Dataset):
    """Images that tell their files' names."""

    def __init__(self, *names):
        self.files = list(names)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return torch.zeros(3, 8, 8)


@pytest.fixture
def write(tmp_path):
    def written(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return written


FILES = ["a.png", "b.png", "c.png", "d.png"]


# ---- separators and layouts


@pytest.mark.parametrize("mark", [",", ";", "\t", "|", " ", ", ", " ; ", "   "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_whatever_separates_cells_the_columns_are_the_same(write, mark, end):
    rows = [["image", "age", "hat"], ["b.png", "31", "red"], ["a.png", "32", "blue"], ["c.png", "31", "red"]]
    found = read_table(write(end.join(mark.join(row) for row in rows) + end), names=FILES[:3])
    assert {name: column.tolist() for name, column in found.items()} == {"age": [32, 31, 31], "hat": [0, 1, 1]}


cells = st.text("abXY019 ,;|\t\"'.\n", max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 3).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=5)))
def test_what_pythons_writer_wrote_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("tables") / "table.csv"
    for mark in ",;\t|":
        text = io.StringIO()
        header = [f"column{k}" for k in range(len(rows[0]))]
        csv.writer(text, delimiter=mark).writerows([header, *rows])
        path.write_bytes(text.getvalue().encode())
        # A table of one column does not show what would separate two.
        found = read_cells(path, mark if len(header) == 1 else None)
        assert found.header == header
        assert found.rows == [[cell.strip() for cell in row] for row in rows]


def test_separators_inside_of_quotes_and_of_words_separate_nothing(write):
    found = read_cells(write('name,note\n"x, y","a;b"\n"say ""so""",c;d\n'))
    assert found.rows == [["x, y", "a;b"], ['say "so"', "c;d"]]


@pytest.mark.parametrize("count", ["4", "9"])
def test_celebas_own_layout_is_read_and_a_wrong_count_is_told(write, count):
    rows = ["000002.jpg -1  1", "000001.jpg  1  1", "000003.jpg  1 -1", "000004.jpg -1 -1"]
    path = write("\n".join([count, "Smiling Young ", *rows]) + "\n", "list_attr_celeba.txt")
    found = open_table(path, names=[f"00000{k}.jpg" for k in (1, 2, 3, 4)])
    assert {n: c.tolist() for n, c in found.columns.items()} == {"Smiling": [1, 0, 1, 0], "Young": [1, 1, 0, 0]}
    assert any("says 9 rows" in note for note in found.notes) == (count == "9")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_of_an_encoding_are_no_part_of_a_name(write, encoding):
    assert list(read_table(write("größe,b\n1,2\n2,1\n".encode(encoding)))) == ["größe", "b"]


def test_empty_lines_ends_of_rows_and_unnamed_numbers_are_no_values(write):
    for text in (
        "\n\na,b\n\n1,2\n  \n3,4\n\n",
        "a,b,\n1,2,\n3,4,\n",
        "a,b\n1,2,\n3,4,\n",
        "sep=;\na;b\n1;2\n3;4\n",
        ",a,b\n0,1,2\n1,3,4\n",
    ):
        assert {n: c.tolist() for n, c in read_table(write(text)).items()} == {"a": [1, 3], "b": [2, 4]}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a, a\n1,2\n", "header of different names: a is there 2 times"),
        ("a,,b\n1,2,3\n", "Column 2 of the table .* has no name"),
        ("a.png,1\nb.png,0\n", "its first line holds values: a.png, 1"),
        ("1,0\n0,1\n", "its first line holds values: 1, 0"),
        ("cat,yes\ndog,no\ncat,yes\n", "its first line holds values: cat, yes"),
        ("Answers of May\na,b\n1,2\n3,4\n", "its first line, 'Answers of May', names one column where ',' splits"),
        ("# a;b\n1,2\n3,4\n", "Row 2 of the table .* has 1 cells, its header 2"),
        ("a;x,b\n1;2,3\n", "can be split evenly at ',' and ';'. Say which"),
        ('a,b\n1,"2\n3,4\n', "Does each quoted cell end"),
        ("a,b\n1,2\n\n3\n", "Row 4 of the table .* has 1 cells, its header 2"),
        ("a,b\n1,2,3\n1,3,4\n", "Row 2 of the table .* has 3 cells, its header 2"),
        ("a;b\n1;2\n3\n", "Row 3 of the table .* has 1 cells, its header 2"),
        (b"a,b\n\xff\xe9,2\n", "Save it as a text file in UTF-8"),
        (b"PK\x03\x04\x00\x00", "it is no text"),
    ],
)
def test_a_table_that_has_no_one_reading_is_refused(write, text, match):
    with pytest.raises(DataError, match=match):
        read_table(write(text))


# ---- values


@pytest.mark.parametrize("word", ["", "NA", "n/a", "NaN", "None", "null", "-", "?", "<NA>", " "])
def test_words_for_missing_are_missing_in_every_kind_of_column(write, word):
    found = open_table(write(f"kind,hat,size,smile\ncat,1,0.5,-1\ndog,0,1.5,1\n{word},{word},{word},{word}\n"))
    assert [found.columns[n].tolist() for n in ("kind", "hat", "smile")] == [[0, 1, -1], [1, 0, -1], [0, 1, -1]]
    assert found.columns["size"].isnan().tolist() == [False, False, True]
    assert [note for note in found.notes if "these are missing" in note and f"({word.strip() or 'empty'})" in note]


@pytest.mark.parametrize(
    ("texts", "codes", "note"),
    [
        (["-1", "1", "-1"], [0, 1, 0], "-1 and 1 are read as no and yes"),
        (["-1", "0", "1"], [-1, 0, 1], None),
        (["-2", "-1", "1", "-1"], [0, 1, 2, 1], "-1 is read as a value"),
        (["Yes", "no", "YES", "No"], [1, 0, 1, 0], None),
        (["TRUE", "false", "?", "True"], [1, 0, -1, 1], None),
        (["Red", "red", "blue"], [0, 2, 1], "Red and red count as different values"),
        (["1.0", "", "0.0"], [1, -1, 0], "read as whole"),
        (["01", "1", "01"], [0, 1, 0], None),
        (["1_0", "10", "1_0"], [1, 0, 1], None),
        (["99999999999999999991", "7", "99999999999999999992"], [1, 0, 2], None),
    ],
)
def test_codings_are_read_as_they_are_meant_and_a_choice_is_told(texts, codes, note):
    column, notes = text_column(texts, "x")
    assert column.tolist() == codes
    assert bool(notes) == bool(note)
    assert note is None or note in notes[0]


def test_what_is_said_of_many_columns_is_said_once(write):
    rows = "image,a,b,c,d,e\nx.png,-1,1,1,-1,0\ny.png,1,-1,-1,1,1\n"
    assert open_table(write(rows)).notes == ["In 'a', 'b', 'c' and 1 columns more, -1 and 1 are read as no and yes."]


def test_several_texts_an_image_are_refused():
    with pytest.raises(DataError, match="'tags' has several texts an image"):
        as_column(np.array([["a", "b"], ["c", "d"]]), "tags")


def test_a_decimal_comma_is_one_where_commas_separate_nothing(write):
    found = open_table(write("size;kind\n0,5;1\n1,25;2\n3;1\n"))
    assert found.columns["size"].tolist() == [0.5, 1.25, 3.0]
    assert "the comma is read as a decimal point" in found.notes[0]


@pytest.mark.parametrize(
    "values",
    [
        np.array(["cat", "dog", ""]),
        np.array(["cat", "dog", None], dtype=object),
        np.array([b"cat", b"dog", b"NA"]),
        np.array(["cat", "dog", float("nan")], dtype=object),
        ("cat", " dog", None),
    ],
)
def test_arrays_of_texts_are_texts(values):
    assert as_column(values, "kind").tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        ([1, None, 0], [1, -1, 0]),
        ([True, float("nan"), False], [1, -1, 0]),
        (np.array(["3", "12", "3"]), [3, 12, 3]),
        ([99999999999999999991, 99999999999999999992, 99999999999999999991], [0, 1, 0]),
        (np.array([2**64 - 1, 2**64 - 2], dtype=np.uint64), [1, 0]),
        (np.ma.masked_array([1, 0, 1], [False, False, True]), [1, 0, -1]),
        ([torch.tensor(1), np.int64(0)], [1, 0]),
        (np.array([1, 256], dtype=">i4"), [1, 256]),
    ],
)
def test_numbers_of_every_kind_are_numbers(values, codes):
    column = as_column(values, "x")
    assert column.tolist() == codes
    assert column.dtype == torch.int64


def test_numbers_with_a_point_keep_their_digits():
    assert as_column([0.1, None, 0.1 + 1e-12], "x")[[0, 2]].diff() > 0


def test_minus_one_of_a_tensor_is_missing_and_the_refusal_says_what_to_pass():
    with pytest.raises(DataError, match=r"one value only .*-1 stands for missing, 4 are; where it means no, pass 0"):
        AttributeSource({"smile": torch.tensor([-1, 1] * 4)})


def test_attributes_without_values_are_refused():
    with pytest.raises(DataError, match="The attributes x have no values"):
        AttributeSource({"x": []})


def test_missing_values_are_told_once_and_kept_over_a_subset():
    source = AttributeSource({"x": [0, 0, 1, 1, None], "y": [1, 1, 0, 0, 1]})
    assert source.notes == ("Of 5 values, these are missing (-1 counts as missing): 'x' 1.",)
    assert source.subset(torch.arange(4)).notes == source.notes


# ---- which row is of which image


@pytest.mark.parametrize(
    ("cells", "names", "rows"),
    [
        (["b.png", "a.png"], ["a.png", "b.png"], [[1], [0]]),
        (["y/a.png", "x/a.png"], ["/data/x/a.png", "/data/y/a.png"], [[1], [0]]),
        (["set/x/a.png", "set/y/a.png"], ["/here/y/a.png", "/here/x/a.png"], [[1], [0]]),
        (["train/a.png", "test/a.png"], ["/d/train/a.png"], [[0]]),
        ([".\\x\\a.png", "x\\b.png"], ["x/b.png", "x/a.png"], [[1], [0]]),
        (["images/a.png", "images/b.png"], ["b.png", "a.png"], [[1], [0]]),
        (["x/a.png", "b.png"], ["b.png", "a.png"], [[1], [0]]),
        (["7", "a"], ["d/a.jpg", "d/7.jpg"], [[1], [0]]),
        (["a.jpg", "b.jpg"], ["b.png", "c.png"], [[1], []]),
        (["x.png"], ["y.png"], [[]]),
    ],
)
def test_rows_and_images_meet_by_relative_path_base_name_or_stem(cells, names, rows):
    assert match_rows(cells, names, subject="The table") == rows


@pytest.mark.parametrize(
    ("cells", "names", "match"),
    [
        (["a.png", "b.png"], ["x/a.png", "y/a.png"], "says a.png, and several images are called so: x/a.png and y"),
        (["a.png", "x/a.png"], ["x/a.png", "x/b.png"], "names the image x/a.png more than once: a.png, x/a.png"),
        (["x/a.png", "y/a.png", "b.png"], ["a.png", "b.png"], "names the image a.png more than once: x/a.png, y/a.png"),
        (["x/a.png", "y/a.png"], ["a.png"], "names the image a.png more than once"),
        (["a"], ["a.png", "a.jpg"], "several images are called so"),
    ],
)
def test_a_name_that_fits_twice_is_refused(cells, names, match):
    with pytest.raises(DataError, match=match):
        match_rows(cells, names, subject="The table")


@pytest.mark.parametrize(
    "text",
    [
        "file_name,smile\na.png,1\nb.png,0\nc.png,1\nd.png,0\n",
        "smile,Image Path\n0,x/d.png\n1,x/c.png\n0,x/b.png\n1,x/a.png\n",
        ",image,smile\n0,b.png,0\n1,a.png,1\n2,d.png,0\n3,c.png,1\n",
        "Unnamed: 0,smile\na.png,1\nb.png,0\nc.png,1\nd.png,0\n",
        "image_id,smile\n a ,1\n b ,0\n c ,1\n d ,0\n",
        "smile,which one\n0,d.png\n1,a.png\n0,b.png\n1,c.png\n",
        "name,smile,photo\nAnn,0,d.png\nBob,1,a.png\nAnn,0,b.png\nBob,1,c.png\n",
    ],
)
def test_the_column_of_files_is_found_wherever_it_stands_and_is_no_concept(write, text):
    found = read_table(write(text), names=FILES)
    assert found.pop("smile").tolist() == [1, 0, 1, 0]
    assert set(found) <= {"name"}


def test_rows_that_agree_are_one_and_rows_that_contradict_are_refused(write):
    agreeing = open_table(write("image,x\na.png,1\na.png,1\nb.png,0\n./b.png,0\n"), names=["a.png", "b.png"])
    assert agreeing.columns["x"].tolist() == [1, 0]
    assert "rows that repeat another: 2" in agreeing.notes[0]
    path = write("image,x,y\na.png,1,5\n\nb.png,0,5\na.png,1,6\n")
    with pytest.raises(DataError, match=r"about a\.png: 'y' is '5' in line 2 and '6' in line 5\. Keep one"):
        read_table(path, names=["a.png", "b.png"])
    assert open_table(path, names=["a.png", "b.png"], columns=["x"]).columns["x"].tolist() == [1, 0]


def test_images_without_a_row_draw_no_pairs_and_what_is_left_out_is_counted(write):
    path = write("image,x\n" + "".join(f"{n}.png,{k % 2}\n" for k, n in enumerate("abcdyz")) + ",1\n")
    source = as_source(str(path), Images("e.png", *FILES))
    assert source.values["x"].tolist() == [-1, 0, 1, 0, 1]
    a, b, _ = source.pairs(200, seed=0)
    assert 0 not in set(a.tolist() + b.tolist())
    assert "images without a row, of 5, whose values are missing: 1; rows of no image" in source.notes[0]
    assert "of these data: 2; rows without a file name: 1." in source.notes[0]


# ---- what users pass


IDS = "image,person,smile,camera,hat\na.png,77,1,X,r\nb.png,78,0,X,r\nc.png,79,1,X,g\nd.png,80,0,X,g\n"


def test_columns_that_cannot_be_learned_are_left_out_and_told_unless_they_were_chosen(write):
    path = str(write(IDS, "ids.csv"))
    source = as_source(path, Images(*FILES))
    assert source.names == ("smile", "hat")
    assert source.notes == ("Columns left out: person (different in each row); camera (the same everywhere).",)
    assert as_source(path, Images(*FILES), options={"columns": "hat, smile"}).names == ("hat", "smile")
    with pytest.raises(DataError, match="'person' has no pairs"):
        as_source(path, Images(*FILES), options={"columns": "person"})
    with pytest.raises(DataError, match=r"no column that a concept can be learned from: x \(no known value\)"):
        as_source(str(write("image,x\na.png,NA\nb.png,\n")), Images("a.png", "b.png"))
    with pytest.raises(DataError, match="no column that a concept can be learned from: person"):
        as_source(str(write("image,person\na.png,1\nb.png,2\n")), Images("a.png", "b.png"))


def test_a_subset_of_the_images_gets_its_own_rows(write):
    source = as_source(str(write(IDS.replace(",", "\t"), "table.tsv")), Subset(Images(*FILES, "e.png"), [2, 0, 3, 1]))
    assert source.values["smile"].tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"columns": "smiles"}, UnknownNameError, "no column 'smiles'. Did you mean 'smile'"),
        ({"columns": ","}, ConfigError, "names no column"),
        ({"columns": "hat,hat"}, ConfigError, "named twice"),
        ({"colums": "hat"}, ConfigError, "no option 'colums'; it has columns: the wanted columns"),
        ({"files": "photo"}, UnknownNameError, "no column 'photo'"),
        ({"delimiter": "x"}, DataError, "delimiter must be one of"),
        ({"neighbors": "many"}, ConfigError, "neighbors must be a whole number"),
        ({"neighbors": "0"}, ConfigError, "neighbors must be at least 1"),
        ({"agree": "some"}, ConfigError, "agree must be"),
    ],
)
def test_wrong_options_of_a_table_are_named(write, options, error, match):
    with pytest.raises(error, match=match):
        as_source(str(write(IDS)), Images(*FILES), options=options)


def test_options_choose_the_files_and_the_delimiter(write):
    path = write("left;right,smile\na.png;b.png,1\nb.png;a.png,0\n")
    with pytest.raises(DataError, match="split evenly"):
        open_table(path)
    path = write("left,right,smile\na.png,b.png,1\nb.png,a.png,0\n")
    assert open_table(path, names=FILES[:2], files="right", delimiter=",").columns["smile"].tolist() == [0, 1]


def test_tables_of_other_kinds_and_options_for_what_has_none_are_refused(write):
    with pytest.raises(ConfigError, match="of a kind that is not read; save it as a text file"):
        as_source("table.xlsx", Images(*FILES))
    with pytest.raises(ConfigError, match=r"Options are for tables .*'labels' has none, got columns"):
        as_source("labels", Images(*FILES), options={"columns": "a"})
    with pytest.raises(DataError, match="has 3 rows, the data 4 images: one each is needed"):
        as_source(str(write("x,y\n1,0\n0,1\n1,1\n")), Images(*FILES))
