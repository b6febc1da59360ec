"""Questions from a vision-language model behind any OpenAI-compatible endpoint, asked once for each image."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import islice

from vlm_data.generate.journal import Journal
from vlm_data.generate.products import Product
from vlm_data.generate.questions import FormatError, Question, checked
from vlm_data.generate.replies import pairs_in
from vlm_data.images import ImageError, decode
from vlm_data.schema import DataError, Rejected

_SIDE = 768  # pixels: what models of this kind look at anyway; a larger image only costs more
_TOLERATED = 20  # images in a row that fail before the endpoint is given up
_PROMPT = """Write {count} questions about this image of a product, each with its answer.

Known about the product, to help you name what you see: {facts}

- The image alone must be enough to answer; do not ask what only the text above says.
- The answer is one word. Numbers are written as digits.
- Vary what you ask about: color, material, shape, pattern, number of parts, texture, position, use.
- Of the yes/no questions as many have the answer no as yes.

Reply with JSON only: [{{"question": "...?", "answer": "..."}}, ...]"""


class Endpoint:
    """url: such as "http://localhost:8000/v1". key: where the endpoint asks for one.

    A request is repeated up to `retries` times after a time-out (`timeout` seconds), a broken connection, or the
    answers 408, 409, 429 and 5xx, waiting longer each time, or as long as the endpoint says.
    Raises DataError if the `openai` distribution is missing.
    """

    def __init__(
        self, url: str, model: str, *, key: str | None = None, retries: int = 5, timeout: float = 60.0
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise DataError("openai is not installed; run: pip install 'vlm-data[endpoint]'") from error
        self.url, self.model, self._openai = url, model, openai
        self._client = openai.OpenAI(base_url=url, api_key=key or "none", max_retries=retries, timeout=timeout)

    def ask(self, product: Product, count: int) -> str:
        """The reply about a product.

        Raises ImageError or EndpointError about this image, DataError if the endpoint will refuse any.
        """
        facts = "; ".join(f"{name}: {value[:200]}" for name, value in product.attributes.items()) or "nothing"
        content = [
            {"type": "text", "text": _PROMPT.format(count=count, facts=facts)},
            {"type": "image_url", "image_url": {"url": _data_url(product.path)}},
        ]
        openai = self._openai
        try:
            answer = self._client.chat.completions.create(
                model=self.model, messages=[{"role": "user", "content": content}]
            )
            reply = answer.choices[0].message.content
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise DataError(f"{self.url} refuses: {error}; check the endpoint, --model and the key") from error
        except openai.OpenAIError as error:
            raise EndpointError(f"{type(error).__name__}: {error}") from error
        except (ValueError, AttributeError, TypeError, IndexError) as error:  # not JSON, or none of the protocol
            raise EndpointError(f"malformed answer of the endpoint ({error})") from error
        if not isinstance(reply, str):
            raise EndpointError("malformed answer of the endpoint (no text)")
        return reply


class EndpointError(Exception):
    """The endpoint gave no reply about one image."""


def ask_all(
    products: Sequence[Product],
    endpoint: Endpoint,
    journal: Journal,
    *,
    per_image: int = 10,
    concurrency: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[Rejected]:
    """Ask about each product that the journal does not have, and write the replies to it as they come.

    Returns the products without a reply and why; a later run asks about these again. progress(done, total).
    Raises DataError if the endpoint refuses the key or the model, or fails 20 times in a row.
    """
    waiting = iter([product for product in products if product.image not in journal.done])
    done = sum(product.image in journal.done for product in products)
    failed, in_a_row = [], 0
    pool = ThreadPoolExecutor(concurrency)
    try:
        running = {pool.submit(endpoint.ask, one, per_image): one for one in islice(waiting, concurrency)}
        while running:
            finished = next(as_completed(running))
            product = running.pop(finished)
            try:
                journal.add({"image": product.image, "reply": finished.result()})
                in_a_row = 0
            except ImageError as error:
                failed.append(Rejected(product.path, str(error)))
            except EndpointError as error:
                failed.append(Rejected(product.path, str(error)))
                in_a_row += 1
                if in_a_row == _TOLERATED:
                    raise DataError(
                        f"{endpoint.url} failed for {in_a_row} images in a row, at last with: {error}; "
                        "what it did answer is kept: run again to go on"
                    ) from error
            done += 1
            if progress is not None:
                progress(done, len(products))
            running |= {pool.submit(endpoint.ask, one, per_image): one for one in islice(waiting, 1)}
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


def from_replies(products: Iterable[Product], journal: Journal) -> tuple[list[Question], Counter[str]]:
    """(questions in the order of the products, how many pairs were dropped for which reason)."""
    questions: dict[tuple[str, str], Question] = {}
    dropped: Counter[str] = Counter()
    for product in products:
        if product.image not in journal.done:
            continue
        try:
            pairs = pairs_in(journal.done[product.image]["reply"])
        except FormatError as error:
            dropped[str(error)] += 1
            continue
        for pair in pairs:
            try:
                question = checked(product.image, *pair)
            except FormatError as error:
                dropped[str(error)] += 1
                continue
            if questions.setdefault((product.image, question.question.lower()), question) is not question:
                dropped["duplicate"] += 1
    return list(questions.values()), dropped


def _data_url(path: str) -> str:
    picture = decode(path)
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
