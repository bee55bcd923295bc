"""How the operator sets kopf up."""

from finetune_operator.__main__ import KOPF_BACKOFFS


def test_kopf_goes_on_for_ten_minutes_and_is_never_long_away() -> None:
    assert sum(KOPF_BACKOFFS) >= 600
    assert max(KOPF_BACKOFFS) <= 30
