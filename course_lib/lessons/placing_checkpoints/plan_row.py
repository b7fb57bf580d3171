"""Placements worth comparing, one after the other, for pages where nobody can place their own."""

from __future__ import annotations

from ...language import text
from ...notebook.explorers import Control, Explorer
from ...plans.plan import Chain, Plan, predict
from ...plans.planners import best_plan, even_plan, keep_all, smallest_peak, sqrt_plan
from .placed import PLACED, Placed, draw_placement, say_placement

Names = tuple[str, str]  # (zh, en)
ROOM = (0.35, 0.7)  # budgets between the least that is possible and none needed, as shares


def worth_comparing(chain: Chain, budget: int) -> dict[Names, Plan]:
    """The usual plans, the usual mistakes, and the best plan of several budgets, by name."""
    count = len(chain)
    everything = tuple(range(count))
    largest = max(everything, key=lambda i: chain.layers[i].kept)
    one = {
        "last": Plan((*everything[:-1], everything[-1:])),
        "largest": Plan(tuple((i,) if i == largest else i for i in everything)),
    }
    plans: dict[Names, Plan] = {
        ("全部保留", "keep everything"): keep_all(chain),
        ("一个检查点包住全部", "one checkpoint around all"): Plan((everything,)),
        ("只包最后一层", "the last layer only"): one["last"],
        ("只包最大的一层", "the largest layer only"): one["largest"],
        ("每层一段", "one segment per layer"): even_plan(chain, count),
        ("隔一层包一层", "every second layer"): Plan(
            tuple((i,) if i % 2 else i for i in everything)
        ),
        ("√n 段", "√n segments"): sqrt_plan(chain),
    }
    lowest = smallest_peak(chain)
    plain, least = predict(keep_all(chain), chain).peak, lowest.prediction.peak
    for share in ROOM:
        room = least + round(share * (plain - least))
        name = f"{room / plain:.0%}"
        plans[f"峰值降到 {name} 的最优方案", f"the best plan for {name} of the peak"] = best_plan(
            chain, room
        ).plan
    plans["峰值最低的方案", "the lowest peak there is"] = lowest.plan
    plans["这个预算的最优方案", "the best plan for this budget"] = best_plan(chain, budget).plan
    return plans


def plans_explorer(chain: Chain, budget: int) -> Explorer:
    """A slider through :func:`worth_comparing`, each judged as a learner's own placement is."""
    plans, best = worth_comparing(chain, budget), best_plan(chain, budget)
    names = tuple(plans)
    control = Control(
        "plan", "方案", "plan", names, names[0], lambda name: text(zh=name[0], en=name[1])
    )

    def frame(plan: Names) -> Placed:
        return Placed(chain, budget, plans[plan], predict(plans[plan], chain), best)

    return Explorer([control], frame, draw_placement, say_placement, size=PLACED)
