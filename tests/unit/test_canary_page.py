"""The page of a canary fits into a narrow window."""

from __future__ import annotations

import re

from mtv_core.canary_gate import GateCheck
from mtv_core.canary_page import checks_table


def test_what_a_check_means_is_below_its_name_not_beside_the_verdict() -> None:
    checks = [
        GateCheck(name="depth.max_abs_rel", value=0.5, limit=0.1, passed=False, meaning="median of <AbsRel>"),
        GateCheck(name="depth.min_skill", value=None, limit=0.2, passed=True, meaning="skill"),
    ]
    head, *rows = re.findall(r"<tr>(.*?)</tr>", checks_table(checks))
    cells = [re.findall(r"<t[hd](?: [^>]*)?>.*?</t[hd]>", row) for row in (head, *rows)]
    assert [len(row) for row in cells] == [4, 4, 4]
    assert all(said in cells[1][0] for said in ("depth.max_abs_rel", "median of &lt;AbsRel&gt;"))
    assert "failed" in cells[1][-1]
    assert "passed" in cells[2][-1]
