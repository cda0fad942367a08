"""nanochat/conversations/english.py: the lists are in lower case and do not contradict each other."""

from __future__ import annotations

from nanochat.conversations import english
from nanochat.conversations.english import AFTER_A_VERB, AUXILIARIES, PAST_VERBS, PERSONS, PRESENT_VERBS, PRONOUNS


def test_the_words_are_in_lower_case() -> None:
    lists = {name: value for name, value in vars(english).items() if isinstance(value, frozenset)}
    assert len(lists) > 10
    for name, value in lists.items():
        assert value, name
        assert all(word == word.lower() and word.isascii() and " " not in word for word in value), name


def test_a_verb_is_no_pronoun_and_no_person() -> None:
    verbs = AUXILIARIES | PAST_VERBS | PRESENT_VERBS
    assert not verbs & (PRONOUNS | PERSONS | AFTER_A_VERB)
    assert "of" not in AFTER_A_VERB, 'in "the causes of war" the noun is no verb'
