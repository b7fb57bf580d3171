"""Several processes of one training: they meet, and none is left whatever happens."""

import json
import subprocess

import pytest

from course_lib.language import choice
from course_lib.processes import run_ranks

MEET = """
import datetime, json, os
import torch, torch.distributed as dist
rank, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
for turn in range(2):
    dist.init_process_group(
        "gloo", init_method=f"{os.environ['MEETING_POINT']}-{turn}", rank=rank, world_size=world,
        timeout=datetime.timedelta(seconds=30),
    )
    mine = torch.tensor([2.0**rank])
    dist.all_reduce(mine)
    dist.destroy_process_group()
    print(json.dumps([rank, turn, mine.item(), "重算"], ensure_ascii=False))
"""
HANG = "import time; time.sleep(60)"
ONE_FAILS = f"import os\nif os.environ['LOCAL_RANK'] == '1': raise SystemExit('坏 no luck')\n{HANG}"


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen]:
    """The processes that were started meanwhile."""
    all_of_them, popen = [], subprocess.Popen

    def start(*arguments, **options):
        all_of_them.append(popen(*arguments, **options))
        return all_of_them[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return all_of_them


def test_ranks_meet_and_meet_again_and_what_they_print_is_told_by_rank(started):
    printed = run_ranks(["-c", MEET], 2, 90)
    lines = [[json.loads(line) for line in lines.splitlines()] for lines in printed]
    assert lines == [[[rank, turn, 3.0, "重算"] for turn in range(2)] for rank in range(2)]
    assert [process.poll() for process in started] == [0, 0]


@pytest.mark.parametrize(
    ("code", "seconds", "words", "zh"),
    [(ONE_FAILS, 60, "died.*\n坏 no luck", "出错退出"), (HANG, 0.2, "within 0.2 s", "已经停掉")],
)
def test_ranks_that_fail_or_hang_are_ended_at_once(started, monkeypatch, code, seconds, words, zh):
    for chosen, expected in (("en", words), ("zh", zh)):
        monkeypatch.setattr(choice, "_chosen", chosen)
        with pytest.raises(RuntimeError, match=expected):
            run_ranks(["-c", code], 2, seconds)
    assert len(started) == 4 and all(process.poll() is not None for process in started)
