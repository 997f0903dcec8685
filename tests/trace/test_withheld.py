"""What stands for what is withheld, and which operators say too much."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracereplay.errors import UsageError
from tracereplay.event import Request, RowKey, Sampled, Site
from tracereplay.recorder.options import GraphOptions, Options
from tracereplay.trace.withheld import Withheld, key_in, new_key, withheld_slots

KEY = "ab" * 32


def sites(*names: str, role: str = "linear") -> list[Site]:
    return [Site(name, "Linear", number, role=role) for number, name in enumerate(names)]


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("model.embed_tokens", "model.layers.0.mlp", "model.layers.1.mlp", "model.norm", "lm_head"), {2}),
        (("gpt_neox.layers.0.a", "gpt_neox.layers.10.a", "gpt_neox.layers.2.a"), {1, 2}),
        (
            ("model.layers.7.a", "model.layers.8.a"),
            {1},
        ),  # a later part of the model: its first layer is withheld too
        (("visual.blocks.0.a", "visual.blocks.1.a", "visual.merger", "language.layers.0.a"), {1}),
        (("model.layers.1.experts.0.a", "model.layers.0.experts.5.a"), {0}),  # numbers of layers, not of experts
        (("a", "b.c"), set()),  # nobody knows where its first layer ends
    ],
)
def test_what_is_kept_of_a_model(names: tuple[str, ...], kept: set[int]) -> None:
    assert set(range(len(names))) - withheld_slots(sites(*names)) == kept


@pytest.mark.parametrize("role", ["embedding", "logits", "sampler"])
def test_what_is_a_token_by_its_role_is_withheld_wherever_it_is(role: str) -> None:
    found = [*sites("m.0.a", "m.1.a"), Site("m.2.embed", "E", 9, role=role)]
    assert withheld_slots(found) == {0, 9}


def test_options_leave_them_out() -> None:
    found = sites("m.0.a", "m.1.a", "m.2.a")
    assert Options(withhold=KEY).left_out(found) == {"in": {0}, "out": {0}}
    assert Options(withhold=KEY, sites=("m.1.*",), sides=("out",)).left_out(found)["out"] == {0, 2}
    assert GraphOptions("nothing", withhold=True).left_out(found) == {"in": {0}, "out": {0}}
    for options in (Options(withhold=KEY, recipients=("age1x",)), Options()):
        assert Options.from_dict(options.as_dict()) == options
    assert GraphOptions.from_dict(GraphOptions("nothing", withhold=True).as_dict()).withhold
    assert "Tokens were withheld" in Options(withhold=KEY).told()[0]


@pytest.mark.parametrize("key", ["", "ab", "AB" * 32, 5])
def test_another_key_is_refused(key: object) -> None:
    with pytest.raises(UsageError, match="a key of 64 hexadecimal digits"):
        Options.from_dict({"withhold": key})


def test_a_token_has_one_digest_at_each_place_and_another_at_others() -> None:
    one, again, other = Withheld(KEY), Withheld(KEY), Withheld(new_key())
    assert one.token(0, 1, 5) == again.token(0, 1, 5)
    found = [w.token(*place) for w in (one, other) for place in ((0, 1, 5), (0, 2, 5), (1, 1, 5), (0, 1, 6))]
    assert len(set(found)) == len(found)
    assert all(0 <= number < 1 << 61 for number in found)
    assert one.said() == again.said() != other.said()
    assert KEY not in str(one.said())


def test_a_prompt_and_what_was_sampled_behind_it_agree() -> None:
    withheld = Withheld(KEY)
    request = withheld.request(Request(3, 0, (5, 6), {"n": 2, "stop": ["secret"], "lora": {"name": "a"}}))
    assert request.prompt_token_ids == tuple(withheld.tokens(3, (5, 6)))
    assert request.sampling == {"n": 2, "lora": {"name": "a"}, "withheld": request.sampling["withheld"]}
    assert list(request.sampling["withheld"]) == ["stop"]
    assert "secret" not in str(request)
    sampled = withheld.sampled(Sampled(RowKey(3, 1, 2), 7, 8, -0.5))
    assert (sampled.token, sampled.choice, sampled.logprob) == (*(withheld.token(3, 2, t) for t in (7, 8)), None)
    said = {"requests": [{"request": 3, "sequence": 1, "token_ids": [7], "logprobs": [-0.5], "text": "secret",
                          "prompt_logprobs": [None, -1.0], "finish_reason": "stop"}], "seconds": 1.0}  # fmt: skip
    (result,) = withheld.results(said, [0, 0, 0, 2])["requests"]
    assert result == {
        "request": 3, "sequence": 1, "token_ids": [sampled.token], "logprobs": None, "prompt_logprobs": None,
        "finish_reason": "stop",
    }  # fmt: skip


def test_withholding_twice_changes_no_parameter() -> None:
    withheld = Withheld(KEY)
    once = withheld.sampling({"stop": ["a"], "seed": 1})
    assert withheld.sampling(once) == once


def test_a_key_file_is_made_once_for_its_owner(tmp_path: Path) -> None:
    made = key_in(tmp_path / "key")
    assert key_in(tmp_path / "key") == made
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    for text in ("", "xyz", "ab"):
        (tmp_path / "key").write_text(text)
        with pytest.raises(UsageError, match="does not hold 64 hexadecimal digits"):
            key_in(tmp_path / "key")
