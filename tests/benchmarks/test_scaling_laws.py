"""The scaling benchmark finds a known law again, does not look at what it foretells, and runs."""

import json
import sys
from dataclasses import asdict, astuple, replace
from pathlib import Path

import pytest

from training.scaling_law import ScalingLaw

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
try:
    import scaling_laws
    from scaling_laws import Point, Prediction, interval, outer_edge, residual
finally:
    sys.path.pop(0)

# far from symmetric: with N and D exchanged every loss and every constant is another
LAW = ScalingLaw(E=1.2, A=60.0, alpha=0.5, B=25.0, beta=0.3)
SIZES = {32: 27_000, 48: 59_000, 64: 103_000, 96: 228_000, 128: 402_000}
TOKENS = (125_000, 250_000, 500_000, 1_000_000, 2_000_000)


@pytest.fixture
def points():
    return [Point(2, dim, 0, n, d, LAW.loss(n, d), 1.0) for dim, n in SIZES.items() for d in TOKENS]


def test_the_constants_are_found_again(points):
    fitted = scaling_laws.fit(points)
    for name, value in asdict(LAW).items():
        assert getattr(fitted, name) == pytest.approx(value, rel=0.02), name
    for point in points:
        assert residual(point, fitted) == pytest.approx(0, abs=1e-5)


def test_exchanged_n_and_d_are_another_law(points):
    exchanged = [replace(point, n=point.d, d=point.n) for point in points]
    fitted = scaling_laws.fit(exchanged)
    assert fitted.alpha == pytest.approx(LAW.beta, rel=0.02)
    assert fitted.beta == pytest.approx(LAW.alpha, rel=0.02)
    assert max(abs(residual(point, fitted)) for point in points) > 0.1


def test_the_table_pairs_each_run_with_its_own_fit(points):
    shuffled = [replace(p, loss=1.02 * p.loss) if p.n == 59_000 else p for p in points[::-1]]
    heading, *rows = scaling_laws.table(shuffled, LAW)
    assert heading.split() == ["model", "N", "D", "seed", "measured", "fitted", "residual"]
    assert len(rows) == 25
    cells = [row.split() for row in rows]
    for point, (layers, _, dim, n, d, seed, measured, fitted, off) in zip(
        points, cells, strict=True
    ):
        assert (layers, int(dim), seed) == ("2", point.dim, "0")
        assert (n, d) == (f"{point.n:,}", f"{point.d:,}")
        true = 1.2 + 60 / point.n**0.5 + 25 / point.d**0.3
        assert float(fitted) == pytest.approx(true, abs=1e-4)
        assert off == ("+2.00%" if point.n == 59_000 else "+0.00%")
        assert float(measured) == pytest.approx(true * (1.02 if point.n == 59_000 else 1), abs=1e-4)


def test_held_out_are_the_largest_n_and_the_largest_d(points):
    rest, edge = outer_edge(points)
    assert {(p.n, p.d) for p in edge} == {
        *((402_000, d) for d in TOKENS),
        *((n, 2_000_000) for n in SIZES.values()),
    }
    assert len(rest) == 16
    assert not set(rest) & set(edge)


def test_what_is_held_out_is_foretold_and_not_looked_at(points):
    honest = Prediction.make(points)
    assert len(honest.held_out) == 9
    for point in honest.held_out:
        assert residual(point, honest.law) == pytest.approx(0, abs=1e-4)
    assert honest.last == pytest.approx(LAW.loss(228_000, 1_000_000))

    worse = [replace(p, loss=1.03 * p.loss) if p in outer_edge(points)[1] else p for p in points]
    judged = Prediction.make(worse)
    # not bit by bit: sums depend on where memory lies
    assert astuple(judged.law) == pytest.approx(astuple(honest.law), rel=1e-3)
    lines = judged.lines()
    assert "foretold without them: mean 3.00 %, worst 3.00 %" in lines
    largest = 1.03 * LAW.loss(402_000, 2_000_000)
    against_last = 100 * (largest / honest.last - 1)
    assert f"{largest:.4f}, foretold {LAW.loss(402_000, 2_000_000):.4f} (+3.00%)" in lines[-1]
    assert lines[-1].endswith(f"{honest.last:.4f} ({against_last:+.2f}%)")


def test_without_one_n_or_one_d_a_disturbed_row_shows(points):
    factors = {402_000: 1.05}
    disturbed = [replace(p, loss=round(factors.get(p.n, 1) * p.loss, 4)) for p in points]
    laws = scaling_laws.without_one(disturbed)
    assert list(laws) == [f"N = {n:,}" for n in SIZES.values()] + [f"D = {d:,}" for d in TOKENS]
    assert laws["N = 402,000"].alpha == pytest.approx(LAW.alpha, rel=0.05)
    assert abs(laws["N = 27,000"].alpha - LAW.alpha) > 0.1 * LAW.alpha


def test_drawn_points_keep_three_of_each(points):
    few = [p for p in points if p.n <= 103_000 and p.d <= 500_000]
    drawn = scaling_laws.resampled(few, 3)
    assert len(drawn) == 3
    assert all(residual(p, law) == pytest.approx(0, abs=0.01) for law in drawn for p in few)


def test_the_interval_leaves_a_tenth_on_either_side():
    assert interval(range(100, 0, -1)) == (11, 90)
    assert interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_the_splits_spend_the_budget(points):
    heading, *rows = scaling_laws.splits(LAW, [LAW], points)
    assert heading.split()[:4] == ["FLOPs", "N*", "D*", "loss"]
    for row in rows:
        budget, n, d, loss = (float(cell.replace(",", "")) for cell in row.split()[:4])
        assert 6 * n * d == pytest.approx(budget, rel=1e-4)
        assert loss == pytest.approx(LAW.loss(n, d), abs=1e-3)
        assert loss <= min(LAW.loss(n * 1.3, d / 1.3), LAW.loss(n / 1.3, d * 1.3)) + 5e-4
        measured = 27_000 <= n <= 402_000 and 125_000 <= d <= 2_000_000
        assert row.endswith("beyond the runs") == (not measured)
    assert {row.endswith("beyond the runs") for row in rows} == {True, False}


@pytest.mark.parametrize("loss", [float("nan"), 0.0, "2.0"])
def test_a_loss_that_cannot_be_is_refused(loss):
    with pytest.raises(ValueError, match="a point's loss must be"):
        Point(2, 32, 0, 27_000, 125_000, loss, 1.0)


def test_a_quick_run_trains_fits_draws_and_can_be_read_again(fresh_python, tmp_path):
    text, figures, picture = (tmp_path / name for name in ("text.txt", "laws.json", "laws.png"))
    lines = [f"{n} times {n + 1} is {n * (n + 1)}, said line {n % 7}.\n" for n in range(900)]
    raw = "".join(lines)
    text.write_text(raw, encoding="utf-8", newline="\n")
    options = ["--data", text, "--quick", "--json", figures, "--output", picture]
    done = fresh_python(
        "benchmarks/scaling_laws.py", *options, cwd=ROOT, timeout=280, PYTHONPATH=str(ROOT)
    )
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    saved = json.loads(figures.read_text(encoding="utf-8"))
    points = [Point(**each) for each in saved["points"]]
    vocab = len(set(raw))
    for point in points:
        w = point.dim  # one layer: 12 w² in matrices, two norms on a head, three on the stream
        head = w // max(1, w // 32)
        assert point.n == 12 * w * w + 2 * head + 3 * w + vocab * w
    assert [(p.dim, p.d) for p in points] == [
        (dim, d) for d in (4096, 8192, 16384, 32768) for dim in (16, 32, 48, 64)
    ]
    assert len({p.loss for p in points}) == 16
    longest, shortest = (mean_loss(points, d) for d in (32768, 4096))
    assert longest < shortest - 0.2

    rows = scaling_laws.table(points, ScalingLaw(**saved["law"]))
    assert "\n".join(rows) in done.stdout
    assert scaling_laws.read_points(figures) == points


def mean_loss(points, d):
    losses = [point.loss for point in points if point.d == d]
    return sum(losses) / len(losses)


def test_earlier_points_are_fitted_again(tmp_path, monkeypatch, capsys, points):
    figures = tmp_path / "laws.json"
    rounded = [replace(point, loss=round(point.loss, 5)) for point in points]
    figures.write_text(json.dumps({"points": list(map(asdict, rounded))}), encoding="utf-8")
    again = tmp_path / "again.json"
    command = ["scaling_laws.py", "--points", figures, "--resamples", 3, "--json", again]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    scaling_laws.main()
    out = capsys.readouterr().out
    assert "foretold without them: mean 0.00 %" in out
    saved = json.loads(again.read_text(encoding="utf-8"))
    assert saved["points"] == list(map(asdict, rounded))
    for law in (saved["law"], saved["without the largest"], saved["without one"]["N = 59,000"]):
        assert law["alpha"] == pytest.approx(LAW.alpha, rel=0.05)
        assert law["beta"] == pytest.approx(LAW.beta, rel=0.05)
    low, high = saved["spread"]["E"]
    assert low <= high
    assert (low, high) == pytest.approx((LAW.E, LAW.E), rel=0.05)
    assert f"3 fits to points drawn anew, the middle 80 %: E {low:.3f} to {high:.3f}" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "text.txt", "--sizes", "64"], "expected LAYERSxWIDTH such as 2x64, got '64'"),
        (["--data", "text.txt", "--sizes", "0x64"], "expected LAYERSxWIDTH"),
        (["--data", "text.txt", "--tokens", "100"], "tokens must be at least 4096, got 100"),
        (["--points", "wrong.json"], "is not what --json wrote"),
        (["--points", "few.json"], "at least 5 points, got 4"),
        (["--points", "missing.json"], "missing.json"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, points, options, message):
    monkeypatch.chdir(tmp_path)
    few = [asdict(point) for point in points[:4]]
    for name, value in (("wrong", [{"n": 1}]), ("few", few)):
        Path(f"{name}.json").write_text(json.dumps({"points": value}), encoding="utf-8")
    Path("text.txt").write_text("abc " * 3000, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["scaling_laws.py", *options])
    with pytest.raises(SystemExit) as stopped:
        scaling_laws.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
