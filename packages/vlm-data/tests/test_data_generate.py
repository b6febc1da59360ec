"""Products from tables, and questions about them from templates."""

import csv
import gzip
import json
from collections import Counter

import pytest
from PIL import Image

import vlm_data
from vlm_data import DataError
from vlm_data.generate import Product, from_templates, read_products, report, write_questions
from vlm_data.generate.templates import answer_of


def picture(path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(path)


def listing(image: str, **texts) -> dict:
    """As Amazon Berkeley Objects writes one; a text is (language, value) or a value without a language."""
    values = {
        name: [
            {"language_tag": text[0], "value": text[1]} if isinstance(text, tuple) else {"value": text} for text in some
        ]
        for name, some in texts.items()
    }
    return {"item_id": f"item-{image}", "main_image_id": image, **values}


@pytest.fixture
def abo(tmp_path):
    """Three listings in two files, one packed, in the layout of the release."""
    folder = tmp_path / "abo"
    for place in ("8c/8ccb5859.jpg", "14/14fe8812.jpg"):
        picture(folder / "images/small" / place)
    table = folder / "images/metadata/images.csv"
    table.parent.mkdir(parents=True)
    lines = ["8ccb5859,10,10,8c/8ccb5859.jpg", "14fe8812,10,10,14/14fe8812.jpg", "00000000,10,10,00/00000000.jpg"]
    table.write_text("\n".join(["image_id,height,width,path", *lines]))
    listings = folder / "listings/metadata"
    listings.mkdir(parents=True)
    chair = listing(
        "8ccb5859", color=[("de_DE", "Rot"), ("en_US", "Red")], product_type=["CHAIR"], material=[("en_GB", "Oak wood")]
    )
    missing, unknown = listing("00000000", color=[("en_US", "Blue")]), listing("ffffffff")
    (listings / "listings_0.json").write_text(
        "\n".join(map(json.dumps, (chair, missing, unknown))) + "\nno json\n[1]\n"
    )
    vase = listing("14fe8812", color=[("en_US", "Sky blue")], product_type=["VASE"], item_shape=[("en_US", "Round")])
    vase["color"][0]["standardized_values"] = ["Blue"]
    with gzip.open(listings / "listings_1.json.gz", "wt") as file:
        file.write(json.dumps(vase) + "\n")
    return folder


def test_amazon_berkeley_objects(abo):
    rejected = []
    products, image_dir = read_products(abo, rejected=rejected)
    assert image_dir == abo / "images/small"
    assert [(product.image, product.attributes) for product in products] == [
        ("8c/8ccb5859.jpg", {"color": "Red", "material": "Oak wood", "product_type": "CHAIR"}),
        ("14/14fe8812.jpg", {"color": "Blue", "item_shape": "Round", "product_type": "VASE"}),
    ]
    assert [record.source.rpartition(":")[2] for record in rejected] == ["2", "3", "4", "5"]
    assert "image not found" in rejected[0].reason and "not in images.csv" in rejected[1].reason
    (german, _), _ = read_products(abo, language="de", rejected=[])
    assert german.attributes["color"] == "Rot"
    with pytest.raises(DataError, match="listings_0.json:2: image not found"):
        read_products(abo)


def test_a_packed_listing_that_is_cut_off_is_told(abo):
    (packed,) = abo.rglob("listings_1.json.gz")
    packed.write_bytes(packed.read_bytes()[:-20])
    rejected = []
    assert len(read_products(abo, rejected=rejected)[0]) == 1
    assert "cannot be read further" in rejected[-1].reason and str(packed) in rejected[-1].source


def test_the_questions_about_abo_are_read_back_with_their_images(abo, tmp_path):
    products, image_dir = read_products(abo, rejected=[])
    questions = from_templates(products)
    write_questions(tmp_path / "questions.csv", questions)
    rows = vlm_data.open(tmp_path / "questions.csv", image_dir=image_dir)
    assert [(row["prompt"], row["references"]) for row in rows] == [(one.question, [one.answer]) for one in questions]
    assert {row["image"]["path"] for row in rows} == {product.path for product in products}
    assert {"red", "wood", "blue", "round"} <= {one.answer for one in questions}


def test_a_table_whose_rows_share_images(tmp_path):
    for name in ("a.jpg", "b.png"):
        picture(tmp_path / name)
    (tmp_path / "t.csv").write_text("Image_ID,Color,Count\na,red,2\na,blue,2\nb,green,\n../x,red,1\n,red,1\n")
    rejected = []
    products, _ = read_products(tmp_path / "t.csv", rejected=rejected)
    assert [(product.image, product.attributes) for product in products] == [
        ("a.jpg", {"count": "2"}),  # its color is red in one row and blue in another
        ("b.png", {"color": "green"}),
    ]
    assert [record.source.rpartition(":")[2] for record in rejected] == ["5", "6"]


@pytest.mark.parametrize(
    ("kind", "value", "answer"),
    [
        ("color", "Red", "red"),
        ("color", "Matt Grey finish", "gray"),
        ("color", "Black/White", None),
        ("color", "gray/grey", "gray"),
        ("color", "Teal", "teal"),
        ("color", "Sunset Dream", None),
        ("color", "12", None),
        ("material", "100% Cotton", "cotton"),
        ("material", "stainless_steel", "steel"),
        ("material", "wood, metal", None),
        ("shape", "rectangle", "rectangular"),
        ("count", "3", "3"),
        ("count", "012.0", "12"),
        ("count", "3.5", None),
        ("count", "many", None),
        ("count", "-1", None),
    ],
)
def test_an_attribute_answers_in_one_word_or_not_at_all(kind, value, answer):
    assert answer_of(Product("a.jpg", "a.jpg", {kind: value}), kind) == answer


COLORS = ["red", "red", "red", "blue", "green", "black"]


def shop(size: int = 300) -> list[Product]:
    """Chairs and lamps; lamps are always made of steel or glass, chairs of wood or cotton."""
    products = []
    for number in range(size):
        kind, materials = ("CHAIR", ["wood", "cotton"]) if number % 2 else ("LAMP", ["steel", "glass"])
        attributes = {"product_type": kind, "color": COLORS[number % 7 % 6], "material": materials[number % 3 % 2]}
        products.append(Product(f"{number}.jpg", f"/{number}.jpg", attributes))
    return products


def test_answers_are_true_and_negatives_are_values_of_their_like():
    products = shop()
    questions = from_templates(products)
    assert len(questions) == len({(one.image_name, one.question) for one in questions}) == 4 * len(products)
    truth = {product.image: product.attributes for product in products}
    for one in questions:
        own = truth[one.image_name]
        assert f"the {own['product_type'].lower()}" in one.question
        value = one.question.rstrip("?").split()[-1]
        if one.question_type == "yes/no":
            assert one.answer == ("yes" if value in own.values() else "no")
            if "made of" in one.question or "material" in one.question:  # of another product of the same category
                assert value in (["wood", "cotton"] if own["product_type"] == "CHAIR" else ["steel", "glass"])
        else:
            assert one.answer == own[one.question_type]


def test_the_value_that_is_asked_about_does_not_give_the_answer_away():
    questions = [one for one in from_templates(shop(2000), kinds=["color"]) if one.question_type == "yes/no"]
    assert abs(sum(one.answer == "yes" for one in questions) / len(questions) - 0.5) < 0.05
    red = Counter(one.answer for one in questions if "red" in one.question)
    assert 0.5 < red["yes"] / red.total() < 0.8  # three sevenths of all are red, so no has fewer to draw it from


def test_what_may_both_be_true_is_no_negative():
    products = [Product(f"{i}.jpg", "", {"material": word}) for i, word in enumerate(["steel", "metal", "brass"])]
    assert {one.question_type for one in from_templates(products)} == {"material"}
    named = [
        Product("a.jpg", "", {"color": "red", "item_name": "Red chair, blue legs"}),
        Product("b.jpg", "", {"color": "blue"}),
    ]
    assert [one.answer for one in from_templates(named) if one.image_name == "a.jpg"] == ["red"]


def test_the_seed_and_nothing_else_chooses():
    products = shop()
    questions = from_templates(products, seed=3)
    assert questions == from_templates(products, seed=3) != from_templates(products, seed=4)
    few = from_templates(products, seed=3, per_image=2)
    assert set(few) < set(questions)
    assert set(Counter(one.image_name for one in few).values()) == {2}


def test_a_plural_category_is_not_put_into_a_sentence():
    (one,) = from_templates([Product("a.jpg", "", {"color": "red", "product_type": "SHOES"})])
    assert "product" in one.question and "shoes" not in one.question
    (one,) = from_templates([Product("a.jpg", "", {"color": "red", "product_type": "DRINKING_GLASS"})])
    assert "the drinking glass" in one.question


def test_the_report_says_what_answering_blindly_scores():
    answers = report(from_templates(shop(), kinds=["material"]))["material"]
    assert answers["questions"] == 300 and answers["answers"] == 4
    truth = Counter(product.attributes["material"] for product in shop())
    assert answers["most_frequent"] == dict(truth.most_common())
    assert answers["share_of_first"] == round(max(truth.values()) / 300, 4)


def test_a_table_is_written_whole_with_quotes_where_needed(tmp_path):
    questions = from_templates([Product('a, "b".jpg', "", {"color": "red"})])
    write_questions(tmp_path / "q.csv", questions)
    with open(tmp_path / "q.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {**vars(questions[0])}
    assert [path.name for path in tmp_path.iterdir()] == ["q.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,color\nx,red\n", "no column names the image"),
        (
            "image_name,color\nx.jpg,red\n",
            "no product with an image; the first row left out: .*t.csv:2: image not found",
        ),
    ],
)
def test_tables_without_use_are_refused(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_products(tmp_path / "t.csv", rejected=[])
    with pytest.raises(DataError, match="no images.csv below it"):
        read_products(tmp_path, rejected=[])
    with pytest.raises(DataError, match="no such file or folder"):
        read_products(tmp_path / "nowhere", rejected=[])


def test_products_without_known_attributes_are_refused():
    with pytest.raises(DataError, match="found: weight; needed one of: color, colour"):
        from_templates([Product("a.jpg", "", {"weight": "3"})])
    with pytest.raises(DataError, match="unknown kind of question 'size'; known: color"):
        from_templates(shop(), kinds=["size"])
