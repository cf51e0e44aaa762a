import itertools

import pytest
import torch
from mmcv import ops


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_equals_the_formula(reduction, weighted):
    logits = (3 * torch.randn(6, 3, dtype=torch.double)).requires_grad_()
    target, gamma, alpha = torch.tensor([0, 1, 2, 3, 0, -1]), 1.5, 0.3  # 3 and -1 are background
    weight = torch.tensor([0.5, 2.0, 3.0], dtype=torch.double) if weighted else None
    rows = []
    for n, c in itertools.product(range(6), range(3)):
        p = 1 / (1 + torch.exp(-logits[n, c]))
        positive = -alpha * (1 - p) ** gamma * torch.log(p)
        negative = -(1 - alpha) * p**gamma * torch.log(1 - p)
        factor = weight[target[n]] if weighted and 0 <= target[n] < 3 else 1
        rows.append(factor * (positive if target[n] == c else negative))
    expected = torch.stack(rows).view(6, 3)
    expected = {"none": expected, "sum": expected.sum(), "mean": expected.sum() / 6}[reduction]
    loss = ops.SigmoidFocalLoss(gamma, alpha, weight, reduction)(logits, target)
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(ops.sigmoid_focal_loss(logits, target, gamma, alpha, weight, reduction), loss)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_focal_loss_of_16_bits_is_that_of_the_same_logits(kind, autocast):
    """Of easy negatives, which most anchors are: where 1 - p is rounded to 16 bits nothing is left of p."""
    logits = torch.logit(torch.tensor([[1e-4], [1e-3], [2e-3], [1e-2], [0.1], [0.5]])).to(kind)
    target = torch.ones(6, dtype=torch.long)  # background
    found = []
    for values in (logits.clone(), logits.double()):
        values.requires_grad_()
        with torch.autocast("cpu", kind, enabled=autocast and values.dtype == kind):
            loss = ops.sigmoid_focal_loss(values, target, reduction="none")
        found.append((loss.double(), torch.autograd.grad(loss.sum(), values)[0].double()))
    (loss, gradient), (expected, expected_gradient) = found
    torch.testing.assert_close(loss, expected, rtol=5e-3, atol=0)
    torch.testing.assert_close(gradient, expected_gradient, rtol=2 * torch.finfo(kind).eps, atol=1e-7)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_softmax_focal_loss_equals_the_formula(reduction, weighted):
    logits = (3 * torch.randn(5, 3, dtype=torch.double)).requires_grad_()
    target, gamma, alpha = torch.tensor([0, 1, 2, -1, 1]), 1.5, 0.3  # -1 costs nothing
    weight = torch.tensor([0.5, 2.0, 3.0], dtype=torch.double) if weighted else None
    rows = []
    for n in range(5):
        if target[n] < 0:
            rows.append(0 * logits[n].sum())
            continue
        p = logits[n, target[n]].exp() / logits[n].exp().sum()
        rows.append((weight[target[n]] if weighted else 1) * -alpha * (1 - p) ** gamma * torch.log(p))
    expected = torch.stack(rows)
    expected = {"none": expected, "sum": expected.sum(), "mean": expected.sum() / 5}[reduction]
    loss = ops.SoftmaxFocalLoss(gamma, alpha, weight, reduction)(logits, target)
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(ops.softmax_focal_loss(logits, target, gamma, alpha, weight, reduction), loss)


def test_softmax_focal_loss_edges():
    target = torch.tensor([1, 1])
    logits = torch.tensor([[0.0, 500.0], [500.0, 0.0]], requires_grad=True)
    loss = ops.softmax_focal_loss(logits, target, reduction="none")
    assert loss.tolist() == [0, 125]  # alpha times the difference of the logits
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[0.0, 0], [0.25, -0.25]]))
    plain = torch.nn.functional.cross_entropy(logits / 100, target)
    torch.testing.assert_close(ops.softmax_focal_loss(logits / 100, target, 0.0, 1.0), plain)
    assert ops.softmax_focal_loss(logits[:0], target[:0], reduction="sum") == 0


@pytest.mark.parametrize("loss", [ops.sigmoid_focal_loss, ops.softmax_focal_loss])
def test_focal_loss_refuses_bad_input(loss):
    with pytest.raises(ValueError, match="reduction='median'; allowed: none, mean, sum"):
        loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 2.0, 0.25, None, "median")
    with pytest.raises(ValueError, match=r"torch\.float32 \(2, 3\); allowed: int64 \(2,\)"):
        loss(torch.zeros(2, 3), torch.zeros(2, 3))
