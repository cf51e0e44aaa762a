"""The budgets of a front: which of its architectures is the best within one, and what is too little for all."""

from hitdet_nni.runs.front import FrontRow, chosen_point
from hitdet_nni.runs.front_budgets import budgets_by_point, read_budgets

ROWS = [
    FrontRow("point-01", "model", 2.5, 0.1, 0.2, 7.826282, "latency_ms", True, {}),
    FrontRow("other-01", "search", 2.75, 0.1, 0.2, 8.0, "latency_ms", False, {}),
    FrontRow("point-02", "sample", 2.0, 0.1, 0.3, 9.5, "latency_ms", True, {}),
]


def test_each_budget_is_of_the_best_within_it(tmp_path):
    for name in ("budget-10.json", "budget-8.2.json", "budget-9.json", "budget-mine.json", "point-01.json"):
        (tmp_path / name).write_text("{}")
    assert read_budgets(tmp_path) == (8.2, 9.0, 10.0)
    assert budgets_by_point(ROWS, read_budgets(tmp_path)) == {"point-01": [8.2, 9.0], "point-02": [10.0]}
    assert read_budgets(tmp_path / "nowhere") == ()


def test_too_little_is_told_with_its_unit_and_what_is_enough(refused):
    with refused("1 ms is less", "7.826282 or more"):
        chosen_point(ROWS, 1.0)
    assert chosen_point(ROWS, 7.826282) is ROWS[0]
