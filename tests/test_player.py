"""Lesson 02's player: what it draws is what was measured."""

from __future__ import annotations

import warnings

import pytest
import torch
from PIL import Image
from torch import nn

from course_lib import language, recompute
from course_lib.figures.picture import Picture, style
from course_lib.memory import measure
from course_lib.notebook import player
from course_lib.notebook.player import VALUE, Still, Value

WAYS = {
    "autograd function": recompute.Rerun.apply,
    "same random numbers": recompute.rerun_alike,
    "hooks": recompute.checkpoint,
}
COUNTS = range(1, 11)


def measured(segments, checkpoint, layers=10):
    """The same step, measured without the player."""
    model = nn.ModuleList(nn.SiLU() for _ in range(layers))
    x = torch.ones(VALUE // 4, requires_grad=True)
    return measure(
        lambda: recompute.chain(model, segments, x, checkpoint).sum().backward(), model, inputs=x
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("segments", COUNTS)
def test_the_counts_are_those_of_measure(segments, way):
    checkpoint = WAYS[way]
    film = player.film(segments=segments, checkpoint=checkpoint)
    trace = measured(segments, checkpoint)
    assert film.trace.peak == trace.peak
    small = (segments + 2) * recompute.RANDOM_STATE_BYTES + 64  # random states and the loss
    for moment in film.moments:
        if moment.event >= 0:
            assert moment.total == trace.events[moment.event].total
        assert 0 <= moment.total - len(moment.alive) * VALUE <= small
    assert max(len(moment.alive) for moment in film.moments) == trace.peak // VALUE


@pytest.mark.parametrize("segments", COUNTS)
def test_each_layer_works_three_times(segments):
    film = player.film(segments=segments)
    done = [(moment.doing, moment.layer) for moment in film.moments]
    layers = range(1, 11)
    assert done[0] == ("start", 0) and done[-1] == ("end", 0)
    assert done[1:11] == [("forward", layer) for layer in layers]
    for doing in ("recompute", "backward"):
        assert sorted(layer for what, layer in done if what == doing) == list(layers)


@pytest.mark.parametrize("segments", COUNTS)
def test_early_stop_leaves_out_the_last_layer_of_each_segment(segments):
    film = player.film(segments=segments, checkpoint=recompute.checkpoint)
    again = [moment.layer for moment in film.moments if moment.doing == "recompute"]
    assert len(again) == 10 - segments


@pytest.mark.parametrize("segments", COUNTS)
def test_segments_begin_where_chain_cuts(segments):
    starts = tuple(10 * i // segments for i in range(segments))
    assert player.film(segments=segments).starts == starts


def test_one_checkpoint_among_three_step_by_step():
    moments = player.film(segments=3).moments
    kept = {Value(0, "checkpoint"), Value(3, "checkpoint"), Value(6, "checkpoint")}
    assert kept <= set(moments[10].alive)
    assert set(moments[14].alive) == kept | {Value(i, "recomputed") for i in (7, 8, 9, 10)}
    assert set(moments[-1].alive) == {Value(0, "checkpoint"), Value(0, "gradient")}


def test_the_learners_own_chain_is_what_is_shown():
    def without_checkpoints(layers, segments, x, checkpoint):
        return nn.Sequential(*layers)(x)

    film = player.film(without_checkpoints)
    assert not any(moment.doing == "recompute" for moment in film.moments)
    assert max(moment.count("activation") for moment in film.moments) == 9


@pytest.fixture(params=["zh", "en", "both"])
def spoken(request, monkeypatch):
    monkeypatch.setattr(language.choice, "_chosen", request.param)
    return request.param


def test_every_position_can_be_drawn(spoken):
    films = [player.film(segments=segments) for segments in COUNTS]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph .* missing")
        for film in films:
            for moment in film.moments[:: 1 if film.segments in (1, 3, 10) else 7]:
                picture, still = Picture(player.SIZE), Still(film, moment, 13 * VALUE)
                with style():
                    player.draw(picture, still)
                picture.png()
                zh, en = player.caption(still)
                assert zh and en and all(player.title(still))


def test_the_caption_adds_up():
    film = player.film(segments=3)
    zh, en = player.caption(Still(film, film.moments[14], 13 * VALUE))
    assert en == (
        "3 checkpoints. Now 7.02 MiB: 3 checkpoints + 4 recomputed, of 1 MiB each. "
        "The peak of the whole step is 8.01 MiB."
    )
    assert zh == (
        "3 个检查点。现在 7.02 MiB：3 个检查点 + 4 个重算的值，每个 1 MiB。整步的峰值是 8.01 MiB。"
    )


class TestControls:
    @pytest.fixture
    def shown(self):
        shown = player.player()
        yield shown
        shown.close()

    def test_it_can_be_played_moment_by_moment(self, shown):
        assert shown.sliders[shown.played["slider"]]["name"] == "moment"
        shown.move(segments=3, moment=0)
        before = shown.caption
        shown.set_state({"index": [2, 14]})
        assert shown.values == {"segments": 3, "moment": 14}
        assert shown.caption != before

    def test_it_has_a_picture_where_no_widget_runs(self, shown):
        bundle = shown._repr_mimebundle_()
        assert bundle["text/plain"] and bundle["image/png"]


def test_the_animation_is_small_and_whole(tmp_path):
    file = tmp_path / "player.gif"
    player.export(file)
    with Image.open(file) as animation:
        assert animation.n_frames == 32
    assert file.stat().st_size < 1_500_000
