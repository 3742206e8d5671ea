"""``tenfold check``: table, exit codes, plots, and mistakes in one line."""

import subprocess
import sys

import pytest

from tenfold.cli import main

TUCKER = "tenfold.manifolds:TuckerManifold((5, 4, 3), (3, 2, 2))"


def test_a_right_manifold(capsys):
    assert main(["check", TUCKER, "--only", "P1,J1,R3", "--examples", "2", "--seed", "5"]) == 0
    out = capsys.readouterr().out
    assert "Tucker(shape=(5, 4, 3), rank=(3, 2, 2))" in out
    assert "the projection is idempotent" in out
    assert "3 passed, 0 failed" in out


def test_a_wrong_manifold(capsys):
    assert main(["check", "geoopt:CanonicalStiefel", "--only", "J1", "--examples", "1"]) == 1
    assert "proju(proju(z)) = proju(z)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "target",
    [
        "tenfold.manifolds:TuckerManifold((4, 3, 3), rank=2, modes=[0, 1])",
        "tenfold.manifolds:TensorTrainManifold((2, 3, 2, 3), 2, rows=2)",
        "geoopt:ProductManifold((Sphere(), 3), (Euclidean(ndim=1), (2,)))",
        "geoopt:manifolds.Sphere",
        "geoopt:PoincareBall(c=1.0)",
    ],
)
def test_constructor_expressions(target, capsys):
    assert main(["check", target, "--only", "J1", "--examples", "1"]) == 0


def test_a_module_in_the_working_directory(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_own_format.py").write_text(
        "from tenfold.manifolds import FixedRankManifold\nmine = FixedRankManifold((4, 3), 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["check", "my_own_format:mine", "--only", "T2", "--examples", "1"]) == 0


def test_a_shape_for_manifolds_that_have_none(capsys):
    assert (
        main(["check", "geoopt:EuclideanStiefel", "--shape", "4,2", "--only", "T2", "--examples", "1"]) == 0
    )


def test_slope_plots(tmp_path, capsys):
    file = tmp_path / "slopes.png"
    assert main(["check", TUCKER, "--only", "R3,R4", "--examples", "1", "--plot", str(file)]) == 0
    assert file.read_bytes().startswith(b"\x89PNG")
    assert main(["check", TUCKER, "--only", "J1", "--examples", "1", "--plot", str(file)]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["geoopt"], "MODULE:NAME"),
        (["no_such_module:Thing"], "cannot import"),
        (["geoopt:Nothing"], "there is no 'Nothing'"),
        (["geoopt:Sphere("], "not a Python expression"),
        (["geoopt:Sphere() or 1"], "neither a literal"),
        (["geoopt:Sphere(*[1])"], "neither a literal"),
        (["geoopt:__version__"], "not a geoopt.Manifold"),
        (["tenfold.manifolds:TuckerManifold"], "missing 2 required positional arguments"),
        (["tenfold.manifolds:TuckerManifold((5, 4, 3), (9, 2, 2))"], "largest feasible rank"),
        ([TUCKER, "--examples", "0"], "at least 1"),
        ([TUCKER, "--only", "X1"], "unknown checks"),
        ([TUCKER, "--shape", "5,4,3"], "has the shape"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(["check", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


@pytest.mark.parametrize("arguments", [[], [TUCKER, "--shape", "a"], [TUCKER, "--seed", "x"]])
def test_mistakes_in_options(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["check", *arguments])
    assert exit.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_command_needs_neither_hypothesis_nor_pytest():
    """They are no dependencies of the library; only the test case and the strategies use them."""
    program = (
        "import sys; sys.modules['hypothesis'] = sys.modules['pytest'] = None\n"
        "from tenfold.cli import main\n"
        f"sys.exit(main(['check', {TUCKER!r}, '--only', 'J1', '--examples', '1']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 passed" in done.stdout
