"""CLIPScore of a tiny random CLIP against the formula, one text and one image at a time."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from vlm_eval import clip_score, ref_clip_score

TEXTS = ["a red dog", "the cat sits", "Yes", "x" * 300, "a dog runs"]
REFERENCES = [["the dog", "a red dog"], ["cat"], ["no", "maybe"], ["x"], ["a dog runs", "runs", "a cat"]]


@pytest.fixture(scope="module")
def folder(tiny_clip):
    return tiny_clip


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    sizes = [(16, 16), (20, 31), (40, 17), (16, 16), (64, 48)]
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


class Oracle:
    def __init__(self, folder, prefix="A photo depicts "):
        self.model, self.prefix = CLIPModel.from_pretrained(folder).eval(), prefix
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)
        self.image_processor = CLIPImageProcessorPil.from_pretrained(folder)

    @torch.no_grad()
    def text(self, text):
        ids = self.tokenizer(self.prefix + text, truncation=False)["input_ids"]
        if len(ids) > 40:
            ids = ids[:39] + ids[-1:]
        return self.unit(self.model.text_projection(self.model.text_model(torch.tensor([ids])).pooler_output))

    @torch.no_grad()
    def image(self, image):
        pixels = self.image_processor(image, return_tensors="pt").pixel_values
        return self.unit(self.model.visual_projection(self.model.vision_model(pixels).pooler_output))

    @staticmethod
    def unit(vector):
        return vector[0].double() / vector[0].double().norm()

    def clip_score(self, text, image):
        return 2.5 * max(float(self.text(text) @ self.image(image)), 0)

    def ref_clip_score(self, text, references, image):
        a = self.clip_score(text, image)
        b = max(0.0, *(float(self.text(text) @ self.text(reference)) for reference in references))
        return 2 * a * b / (a + b) if a + b else 0


@pytest.mark.parametrize("prefix", ["A photo depicts ", ""])
def test_clip_score_equals_the_formula(folder, images, prefix):
    oracle = Oracle(folder, prefix)
    score = clip_score(TEXTS, images, folder, prefix=prefix, batch_size=2)
    expected = [oracle.clip_score(text, image) for text, image in zip(TEXTS, images, strict=True)]
    assert score.per_sample == pytest.approx(expected, abs=1e-5)
    assert score.value == pytest.approx(np.mean(expected), abs=1e-5)
    assert f"|model:{folder}|prefix:{prefix!r}|w:2.5|" in score.signature


def test_some_similarities_are_negative_and_count_as_zero_each(folder, images):
    oracle = Oracle(folder)
    cosines = [float(oracle.text(text) @ oracle.image(image)) for text in TEXTS for image in images]
    assert min(cosines) < 0 < max(cosines)
    score = clip_score([text for text in TEXTS for _ in images], images * len(TEXTS), folder)
    assert score.per_sample == pytest.approx([2.5 * max(cosine, 0) for cosine in cosines], abs=1e-5)


def test_ref_clip_score_equals_the_formula(folder, images):
    oracle = Oracle(folder)
    score = ref_clip_score(TEXTS, REFERENCES, images, folder)
    rows = list(zip(TEXTS, REFERENCES, images, strict=True))
    assert score.per_sample == pytest.approx([oracle.ref_clip_score(*row) for row in rows], abs=1e-5)
    assert score.details["clip_score"] == pytest.approx(
        np.mean([oracle.clip_score(t, i) for t, _, i in rows]), abs=1e-5
    )
    turned = ref_clip_score(TEXTS, [row[::-1] for row in REFERENCES], images, folder)
    assert turned.per_sample == score.per_sample


def test_an_empty_caption_scores_zero(folder, images):
    assert clip_score(["", " \n"], images[:2], folder).per_sample == [0, 0]
    assert ref_clip_score(["", "a"], ["", "a"], images[:2], folder).per_sample[0] == 0


def test_images_may_be_paths_and_are_turned_upright(folder, images, tmp_path):
    picture = images[1].convert("RGB")
    turned = picture.transpose(Image.Transpose.ROTATE_90)  # what the tag below asks to undo
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    by_path = clip_score(["a dog"], [tmp_path / "turned.png"], folder).per_sample
    assert by_path == pytest.approx(clip_score(["a dog"], [picture], folder).per_sample, abs=1e-6)


def test_one_image_a_row(folder, images):
    with pytest.raises(ValueError, match="2 predictions but 1 images"):
        clip_score(["a", "b"], images[:1], folder)
