"""The file of checks: what it says, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracereplay.checks import load_checks
from tracereplay.checks.lock import Locked, read_lock, write_lock
from tracereplay.checks.results import Result, Results, code_of, replay_command
from tracereplay.checks.table import Check, selected
from tracereplay.errors import UsageError
from tracereplay.verdict import Source, Verdict

FULL = """
[defaults]
engine = "v1"
settings = {max_model_len = 64}

[[check]]
golden = "decode.pack"

[[check]]
golden = "s3://bucket/long.pack"
name = "long"
engine = "v0"
digest = "0123456789abcdef0123456789abcdef"
settings = {enforce-eager = false, speculative_config = "null"}
model = "models/tiny"
policy = "strict"
mode = "rerun"
expect = "diverged"
cause = "rounding"
accept = ["device"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "checks.toml"
    path.write_text(text)
    return path


def test_a_row_says_what_is_replayed_and_what_is_expected(tmp_path: Path) -> None:
    first, second = load_checks(write(tmp_path, FULL)).checks
    assert first == Check("decode v1", str(tmp_path / "decode.pack"), "v1", settings={"max_model_len": 64}, line=6)
    assert second == Check(
        "long", "s3://bucket/long.pack", "v0", "0123456789abcdef0123456789abcdef",
        {"max_model_len": 64, "enforce_eager": False, "speculative_config": None}, tmp_path / "models" / "tiny",
        "strict", "rerun", "diverged", "rounding", ("device",), 9,
    )  # fmt: skip
    assert (first.expected, second.expected) == ("match", "diverged (rounding)")


ROW = '[[check]]\ngolden = "a"\nengine = "v1"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no row; give at least one [[check]] table"),
        ("check = 3", "has no row"),
        ("[check]\ngolden = 'a'", "has no row"),
        ("[[checks]]\ngolden = 'a'", "has 'checks', which is unknown"),
        ("[[check]", "is not TOML"),
        ('[[check]]\ngolden = "a"', "The key 'engine' of row 1, line 1 of "),
        ('[[check]]\nengine = "a"', "The key 'golden' of row 1, line 1 of "),
        (f'{ROW}{ROW}name = "b"\ngoldne = 1', "The key 'goldne' of row 2 ('b'), line 4 of"),
        (f"{ROW}goldne = 1", "did you mean golden"),
        (f"{ROW}digest = 'xyz'", "The key 'digest' of row 1, line 1 of"),
        (f"{ROW}settings = 3", "it must be a table"),
        (f"{ROW}settings = {{a = 2026-01-01}}", "has a value that no engine takes"),
        (f"{ROW}mode = 'compare'", "it must be one of injected, rerun, isolated"),
        (f"{ROW}mode = 'isolated'\nsettings = {{a = 1}}", "an isolated replay starts no engine"),
        (f"{ROW}expect = 'green'", "it must be one of match, diverged, inconclusive"),
        (f"{ROW}cause = 'rounding'", 'needs expect = "diverged"'),
        (f"{ROW}accept = ['all']", "it must be a list of names of device, format, settings, weights"),
        (f"{ROW}name = ''", "it must be text, in quotes"),
        (f"{ROW}{ROW}", "Two rows of"),
        (f"[defaults]\ngolden = 'a'\n{ROW}", "The key 'golden' of [defaults]"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        load_checks(write(tmp_path, text))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_worked_upgrades_file_can_be_read() -> None:
    example = Path(__file__).parents[2] / "examples" / "upgrade" / "checks.toml"
    checks = load_checks(example).checks
    assert [(check.name, check.engine, check.mode) for check in checks] == [
        ("operators", "new", "injected"), ("tokens and logprobs", "new", "rerun"),
    ]  # fmt: skip
    assert (checks[0].model or Path()).resolve().is_dir()


def test_a_missing_file_and_one_that_is_no_text_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There is no file of checks .*none.toml; give the path of one."):
        load_checks(tmp_path / "none.toml")
    (tmp_path / "checks.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        load_checks(tmp_path / "checks.toml")


def test_rows_are_selected_by_their_names(tmp_path: Path) -> None:
    file = load_checks(write(tmp_path, FULL))
    assert [check.name for check in selected(file, ["dec*"])] == ["decode v1"]
    assert len(selected(file, [])) == 2
    with pytest.raises(UsageError, match=r"is called 'none'; there are 'decode v1', 'long'\."):
        selected(file, ["none"])


def verdict(outcome: str, cause: str | None = None) -> Verdict:
    side = Source({"name": "v1"}, "", None)
    return Verdict(outcome, "injected", cause, ("Because.",), side, side)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expect", "cause", "found", "code"),
    [
        ("match", None, ("match", None), 0),
        ("match", None, ("diverged", "operator"), 1),
        ("match", None, ("inconclusive", None), 3),
        ("diverged", None, ("diverged", "rounding"), 0),
        ("diverged", "rounding", ("diverged", "rounding"), 0),
        ("diverged", "rounding", ("diverged", "operator"), 1),
        ("diverged", None, ("match", None), 1),
        ("diverged", None, ("inconclusive", None), 3),
        ("inconclusive", None, ("inconclusive", "setting"), 0),
        ("inconclusive", None, ("match", None), 1),
    ],
)
def test_what_is_expected_counts_as_zero(
    expect: str, cause: str | None, found: tuple[str, str | None], code: int
) -> None:
    assert code_of(Check("a", "a", "v1", expect=expect, cause=cause), verdict(*found)) == code


def test_the_worst_row_decides() -> None:
    row = Check("a", "a", "v1")

    def worst(*codes: int) -> int:
        return Results(Path("checks.toml"), tuple(Result(row, code) for code in codes)).exit_code

    order = (2, 5, 4, 1, 3, 0)
    for number, code in enumerate(order):
        assert worst(*reversed(order[number:])) == code
    assert worst() == 0


def test_the_command_for_a_row_can_be_pasted() -> None:
    row = Check(
        "a", "/tmp/a b.trace", "v1", settings={"enforce_eager": False, "x": None, "d": "bfloat16"},
        model=Path("/m"), policy="strict", mode="rerun",
    )  # fmt: skip
    assert replay_command(row) == (
        "tracereplay replay '/tmp/a b.trace' --engine v1 --mode rerun --set enforce_eager=false --set x=null "
        "--set d=bfloat16 --model /m --strict"
    )


def test_a_lock_is_read_as_it_was_written_and_is_sorted(tmp_path: Path) -> None:
    path = tmp_path / "checks.lock"
    assert read_lock(path) == {}
    one = Locked(
        "a.pack", "0" * 32, 'vLLM\'s "new" norm', "2026-01-01", "w", "cpu", 2, {"x": None, "a": 1}, {"v": "1"}
    )
    write_lock(path, {"b\n": one, "a": one})
    assert read_lock(path) == {"a": one, "b\n": one}
    text = path.read_text()
    assert text.index("[check.a]") < text.index("[check.a.settings]\na = 1\nx = ") < text.index('[check."b\\n"]')


@pytest.mark.parametrize("text", ["[other]", "check = 1", "[check.a]\ndigest = 1", "[check.a]", "x ="])
def test_what_is_no_lock_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "checks.lock"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_lock(path)
