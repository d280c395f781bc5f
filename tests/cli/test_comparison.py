"""What the console says of a run beside its best baseline."""

from __future__ import annotations

import pytest

from cli.shared.output import print_comparison
from mil.evaluation.baselines import BaselineComparison
from mil.evaluation.metrics import Interval


@pytest.mark.parametrize("label", ["", "epidural"])
@pytest.mark.parametrize(
    ("value", "is_warning", "words"),
    [
        (0.2, False, "better than the best baseline, mean + ridge, by 0.200 [0.100, 0.300]"),
        (0.0, False, "not shown to differ from the best baseline, mean + ridge"),
        (-0.2, True, "worse than the baseline mean + ridge by 0.200 [0.100, 0.300]"),
    ],
)
def test_the_console_warns_only_where_a_baseline_is_better_beyond_noise(
    value: float, is_warning: bool, words: str, label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gain = Interval(value=value, low=value - 0.1, high=value + 0.1)
    comparison = BaselineComparison(baseline="mean + ridge", metric="weighted_log_loss", gain=gain)
    print_comparison(comparison, label=label)
    captured = capsys.readouterr()
    shown, other = (captured.err, captured.out) if is_warning else (captured.out, captured.err)
    text = " ".join(shown.split())
    assert not other
    assert words in text
    assert text.startswith("warning: " * is_warning + f"{label}: " * bool(label) + "By log loss")
    assert ("compare other heads with --head" in text) == is_warning
