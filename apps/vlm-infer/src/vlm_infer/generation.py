"""How texts are generated, and what becomes of a row."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Generation:
    """How texts are generated: options of `VLM.generate`. A row's draws depend on `seed` and its position only."""

    max_new_tokens: int = 48
    num_beams: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What became of a row: a text, or the reason why there is none.

    logprob: of the whole text, in nats. seconds: the row's share of its batch's time.
    """

    text: str | None
    logprob: float | None
    seconds: float
    error: str | None = None
