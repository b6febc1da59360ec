"""Caption and question tables in every form they are met in."""

import csv
import tracemalloc

import pytest

import vlm_data
from vlm_data import DataError, Rejected
from vlm_data.text_files import TextFile


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.jpg", "c d.jpeg", "7.jpg", "8.png", "9.jpeg"):
        (tmp_path / name).write_bytes(b"not opened here")
    return tmp_path


def read(folder, text, **options):
    path = folder / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return vlm_data.open(path, **options)


def texts(rows):
    return [(row["image"]["path"].rsplit("/", 1)[1], row["prompt"], row["references"]) for row in rows]


CAPTIONS = [("a.png", None, ["a man, a dog"]), ("b.jpg", None, ["two\nlines"])]
BODY = 'a.png,"a man, a dog"\nb.jpg,"two\nlines"\n'


@pytest.mark.parametrize("header", ["image_name,caption", "file_name,caption", "image,caption", "IMAGE , Caption"])
def test_captions_with_a_header(folder, header):
    rows = read(folder, f"{header}\n{BODY}")
    assert texts(rows) == CAPTIONS
    assert rows.features == vlm_data.FEATURES
    assert rows["id"][:] == ["table-2", "table-3"]
    assert rows["source"][:] == [f"{folder}/table.csv:2", f"{folder}/table.csv:3"]
    assert rows[0]["image"] == {"path": f"{folder}/a.png", "bytes": None}


def test_captions_without_a_header(folder):
    rows = read(folder, BODY)
    assert texts(rows) == CAPTIONS
    assert rows["source"][0].endswith("table.csv:1")


def test_without_a_header_the_rest_of_the_line_is_the_caption(folder):
    rows = read(folder, "b.jpg,a dog\na.png, a man, a dog, a bone\n")
    assert texts(rows) == [("b.jpg", None, ["a dog"]), ("a.png", None, ["a man, a dog, a bone"])]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("header", [True, False])
def test_delimiters_and_line_ends_as_the_csv_module_writes_them(folder, delimiter, line_end, header):
    path = folder / "table.csv"
    captions = ['quoted "word", and; all\tdelimiters', "umlaut: Füße 犬", "plain"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end)
        writer.writerows([["image", "caption"]] * header)
        writer.writerows(zip(("a.png", "b.jpg", "c d.jpeg"), captions, strict=True))
    rows = vlm_data.open(path)
    assert [references for _, _, references in texts(rows)] == [[caption] for caption in captions]
    assert [source.rsplit(":", 1)[1] for source in rows["source"]] == [str(line + header) for line in (1, 2, 3)]


@pytest.mark.parametrize("text", ["image,caption\n" + BODY, BODY])
def test_a_byte_order_mark_is_not_part_of_a_name(folder, text):
    assert texts(read(folder, b"\xef\xbb\xbf" + text.encode())) == CAPTIONS


def test_lines_are_counted_through_quoted_newlines_and_blank_lines(folder):
    rows = read(folder, 'image,caption\n\nb.jpg,"one\ntwo\n\nfour"\n\na.png,next\n')
    assert [source.rsplit(":", 1)[1] for source in rows["source"]] == ["3", "8"]


def test_questions_with_and_without_answers(folder):
    rows = read(folder, "image_name,question,answer\na.png,what?,1\nb.jpg,where?,\n")
    assert texts(rows) == [("a.png", "what?", ["1"]), ("b.jpg", "where?", [])]
    assert texts(read(folder, "image_name,question\na.png,what?\n")) == [("a.png", "what?", [])]
    assert texts(read(folder, "answer,Question,file_name\nno,is it?,b.jpg\n")) == [("b.jpg", "is it?", ["no"])]


def test_image_ids_stand_for_the_file_that_exists(folder):
    rows = read(folder, "image_id,caption\n7,x\n8,x\n9,x\na.png,x\n")
    assert [name for name, _, _ in texts(rows)] == ["7.jpg", "8.png", "9.jpeg", "a.png"]
    assert texts(read(folder, "image_id,question\n8,what?\n")) == [("8.png", "what?", [])]
    with pytest.raises(DataError, match=r"table.csv:2: image not found: .*/10.jpg"):
        read(folder, "image_id,caption\n10,x\n")


def test_an_explicit_format_chooses_the_column(folder):
    text = "image,question,caption\na.png,what?,a dog\n"
    assert texts(read(folder, text)) == [("a.png", "what?", [])]
    assert texts(read(folder, text, format="captions-csv")) == [("a.png", None, ["a dog"])]


def test_image_dir_is_where_the_images_are(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "table.csv"
    elsewhere.write_text("image,caption\na.png,x\n")
    assert vlm_data.open(elsewhere, image_dir=folder)[0]["image"]["path"] == f"{folder}/a.png"
    with pytest.raises(DataError, match="image not found"):
        vlm_data.open(elsewhere)
    with pytest.raises(DataError, match="/nowhere: no such image folder"):
        vlm_data.open(elsewhere, image_dir="/nowhere")


BAD_ROWS = [
    ("a.png,", "caption is empty"),
    ("a.png,'  '".replace("'", '"'), "caption is empty"),
    (",words", "image name is empty"),
    ("zz.png,words", "image not found"),
    ("a.png", "1 cells for 2 columns"),
    ("a.png,a man, a dog", "3 cells for 2 columns; quote a text that holds ','"),
    ('a.png,"a" man', "not a readable CSV record"),
    ("../a.png,words", "leaves the image folder"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_ROWS)
def test_strict_names_the_first_bad_row(folder, line, reason):
    with pytest.raises(DataError) as error:
        read(folder, f"image,caption\nb.jpg,fine\n{line}\nzzz.png,never reached\n")
    assert str(error.value).startswith(f"{folder}/table.csv:3: ") and reason in str(error.value)


def test_lenient_keeps_the_good_rows_and_records_the_bad(folder):
    rejected = []
    body = "".join(f"{line}\nb.jpg,caption {number}\n" for number, (line, _) in enumerate(BAD_ROWS))
    rows = read(folder, "image,caption\n" + body, rejected=rejected)
    assert rows["references"][:] == [[f"caption {number}"] for number in range(len(BAD_ROWS))]
    lines = [2 + 2 * number for number in range(len(BAD_ROWS))]
    assert [record.source for record in rejected] == [f"{folder}/table.csv:{line}" for line in lines]
    for record, (_, reason) in zip(rejected, BAD_ROWS, strict=True):
        assert isinstance(record, Rejected) and reason in record.reason
        assert record.as_dict() == {"source": record.source, "reason": record.reason}


def test_lenient_with_bad_rows_only_has_no_rows(folder):
    rejected = []
    rows = read(folder, "image,question\na.png,\n", rejected=rejected)
    assert len(rows) == 0 and rows.features == vlm_data.FEATURES
    assert [record.reason for record in rejected] == ["question is empty"]


def test_an_open_quote_is_reported_where_it_opens(folder):
    rejected = []
    rows = read(folder, 'image,caption\nb.jpg,fine\na.png,"never closed\nb.jpg,x\n', rejected=rejected)
    assert len(rows) == 1
    assert [record.source for record in rejected] == [f"{folder}/table.csv:3"]
    with pytest.raises(DataError, match="first line is not a readable CSV record"):
        read(folder, '"image,caption\nb.jpg,fine\n')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        ("image,caption\n", "there are no rows in it"),
        (
            "photo,text\na.png,x\n",
            "columns found: photo, text; needed: caption and one of image_name, file_name, image",
        ),
        ("image;text\na.png;x\n", "columns found: image, text; needed"),
        ("caption,question\nx,y\n", "columns found: caption, question; needed"),
        ("image,caption,caption\na.png,x,y\n", "the column 'caption' is there twice"),
        ("image,caption\n".encode("utf-16"), "there are no rows in it"),
        (b"PK\x03\x04 image,caption", "not text but a zip archive or Excel's; unpack it, or save the table as CSV"),
        (b"\x1f\x8b\x08\0", "not text but packed by gzip; unpack it"),
        ("image,caption\na.png,x\n".encode("utf-16") + b"\0", "broken utf-16"),
        ("image,caption\na.png,x\n".encode("utf-16") + b"\0\xd8", "broken utf-16"),
        (b"\xef\xbb\xbfimage,caption\na.png,caf\xe9\n", r"not UTF-8, though .* \(byte 0xe9 on line 2\)"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"not a text file \(byte 0x89 on line 1\)"),
    ],
)
def test_tables_that_cannot_be_read(folder, text, message):
    with pytest.raises(DataError, match=message) as error:
        read(folder, text, rejected=[])
    assert str(error.value).startswith(f"{folder}/table.csv")


def test_questions_need_their_header_and_column(folder):
    with pytest.raises(DataError, match="no header; needed as its first line: image_name,question,answer"):
        read(folder, "a.png,what?,1\n", format="questions-csv")
    with pytest.raises(DataError, match="columns found: image, caption; needed: question and one of"):
        read(folder, "image,caption\na.png,x\n", format="questions-csv")


UMLAUTS = 'image,caption\na.png,"Füße, ’quoted’\nEuro €"\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_encodings_of_unicode(folder, encoding, line_end, caplog):
    rows = read(folder, UMLAUTS.replace("\n", line_end).encode(encoding))
    assert rows["references"][:] == [[f"Füße, ’quoted’{line_end}Euro €"]]
    assert caplog.messages == []


def test_latin_1_is_read_with_one_warning(folder, caplog):
    rows = read(folder, UMLAUTS.encode("cp1252"))
    assert rows["references"][:] == [["Füße, ’quoted’\nEuro €"]]
    (message,) = caplog.messages
    assert "table.csv: not UTF-8 (byte 0xfc on line 2); read as Latin-1" in message


def test_a_stray_byte_is_found_past_the_first_megabyte(folder, caplog):
    """The check reads in chunks; the letter is cut in two by the border between the first and the second."""
    head = "image,caption\na.png,"
    text = head + "x" * (2**20 - len(head) - 1) + "ü\n"
    path = folder / "long.txt"
    path.write_bytes(text.encode())
    assert TextFile(path).encoding == "utf-8-sig"
    path.write_bytes(text.encode() + b"\n\xff")
    assert TextFile(path).encoding == "cp1252"
    TextFile(path).warn()
    assert "byte 0xff on line 4" in caplog.text


def test_columns_by_name(folder):
    text = "photo,image,frage,caption,antwort\na.png,nothing.png,what?,unread,yes\n"
    given = {"image": "photo", "prompt": "Frage", "references": "antwort"}
    assert texts(read(folder, text, columns=given)) == [("a.png", "what?", ["yes"])]
    assert texts(read(folder, text, columns="image=photo,prompt=frage,references=antwort")) == [
        ("a.png", "what?", ["yes"])
    ]
    assert texts(read(folder, text, columns="image=photo,references=antwort")) == [("a.png", None, ["yes"])]
    assert texts(read(folder, "id,caption\n7,x\n", columns="image=id")) == [("7.jpg", None, ["x"])]
    with pytest.raises(DataError, match=r"no column 'foto' \(nearest: photo\); columns found: photo, image"):
        read(folder, text, columns="image=foto")
    for wrong in ("photo", "images=photo", "image=photo,image=image"):
        with pytest.raises(DataError, match="expected image=…,prompt=…,references=…"):
            read(folder, text, columns=wrong)


@pytest.mark.slow
def test_the_memory_for_reading_does_not_grow_with_the_table(folder):
    """Python's own peak is that of a batch; the rows are in Arrow's memory, at some 100 bytes each."""
    path, peaks = folder / "table.csv", []
    for count in (20_000, 80_000):
        line = "image,question,answer\n" + "".join(f"a.png,what is number {n}?,red\n" for n in range(count))
        path.write_text(line)
        del line
        tracemalloc.start()
        rows = vlm_data.open(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(rows) == count and rows.data.nbytes < 300 * count
    assert peaks[1] < 1.3 * peaks[0]
