"""A thousand spoiled files, other ones each time: `pytest -m campaign tests/campaign`."""

import os
import secrets

import pytest
from mutations import campaign

SEED = int(os.environ.get("TINYFLASH_SEED", secrets.randbelow(10**9)))


@pytest.mark.campaign
def test_a_spoiled_file_is_refused_or_right(capsys):
    figures, bad = campaign(1000, SEED)
    with capsys.disabled():
        print(f"\nTINYFLASH_SEED={SEED}: {dict(figures)}")
    assert bad == []
