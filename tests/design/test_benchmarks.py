"""Every benchmark has a result on record, and none times two functions that differ."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.harness import Part, counted, demand_equal, row

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FIELDS = {"name", "ratio", "ours", "baseline", "unit", "spread", "machine"}


def test_each_case_has_its_result() -> None:
    results = {result["name"]: result for result in json.loads((BENCHMARKS / "results.json").read_text())}
    assert set(results) == {path.stem for path in (BENCHMARKS / "cases").glob("*.py")}
    for result in results.values():
        assert set(result) - {"parts"} == FIELDS
        assert set(result["machine"]) == {"cpu", "cores", "threads", "torch"}
        assert result["spread"][0] <= result["ratio"] <= result["spread"][1]


def test_ratio_is_the_median_over_the_rounds() -> None:
    found = row(ours=[1.0, 2.0, 4.0], baseline=[2.0, 8.0, 12.0], unit="ms")
    assert (found.ratio, found.ours, found.baseline) == (3.0, 2.0, 8.0)
    assert found.spread == (2.5, 3.5)


def test_counts_beside_formulas_show_the_farthest_parts() -> None:
    found = counted([Part("a", 10.0, 11.0), Part("b", 30.0, 27.0)], unit="MB")
    assert (found.ratio, found.ours, found.baseline) == (0.95, 40.0, 38.0)
    assert found.spread == (0.9, 1.1)


def test_different_results_are_not_timed() -> None:
    baseline = torch.tensor([1.0, -2.0])
    demand_equal("sum", baseline + 1e-4, baseline)
    with pytest.raises(AssertionError, match=r"sum: ours and the baseline differ by 0\.0005"):
        demand_equal("sum", baseline + 1e-3, baseline)
    with pytest.raises(AssertionError, match="differ by nan"):
        demand_equal("sum", baseline * torch.nan, baseline)
