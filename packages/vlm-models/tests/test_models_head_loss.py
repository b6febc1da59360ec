"""The head's loss in parts, against logits that stand whole."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlm_models.head_loss import head_loss

TOKENS, DIM, WORDS = 11, 6, 50


class Scaled(nn.Linear):
    """As T5's head beside tied embeddings."""

    def forward(self, x):
        return super().forward(x * 0.3)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "head", [nn.Linear(DIM, WORDS), Scaled(DIM, WORDS, bias=False), nn.Sequential(nn.Linear(DIM, WORDS), nn.Tanh())]
)
@pytest.mark.parametrize("elements", [1, 3 * WORDS, 4 * WORDS + 7, 10**6])
def test_loss_and_gradients_are_those_of_whole_logits(elements, head, trained):
    torch.manual_seed(0)
    head = head.double().requires_grad_(trained)
    hidden = torch.randn(TOKENS, DIM, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(WORDS, (TOKENS,))
    wanted = [hidden, *(parameter for parameter in head.parameters() if trained)]
    expected = F.cross_entropy(head(hidden), labels, reduction="sum")
    loss = head_loss(head, hidden, labels, elements)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    gradients = torch.autograd.grad(3 * loss, wanted)
    for gradient, its in zip(gradients, torch.autograd.grad(3 * expected, wanted), strict=True):
        torch.testing.assert_close(gradient, its, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(head_loss(head, hidden, labels, elements), expected, rtol=1e-12, atol=0)


def test_logits_never_stand_whole():
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    hidden = torch.randn(TOKENS, DIM, requires_grad=True)
    loss = head_loss(
        Watched(DIM, WORDS).requires_grad_(False), hidden, torch.zeros(TOKENS, dtype=torch.long), 4 * WORDS
    )
    loss.backward()
    assert seen == [4, 4, 3] and hidden.grad.ne(0).any()


def test_bfloat16_adds_up_in_float32():
    torch.manual_seed(0)
    head = nn.Linear(DIM, WORDS).bfloat16()
    hidden, labels = torch.randn(1000, DIM).bfloat16().requires_grad_(), torch.randint(WORDS, (1000,))
    loss = head_loss(head, hidden, labels, 16 * WORDS)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(head(hidden).float(), labels, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    assert hidden.grad.dtype == torch.bfloat16
