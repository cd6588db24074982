"""A mixed-integer linear program in sparse rows, solved by HiGHS on one thread."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.solve.highs import quiet


@dataclass(frozen=True)
class Answer:
    """Values of the variables, their objective, and a bound below which no values go.

    `values` is None if none were found within the limits; `possible` is False if there are none.
    """

    values: NDArray[np.float64] | None
    objective: float
    bound: float
    possible: bool = True


class Program:
    """Minimise the sum of `cost * variable` over rows `low <= sum of coefficient * variable <= high`."""

    def __init__(self) -> None:
        """A program without variables."""
        self.costs: list[float] = []
        self.lower: list[float] = []
        self.upper: list[float] = []
        self.whole: list[bool] = []
        self._starts = [0]
        self._columns: list[int] = []
        self._coefficients: list[float] = []
        self._low: list[float] = []
        self._high: list[float] = []

    def variable(self, cost: float = 0.0, low: float = 0.0, high: float = 1.0, whole: bool = False) -> int:
        """Add a variable; returns its index."""
        self.costs.append(cost)
        self.lower.append(low)
        self.upper.append(high)
        self.whole.append(whole)
        return len(self.costs) - 1

    def row(self, terms: Mapping[int, float], low: float = -math.inf, high: float = math.inf) -> None:
        """Add a row; `terms` maps variables to coefficients."""
        self._columns += terms.keys()
        self._coefficients += terms.values()
        self._starts.append(len(self._columns))
        self._low.append(low)
        self._high.append(high)

    def solve(self, relaxed: bool = False, seconds: float = 60.0, gap: float = 0.0) -> Answer:
        """Solve it, or with `relaxed` its relaxation; stops after `seconds`, or at a relative `gap`."""
        import highspy

        highs = quiet()
        highs.setOptionValue("time_limit", seconds)
        highs.setOptionValue("mip_rel_gap", gap)
        highs.passModel(self._model(highspy, relaxed))
        highs.run()
        status, info = highs.getModelStatus(), highs.getInfo()
        if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
            return Answer(None, math.inf, math.inf, False)
        found = info.primal_solution_status == highspy.kSolutionStatusFeasible
        values = np.array(highs.getSolution().col_value) if found else None
        if relaxed or not any(self.whole):
            optimal = status == highspy.HighsModelStatus.kOptimal
            objective = float(info.objective_function_value)
            return Answer(values if optimal else None, objective, objective if optimal else -math.inf)
        return Answer(values, float(info.objective_function_value), float(info.mip_dual_bound))

    def _model(self, highspy: Any, relaxed: bool) -> Any:
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = len(self.costs), len(self._low)
        model.col_cost_ = np.array(self.costs)
        model.col_lower_, model.col_upper_ = np.array(self.lower), np.array(self.upper)
        model.row_lower_, model.row_upper_ = np.array(self._low), np.array(self._high)
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array(self._starts, np.int32)
        model.a_matrix_.index_ = np.array(self._columns, np.int32)
        model.a_matrix_.value_ = np.array(self._coefficients)
        if not relaxed and any(self.whole):
            kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
            model.integrality_ = [kinds[whole] for whole in self.whole]
        return model
