"""Every advice of the program is followed by a test, or listed here with the reason why not."""

from __future__ import annotations

import pytest

from tests.cli.advice import find_advice, find_followed, is_followed

NOT_FOLLOWED = {
    "Install the version of this program that made them.": "there is no other version yet",
    "Give the scan of a stained section, such as one in haematoxylin and eosin.": (
        "of fluorescence there is no other scan to give"
    ),
    "Free some space, or send it elsewhere.": (
        "the runner of commands captures standard output; see test_streams.py"
    ),
    "Install what is missing with pip, or download it.": "it needs the network",
    "Look at them on the page": "the page of mil preview is for the eyes",
    "Rename the entry point of …, or uninstall it.": "no package is installed in the tests",
    "The first: …": "an example of a finding that has no advice of its own",
    "The first: ….": "an example of a finding that has no advice of its own",
    ", but it ranks patients better than chance: see 'mil recalibrate'": (
        "a note on the page of mil evaluate; the command is followed in test_advice_on_runs.py"
    ),
}  # fmt: skip
"""Texts of the source, with … for values, and why no test does what they say."""


@pytest.mark.ci
def test_every_advice_is_followed_by_a_test_or_listed_with_a_reason() -> None:
    followed = "\n".join(find_followed()).replace("\\", "")
    advice = list(find_advice())
    assert len(advice) > 250
    left = {one.text: f"{one.path}:{one.line}" for one in advice
            if not is_followed(one.text, followed)}  # fmt: skip
    new = {place: text for text, place in left.items() if text not in NOT_FOLLOWED}
    assert not new, "do what the advice says in a test (follow_advice), or list it with a reason"
    assert not NOT_FOLLOWED.keys() - left.keys(), "followed by now, or no longer in the source"


def test_an_advice_counts_as_followed_by_enough_of_its_words_only() -> None:
    advice = "Give … with --labels, or leave the option out."
    assert is_followed(advice, "said: with --labels, or leave the option")
    assert not is_followed(advice, "Give it with --labels")
