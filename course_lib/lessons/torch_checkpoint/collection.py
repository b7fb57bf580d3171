"""The museum's exhibits: each way in which checkpointing fails, in the order of the rooms."""

from __future__ import annotations

from ...language import Table, text
from .exhibit import LOUDNESS, Exhibit, Inspection
from .exhibits import (
    batch_norm,
    budget_elsewhere,
    compiled_eager,
    dropout,
    eval_too_early,
    fewer_tensors,
    frozen_input,
    grad_of_input,
    grad_of_weights,
    in_a_list,
    in_place,
    keyword_changed,
    keyword_reentrant,
    late_binding,
    left_out,
    more_tensors,
    offload_policy,
    one_segment,
    operator_packet,
    python_random,
    rrelu,
    selective_twice,
    single_layers,
    too_many_segments,
    torch_func,
    unpacked_twice,
    weight_changed,
    whole_model,
)


def catalogue() -> Table:
    """All exhibits, run now: how loud each is, what ``same_gradients`` says before and after."""
    rows = []
    for exhibit in EXHIBITS:
        before, after = exhibit.inspect(), exhibit.inspect(cured=True)
        rows.append(
            [
                number_of(exhibit),
                exhibit.title,
                LOUDNESS[before.loudness],
                _found(before),
                ("✓ 已治好", "✓ cured") if after.healthy else ("✗ 仍有问题", "✗ still broken"),
            ]
        )
    return Table(
        [
            ("№", "№"),
            ("展品", "exhibit"),
            ("动静", "how loud"),
            ("same_gradients 说", "same_gradients says"),
            ("治疗之后", "after the cure"),
        ],
        rows,
    )


def number_of(exhibit: Exhibit) -> int:
    """Its number in the catalogue: its place, from 1."""
    return EXHIBITS.index(exhibit) + 1


def _found(inspection: Inspection) -> tuple[str, str]:
    first = inspection.agreement.first
    if first is None:
        return "看不出不同", "sees no difference"
    zh, en = first.short
    return f"✗ {zh}", f"✗ {en}"


def exhibit_named(name: str) -> Exhibit:
    """The exhibit of that name. Raises ``KeyError`` if there is none."""
    for exhibit in EXHIBITS:
        if exhibit.name == name:
            return exhibit
    raise KeyError(
        text(
            zh=f"没有叫 {name!r} 的展品；有：{'、'.join(e.name for e in EXHIBITS)}。",
            en=f"No exhibit is called {name!r}; there are {', '.join(e.name for e in EXHIBITS)}.",
        )
    )


EXHIBITS: tuple[Exhibit, ...] = tuple(
    room.EXHIBIT
    for room in (
        left_out,
        frozen_input,
        in_a_list,
        dropout,
        python_random,
        batch_norm,
        in_place,
        weight_changed,
        keyword_changed,
        late_binding,
        fewer_tensors,
        more_tensors,
        eval_too_early,
        keyword_reentrant,
        grad_of_input,
        grad_of_weights,
        torch_func,
        one_segment,
        too_many_segments,
        whole_model,
        single_layers,
        operator_packet,
        selective_twice,
        budget_elsewhere,
        rrelu,
        unpacked_twice,
        offload_policy,
        compiled_eager,
    )
)
