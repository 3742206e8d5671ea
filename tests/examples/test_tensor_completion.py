"""The completion example runs and recovers more than the mean."""

import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"


def test_it_completes_the_synthetic_tensor(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    import tensor_completion

    out = tmp_path / "result.jsonl"
    arguments = ["--max-rank", "3", "--iterations", "10", "--final-iterations", "5", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["tensor_completion.py", *arguments])
    tensor_completion.main()
    result = json.loads(out.read_text())
    assert result["rank"] == [3, 3, 3]
    assert result["error"] < 0.6 < result["error_of_the_mean"]


def test_a_fraction_outside_its_range_is_refused(monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    import tensor_completion

    monkeypatch.setattr(sys, "argv", ["tensor_completion.py", "--fraction", "1.5"])
    with pytest.raises(SystemExit):
        tensor_completion.main()
    assert "--fraction must lie between 0 and 1" in capsys.readouterr().err
