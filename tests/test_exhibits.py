"""Every exhibit still fails, says it as loudly as it is labelled, and is cured by its cure.

Where a newer torch has mended one, its test says so: then the museum, not torch, is out of date.
"""

import dataclasses
import inspect
import re
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from course_lib import language
from course_lib.gradients import same_gradients
from course_lib.language import Table
from course_lib.lessons.torch_checkpoint import exhibit as exhibits
from course_lib.lessons.torch_checkpoint import museum as museum_module
from course_lib.lessons.torch_checkpoint.collection import (
    EXHIBITS,
    catalogue,
    exhibit_named,
    number_of,
)
from course_lib.lessons.torch_checkpoint.distributed import DISTRIBUTED, two_processes
from course_lib.lessons.torch_checkpoint.exhibit import LOUDNESS, Exhibit
from course_lib.lessons.torch_checkpoint.museum import (
    FIRST,
    Answers,
    Museum,
    code_html,
    issue_url,
    label,
    revelation,
)
from course_lib.notebook import answers
from support.contrast import ENOUGH, contrast

MENDED = (
    "torch {} no longer fails as exhibit '{}' shows: it {}. If that is a fix, take the exhibit out "
    "of the museum and out of lesson 03, or show it as history."
)

# Rows of the list of traps that the museum cannot hold, and why.
ELSEWHERE = {
    14: "nested checkpoints work: a cell of the lesson counts their calls",
    15: "early stop is an option: a cell of the lesson shows it",
    16: "autocast is restored: a cell of the lesson shows it",
    17: "two processes: see DISTRIBUTED",
    18: "two processes: see DISTRIBUTED",
    23: "nvidia-smi needs a GPU",
    26: "a cost, not a fault: a cell of the lesson times it",
}

# What same_gradients finds before any cure, by the first kind of difference.
FOUND_IN_GRADIENTS = {
    "frozen-input", "in-a-list", "dropout", "python-random", "late-binding", "more-tensors",
    "grad-of-weights", "rrelu", "compiled-eager",
}  # fmt: skip
FOUND_IN_BUFFERS = {"batch-norm"}
FOUND_BECAUSE_PLAIN_RAISES = {"weight-changed", "keyword-changed"}
ONLY_MEMORY = {"one-segment", "whole-model", "single-layers"}
ONLY_OPERATIONS = {"offload-policy"}


@pytest.fixture(autouse=True)
def english(monkeypatch):
    monkeypatch.setattr(language.choice, "_chosen", "en")


def names(chosen=EXHIBITS):
    return [pytest.param(exhibit, id=exhibit.name) for exhibit in chosen]


@pytest.mark.parametrize("exhibit", names())
def test_it_still_fails_as_labelled(exhibit: Exhibit):
    found = exhibit.inspect()
    heard = "\n".join(filter(None, [found.error, *found.warned]))
    said = f"is {found.loudness}, same_gradients finds {found.seen}. Heard: {heard or 'nothing'}"
    mended = MENDED.format(torch.__version__, exhibit.name, said)
    assert found.loudness == exhibit.loudness, mended
    assert found.seen == exhibit.seen, mended
    assert not exhibit.quoted or exhibit.quoted in heard, mended
    if exhibit.judge == "memory":
        plain, checkpointed = found.peaks
        assert checkpointed >= 0.99 * plain, mended
        assert found.agreement, "memory is what is wrong, not the results"
    if exhibit.judge == "operations":
        plain, checkpointed = found.flops
        assert checkpointed > 1.2 * plain, mended
        assert found.agreement, "operations are what is wrong, not the results"


@pytest.mark.parametrize("exhibit", names())
def test_its_cure_cures(exhibit: Exhibit):
    found = exhibit.inspect(cured=True)
    assert found.healthy, (found.error, found.warned, found.peaks, found.agreement.en)


@pytest.mark.parametrize("exhibit", names((*EXHIBITS, *DISTRIBUTED)))
def test_it_is_small_and_labelled_in_both_languages(exhibit):
    for code in (exhibit.code, exhibit.cure):
        lines = [line for line in code.splitlines() if line.strip()]
        assert len(lines) <= 10
        assert max(map(len, lines)) <= 96
    assert exhibit.code != exhibit.cure
    for zh, en in (exhibit.title, exhibit.why, exhibit.remedy):
        assert zh and en
        assert not re.search(r"[\u4e00-\u9fff]", en)
    for issue in exhibit.issues:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", issue)
        assert issue_url(issue).startswith("https://github.com/")


def test_every_trap_that_one_machine_can_show_is_here():
    shown = {exhibit.row for exhibit in (*EXHIBITS, *DISTRIBUTED)}
    assert set(range(1, 27)) <= shown | set(ELSEWHERE)
    assert len({exhibit.name for exhibit in EXHIBITS}) == len(EXHIBITS)
    assert [number_of(exhibit) for exhibit in EXHIBITS] == list(range(1, len(EXHIBITS) + 1))


def test_same_gradients_finds_every_silent_one_that_numbers_can_show():
    unheard = {exhibit.name: exhibit for exhibit in EXHIBITS if exhibit.loudness != "error"}
    kinds = {name: (e.seen or "").partition(" ")[0] for name, e in unheard.items()}
    assert {name for name, kind in kinds.items() if kind == "gradient"} == FOUND_IN_GRADIENTS
    assert {name for name, kind in kinds.items() if kind == "buffer"} == FOUND_IN_BUFFERS
    assert {n for n, kind in kinds.items() if kind == "error"} == FOUND_BECAUSE_PLAIN_RAISES
    unseen = {name for name, kind in kinds.items() if not kind}
    assert unseen == ONLY_MEMORY | ONLY_OPERATIONS | {"left-out"}, (
        "left-out only warns: its results are right"
    )


# --- what the labels claim beyond the verdict -----------------------------------------------------


def altered(name: str, *changes: str):
    """The exhibit with some things in its code replaced, old by new, inspected."""
    exhibit = exhibit_named(name)
    code = exhibit.code
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in code
        code = code.replace(old, new)
    return dataclasses.replace(exhibit, code=code).inspect()


def test_more_tensors_raises_without_early_stop():
    found = altered("more-tensors", "use_reentrant=False", "use_reentrant=False, early_stop=False")
    assert "trying to save more tensors during recomputation" in found.error


def test_eval_too_early_is_silent_with_the_old_implementation():
    found = altered(
        "eval-too-early", "model, x, use_reentrant=False",
        "model, x.requires_grad_(), use_reentrant=True",
    )  # fmt: skip
    assert found.loudness == "silent" and found.seen == "gradient 0.weight"


def test_eval_too_early_raises_something_else_with_the_old_one_where_x_needs_no_gradient():
    found = altered("eval-too-early", "use_reentrant=False", "use_reentrant=True")
    assert "does not require grad" in found.error


def test_a_generator_of_ones_own_is_not_restored_either():
    found = altered(
        "python-random",
        "def block(x)", "mine = torch.Generator().manual_seed(1)\ndef block(x)",
        "random.uniform(0.5, 1.5)", "torch.rand(8, generator=mine)",
    )  # fmt: skip
    assert found.loudness == "silent" and found.seen == "gradient weight"
    found = altered("python-random", "random.uniform(0.5, 1.5)", "torch.rand(8)")
    assert found.healthy, "the default generator is"


def test_a_tensor_in_a_list_is_not_guarded_though_the_list_is_passed_by_position():
    found = altered(
        "keyword-changed",
        "block(x, scale):", "block(x, scales):\n    (scale,) = scales",
        "scale=scale.fill_(1)", "[scale.fill_(1)]",
    )  # fmt: skip
    assert found.loudness == "silent" and found.seen == "error plain"


def test_a_checkpoint_around_each_linear_costs_no_flops_and_its_cure_does():
    exhibit = exhibit_named("single-layers")
    plain, checkpointed = exhibit.inspect().flops
    assert checkpointed == plain
    plain, checkpointed = exhibit.inspect(cured=True).flops
    assert checkpointed > plain
    assert "FLOPs +0%" in revelation(exhibit, exhibit.inspect(), exhibit.inspect(cured=True))


def test_one_checkpoint_does_lower_the_peak_where_a_large_output_layer_is_left_outside():
    head = "model.append(nn.Linear(8, 4096))\nx = torch.randn(256, 8)"
    found = altered(
        "whole-model", "x = torch.randn(256, 8)", head,
        "return checkpoint(model, x,", "return model[-1](checkpoint(model[:-1], x,",
        "use_reentrant=False)", "use_reentrant=False)).square()",
    )  # fmt: skip
    plain, checkpointed = found.peaks
    assert checkpointed < 0.95 * plain


def test_torch_compile_restores_random_numbers_whatever_it_is_told():
    torch._dynamo.reset()
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)), torch.randn(16, 8)
    off = {"use_reentrant": False, "preserve_rng_state": False}

    def gradient(run):
        model.zero_grad()
        torch.manual_seed(0)
        run(x).sum().backward()
        return model[0].weight.grad.clone()

    wrapped = lambda x: checkpoint(model, x, **off)  # noqa: E731
    right = gradient(model)
    assert not torch.equal(gradient(wrapped), right)
    assert torch.equal(gradient(torch.compile(wrapped, backend="aot_eager")), right)


def test_a_tensor_passed_by_position_raises_the_alarm():
    found = altered("keyword-changed", "scale=scale.fill_(1)", "scale.fill_(1)")
    assert "modified by an inplace operation" in found.error


def test_torch_func_fails_with_the_old_implementation_too():
    found = altered("torch-func", "use_reentrant=False", "use_reentrant=True")
    assert "setup_context" in found.error


def test_autograd_grad_meets_the_same_refusal_as_backward_with_inputs():
    x = torch.randn(2, 8, requires_grad=True)
    y = checkpoint(torch.sin, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="incompatible with"):
        torch.autograd.grad(y.sum(), x)


def test_an_ordinary_checkpoint_can_go_backward_twice():
    model, x = nn.Linear(8, 8), torch.randn(4, 8)

    def step(run):
        y = run(model, x)
        y.sum().backward(retain_graph=True)
        y.square().sum().backward()

    assert same_gradients(
        lambda: step(exhibits.call),
        lambda: step(lambda *a: checkpoint(*a, use_reentrant=False)),
        model=model,
    )


def test_rrelu_is_well_where_it_does_not_end_the_block():
    found = altered("rrelu", "nn.RReLU()", "nn.RReLU(), nn.Linear(8, 8)")
    assert found.healthy


def test_the_late_binding_lambda_is_cured_by_a_default_too():
    assert altered("late-binding", "lambda x: layer(x)", "lambda x, layer=layer: layer(x)").healthy


# --- the annexe -----------------------------------------------------------------------------------


def test_the_annexe_fails_and_is_cured_in_two_processes():
    codes = [code for exhibit in DISTRIBUTED for code in (exhibit.code, exhibit.cure)]
    static = DISTRIBUTED[0].code.replace("_parameters=True", "_parameters=True, static_graph=True")
    louder = DISTRIBUTED[1].altered[1]
    *found, with_static_graph, before_it = two_processes([*codes, static, louder])
    for place, exhibit in enumerate(DISTRIBUTED):
        before, after = found[2 * place], found[2 * place + 1]
        if exhibit.quoted:
            assert before.error and exhibit.quoted in before.error
        else:
            assert before.error is None and before.apart > 0.01
        assert after.healthy
    assert with_static_graph.healthy
    assert "ready only once" in before_it.error


# --- the museum -----------------------------------------------------------------------------------


def test_the_label_keeps_the_secret_and_the_revelation_tells_all():
    exhibit = exhibit_named("batch-norm")
    shown = label(exhibit)
    assert "BatchNorm counts every batch twice" in shown and "buffers_kept" not in shown
    told = revelation(exhibit, exhibit.inspect(), exhibit.inspect(cured=True))
    for words in ("1.running_mean", "buffers_kept", "pytorch/pytorch/issues/96136", "silent"):
        assert words in told


def test_a_first_guess_counts_and_a_second_does_not():
    museum = Museum(EXHIBITS[:3])
    museum.go_to("frozen-input")
    museum.guess("silent")
    assert (museum.right, len(museum.guesses)) == (0, 1)
    museum.guess("warning")
    assert museum.right == 0
    museum.go_to("left-out")
    museum.guess("warning")
    assert museum.right == 1


def test_the_score_survives_a_restart(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_LANG", raising=False)
    monkeypatch.setattr(language.choice, "_chosen", "en")
    monkeypatch.setattr(answers, "memory_folder", lambda: tmp_path)
    museum = Museum(EXHIBITS[:3])
    museum.go_to("frozen-input")
    museum.guess("silent")
    museum.go_to("left-out")
    museum.guess("warning")
    monkeypatch.setattr(answers, "_here", {})
    again = Museum(EXHIBITS[:3])
    assert (again.right, len(again.guesses)) == (1, 2)
    assert "guessed 2 of 3, 1 of them right" in again._score.value
    again.go_to("frozen-input")
    assert "guessed this one before" in again._answer.value
    assert again._buttons["silent"].icon == "times" and again._buttons["warning"].icon == "check"
    again.guess("warning")
    assert again.right == 1 and "same_gradients" in again._answer.value


def test_a_guess_that_was_stopped_is_no_guess(monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    museum = Museum(EXHIBITS[:3])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Exhibit, "inspect", stopped)
        museum.guess("silent")
    assert not museum.guesses
    museum.guess("error")
    assert len(museum.guesses) == 1


def test_right_and_wrong_are_told_by_sign_and_by_a_colour_that_can_be_read():
    museum = Museum(EXHIBITS[:3])
    museum.go_to("frozen-input")
    look = lambda: {  # noqa: E731
        name: (button.icon, button.style.button_color, button.style.text_color)
        for name, button in museum._buttons.items()
    }
    plain = dict.fromkeys(look(), ("", None, None))
    assert look() == plain
    museum.guess("silent")
    answered = look()
    assert [answered[name][0] for name in ("warning", "silent", "error")] == ["check", "times", ""]
    for _, behind, ink in (answered["warning"], answered["silent"]):
        assert contrast(ink, behind) >= ENOUGH
    museum.go_to("left-out")
    assert look() == plain


def test_nothing_runs_before_the_guess(monkeypatch):
    monkeypatch.setattr(Exhibit, "inspect", lambda *_: pytest.fail("ran"))
    museum = Museum()
    for exhibit in EXHIBITS:
        museum.go_to(exhibit.name)
    bundle = museum._repr_mimebundle_()
    assert "BatchNorm" in bundle["text/plain"] and "<details>" in bundle["text/html"]


def test_the_buttons_lead_through_all_of_them_five_first(monkeypatch):
    monkeypatch.setattr(Exhibit, "inspect", lambda *_: pytest.fail("ran"))
    museum = Museum()
    back, on = museum._moves[-1], museum._moves[1]
    seen = [museum.exhibit.name]
    assert back.disabled and "these 5 first (★): 1 of 5" in museum._place.value
    while not on.disabled:
        on.click()
        seen.append(museum.exhibit.name)
    assert seen[:5] == list(FIRST) and sorted(seen) == sorted(e.name for e in EXHIBITS)
    assert f"the rest: {(rest := len(EXHIBITS) - len(FIRST))} of {rest}" in museum._place.value
    museum.move(1)
    assert museum.exhibit.name == seen[-1]
    back.click()
    assert museum.exhibit.name == seen[-2]
    assert sum("★" in label for label, _ in museum._pick.options) == 5


def test_the_first_five_are_of_every_loudness():
    assert {exhibit_named(name).loudness for name in FIRST} == set(LOUDNESS)


def test_the_answers_are_folded_until_they_are_asked_for(monkeypatch):
    monkeypatch.setattr(museum_module, "catalogue", lambda: pytest.fail("ran"))
    answers = Answers()
    stored = str(answers._repr_mimebundle_()["text/plain"])
    assert "folded" in stored and not any(e.title[1] in stored for e in EXHIBITS)
    table = Table([("答案", "answer")], [["42"]])
    monkeypatch.setattr(museum_module, "catalogue", lambda: table)
    answers._button.click()
    assert answers.unfolded and "42" in answers._table.value
    assert answers._button.description == "fold the answers"
    answers._button.click()
    assert not answers.unfolded and answers._table.value == ""


def test_the_museum_follows_the_language(monkeypatch):
    museum = Museum()
    language.choose("zh")
    assert "没写" in museum._pick.options[0][0]
    language.choose("en")
    assert "left out" in museum._pick.options[0][0]


def test_the_marked_lines_are_those_that_changed():
    shown = code_html("a = 1\nb = 3\n", "a = 1\nb = 2\n")
    assert shown.count("<span") == 1 and "b = 3</span>" in shown


def test_the_catalogue_lists_all_with_verdicts():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = catalogue()
    assert len(table.rows) == len(EXHIBITS)
    assert "✗" not in "".join(row[-1][1] for row in table.rows)
    assert "the gradient of 0.weight" in str(table)


def test_what_is_shown_is_what_runs():
    source = inspect.getsource(exhibits._prepared)
    assert "compile(source" in source
    with pytest.raises(KeyError, match="No exhibit"):
        exhibit_named("nonsense")
