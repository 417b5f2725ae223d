"""Gates: every form, both outcomes, and the mistakes a person makes."""

import pytest

from flows import gates


@pytest.mark.parametrize(
    ("gate", "passed", "slack"),
    [
        ("accuracy >= 0.9", True, 0.05),
        ("accuracy > 0.95", False, 0.0),
        ("accuracy <= 0.9", False, -0.05),
        ("fd_judge <= 1.5 * champion", True, 1.0),
        ("fd_judge < champion", False, -0.0),
        ("fd_judge <= champion", True, 0.0),
    ],
)
def test_verdicts(gate: str, passed: bool, slack: float) -> None:
    (verdict,) = gates.judge([gate], {"accuracy": 0.95, "fd_judge": 2.0}, {"fd_judge": 2.0})
    assert verdict.passed is passed
    assert verdict.slack == pytest.approx(slack)


def test_without_a_champion_only_absolute_gates_can_fail() -> None:
    verdicts = gates.judge(["fd <= champion", "fd <= 1"], {"fd": 2.0}, None)
    assert [v.passed for v in verdicts] == [True, False]


def test_a_value_that_is_not_a_number_never_passes() -> None:
    assert not gates.judge(["fd <= 3"], {"fd": float("nan")}, None)[0].passed


def test_mistakes_are_explained() -> None:
    with pytest.raises(gates.GateError, match="cannot read the gate 'fd = 3'"):
        gates.parse("fd = 3")
    with pytest.raises(gates.GateError, match="did you mean 'class_accuracy'"):
        gates.judge(["class_acuracy >= 0.9"], {"class_accuracy": 1.0}, None)
