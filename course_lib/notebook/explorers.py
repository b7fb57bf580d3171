"""Pictures that answer to sliders.

An explorer has three parts: ``frame``, a pure function from the controls' values to data; ``draw``,
which puts the data on a figure; and the binding, which is this module and, in the page,
``explorer.js``. What a slider shows is computed by ``frame`` from measurements, so it can be tested
at every position without a browser.

The pictures live in the page: a slider switches them there, without the kernel. The kernel draws
the one that is asked for, and whenever it is idle those that may be asked for next.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anywidget
import ipywidgets
import traitlets

from ..figures.picture import SIZE, Picture, Touchable, picture_widths, style
from ..language import LANGUAGES, Language, language, on_change, speaking, text
from .idle import kernel_shell, when_idle

Item = TypeVar("Item")
AROUND, ROW = 200, 32  # pixels: JupyterLab's bars and the caption; a slider
EVERY_COMBINATION = 500  # more than this many are too many to try one by one
AHEAD = 100  # positions around the one that is shown, drawn while nothing else is to be done
REMEMBERED = 2 * AHEAD  # pictures of an explorer, some ten KiB each

Position = tuple[int, ...]  # of each slider, where its value is among the control's
_PAGE = Path(__file__).parent / "page" / "course-page" / "static"
FRONT_END, STYLE_SHEET = _PAGE / "explorer.js", _PAGE / "explorer.css"


@dataclass(frozen=True)
class Control:
    """A slider that stops at each of ``values`` and begins at ``start``.

    Over ``(False, True)`` it is a box to tick.
    ``name``: the argument of ``frame`` that it sets. ``zh``, ``en``: what the learner reads
    beside it. ``show``: how a value is written; asked again when the language changes. Raises
    ``ValueError`` if ``start`` is not one of ``values``.
    """

    name: str
    zh: str
    en: str
    values: tuple
    start: Any
    show: Callable[[Any], str] = str

    def __post_init__(self) -> None:
        if self.start not in self.values:
            raise ValueError(f"control {self.name}: start {self.start!r} is not in {self.values}")

    def in_page(self) -> dict[str, Any]:
        """What the page needs: name, words (zh, en), and each value as it is written, by language.

        The words for "both" are those of ``show`` when both are in use.
        """
        labels = {}
        for spoken in LANGUAGES:
            with speaking(spoken):
                labels[spoken] = [str(self.show(value)) for value in self.values]
        found = {"name": self.name, "words": [self.zh, self.en], "labels": labels}
        return {**found, "toggle": True} if self.values == (False, True) else found

    def index(self, value: Any) -> int:
        """Where ``value`` is among the values. Raises ``ValueError`` if it is none of them."""
        if value not in self.values:
            raise ValueError(
                text(
                    zh=f"{self.name} 没有 {value!r} 这个位置，只有 {self.values}。",
                    en=f"{self.name} has no position {value!r}, only {self.values}.",
                )
            )
        return self.values.index(value)


@dataclass(frozen=True)
class Drawn:
    """A picture and what is to be seen in it: (zh, en).

    ``parts``: those that say something when they are touched.
    """

    png: bytes
    words: tuple[str, str]
    parts: Sequence[Touchable] = ()

    def in_page(self) -> dict[str, Any]:
        encoded = base64.b64encode(self.png).decode()
        found = {"src": f"data:image/png;base64,{encoded}", "words": list(self.words)}
        return {**found, **self.touched()}

    def touched(self) -> dict[str, Any]:
        """The parts as the page has them, if there are any."""
        return {"parts": [[*where, *words] for where, words in self.parts]} if self.parts else {}


class Explorer(anywidget.AnyWidget):
    """Sliders above a picture with a caption, all in the language in use.

    ``frame(**values)`` computes the data, ``draw(figure, data)`` draws it on an empty figure, and
    ``caption(data)`` says in one sentence what is to be seen: (zh, en). What any of them raises is
    shown in place of the caption and raised again. A cell that is run again closes the explorers
    that it had made before.
    """

    more_rows = 0  # of controls beside the sliders

    _esm = FRONT_END.read_text(encoding="utf-8")
    _css = STYLE_SHEET.read_text(encoding="utf-8")
    sliders = traitlets.List(traitlets.Dict()).tag(sync=True)
    # Not echoed: an echo of where a slider was would take it back from where it is now.
    index = traitlets.List(traitlets.Int()).tag(sync=True, echo_update=False)
    language = traitlets.Unicode().tag(sync=True)
    box = traitlets.Dict().tag(sync=True)  # how large the picture is
    played = traitlets.Dict().tag(sync=True)  # the slider that can be played, and milliseconds
    # By language and position. Each picture is sent once, by a message of its own: the page adds
    # it to what it has. Here, only the one on show is kept, for a page that is opened again.
    pictures = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        controls: Sequence[Control],
        frame: Callable[..., Any],
        draw: Callable[[Any, Any], None],
        caption: Callable[[Any], tuple[str, str]],
        size: tuple[float, float] = SIZE,
    ):
        self.controls = {control.name: control for control in controls}
        self._frame, self._draw, self._caption = frame, draw, caption
        self.size = size  # inches
        self._picture = Picture(size)
        self._drawn: dict[tuple[Language, Position], Drawn] = {}
        self._sent: set[str] = set()  # which of them the page has
        self._moving = False
        self._rows = len(controls) + self.more_rows
        position = tuple(control.index(control.start) for control in controls)
        self._shown = self._drawing(language(), position)
        key = _key(language(), position)
        self._sent.add(key)
        super().__init__(
            sliders=[control.in_page() for control in controls],
            index=list(position),
            language=language(),
            box={**dict(zip(("width", "height"), self._size(), strict=True)),
                 **dict(zip(("least", "most"), self.widths, strict=True))},
            pictures={key: self._shown.in_page()},
        )  # fmt: skip
        self.observe(self._moved, "index")
        self.on_msg(self._asked)
        when_idle(self._draw_ahead)
        self._stop_listening = _follow_language(self)
        _replace_predecessors(self)

    @property
    def values(self) -> dict[str, Any]:
        """Where the sliders stand."""
        return self._values_at(self._position())

    def _position(self) -> Position:
        return tuple(self.index)

    def _values_at(self, position: Position) -> dict[str, Any]:
        controls = zip(self.controls.items(), position, strict=True)
        return {name: control.values[index] for (name, control), index in controls}

    @property
    def caption(self) -> str:
        """The sentence below the picture, in the language in use."""
        return text(zh=self._shown.words[0], en=self._shown.words[1])

    def positions(self) -> Iterator[dict[str, Any]]:
        """Every combination of values; of too many, each control's with the others at start."""
        controls = self.controls.values()
        count = 1
        for control in controls:
            count *= len(control.values)
        if count <= EVERY_COMBINATION:
            for values in itertools.product(*(control.values for control in controls)):
                yield dict(zip(self.controls, values, strict=True))
            return
        start = {control.name: control.start for control in controls}
        for control in controls:
            for value in control.values:
                yield {**start, control.name: value}

    def move(self, **values: Any) -> None:
        """Set sliders from Python; the picture is drawn once.

        Raises ``ValueError`` for a value that its slider does not have, ``TypeError`` for a name
        that no slider has.
        """
        if unknown := values.keys() - self.controls.keys():
            wrong, known = ", ".join(sorted(unknown)), ", ".join(self.controls)
            raise TypeError(
                text(
                    zh=f"没有 {wrong} 这个滑块，只有 {known}。",
                    en=f"There is no slider {wrong}, only {known}.",
                )
            )
        there = {name: self.controls[name].index(value) for name, value in values.items()}
        here = zip(self.controls, self.index, strict=True)
        self._moving = True
        try:
            self.index = [there.get(name, index) for name, index in here]
        finally:
            self._moving = False
        self._redraw()

    def close(self) -> None:
        """Take the explorer off the page and forget it."""
        getattr(self, "_stop_listening", lambda: None)()
        super().close()

    def _moved(self, _: Any) -> None:
        if not self._moving:
            self._redraw()

    def _asked(self, _: Any, content: dict[str, Any], __: Any) -> None:
        """A page was opened: it has no picture but the one on show."""
        if content.get("hello"):
            self._sent.clear()
            for chosen, position in list(self._drawn):
                self._give(chosen, position)

    def _speak(self) -> None:
        """Show everything again, in the language now in use."""
        self.language = language()
        self._redraw()

    def _redraw(self) -> None:
        """Show the position where the sliders are, and see to those around it."""
        if not self.controls:  # it is drawn again because something has changed
            self._drawn.clear()
            self._sent.clear()
        chosen, position = language(), self._position()
        try:
            self._shown = self._drawing(chosen, position)
        except Exception as problem:
            said = {"problem": f"{type(problem).__name__}: {problem}"}
            self.send({"pictures": {_key(chosen, position): said}})
            raise
        self._give(chosen, position)
        # For a page that asks for everything. It is told nothing of this, and needs no more.
        self.pictures.clear()
        self.pictures[_key(chosen, position)] = self._shown.in_page()
        when_idle(self._draw_ahead)

    def _give(self, chosen: Language, position: Position) -> None:
        key = _key(chosen, position)
        if key not in self._sent:
            fresh = not self.controls and not self._sent
            self._sent.add(key)
            if drawn := self._drawn.get((chosen, position)):  # not forgotten meanwhile
                self.send({"pictures": {key: drawn.in_page()}, "fresh": fresh})

    def _drawing(self, chosen: Language, position: Position) -> Drawn:
        """The picture and its words, drawn now unless they have been before."""
        found = self._drawn.get((chosen, position))
        if found is not None:  # do not wait for what another thread is drawing
            return found
        with style(), speaking(chosen):  # one thread at a time
            found = self._drawn[chosen, position] = self._drawn_on(self._picture, position)
            if len(self._drawn) > REMEMBERED:
                del self._drawn[next(iter(self._drawn))]
        return found

    def _drawn_on(self, picture: Picture, position: Position) -> Drawn:
        data = self._frame(**self._values_at(position))
        picture.clear()
        self._draw(picture, data)
        return Drawn(picture.png(), self._caption(data), tuple(picture.touchable))

    def everywhere(
        self, chosen: Language, picture: Picture | None = None
    ) -> Iterator[tuple[Position, Drawn]]:
        """Each of :meth:`positions`, drawn on ``picture``, or on one of its own size.

        For pages that have no kernel to ask.
        """
        picture = picture or Picture(self.size)
        for values in self.positions():
            place = tuple(self.controls[name].index(value) for name, value in values.items())
            with style(), speaking(chosen):
                drawn = self._drawn_on(picture, place)
            yield place, drawn

    def _draw_ahead(self) -> bool:
        """Draw a picture that may be asked for next; False if none is left."""
        if self.comm is None:  # closed
            return False
        missing = (place for place in self._near() if place not in self._drawn)
        place = next(missing, None)
        if place is None:
            return False
        try:
            self._drawing(*place)
        except Exception:
            return False  # whoever moves a slider there will see it
        self._give(*place)
        return True

    def _near(self) -> Iterator[tuple[Language, Position]]:
        """What is on show in either language, and then what is one slider away from it."""
        shown, here = language(), self._position()
        yield shown, here
        for chosen in LANGUAGES[:2]:
            yield chosen, here
        for position in self._neighbours():
            yield shown, position

    def _neighbours(self) -> list[Position]:
        """Positions that are one slider away, the ends and the nearest first."""
        here = self._position()
        found = []
        for i, control in enumerate(self.controls.values()):
            last = len(control.values) - 1
            for index in range(last + 1):
                far = 0 if index in (0, last) else abs(index - here[i])
                found.append((far, (*here[:i], index, *here[i + 1 :])))
        return [position for _, position in sorted(found)[:AHEAD]]

    @property
    def width(self) -> int:
        """Pixels of the picture, where there is room for all of it."""
        return self._size()[0]

    @property
    def widths(self) -> tuple[str, str]:
        """How narrow and how wide the page shows the picture, as :func:`picture_widths` says it."""
        return picture_widths(self._size(), self._beside())

    def _size(self) -> tuple[int, int]:
        width, height = (round(length) for length in self._picture.bbox.size)
        return width, height

    def _beside(self) -> int:
        return AROUND + ROW * self._rows

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        view, _ = super()._repr_mimebundle_(**kwargs) or ({}, {})
        picture = base64.b64encode(self._shown.png).decode()
        return {**view, "image/png": picture, "text/plain": self.caption}


def _key(chosen: Language, position: Position) -> str:
    """What a picture is called between the kernel and the page."""
    return f"{chosen} {','.join(map(str, position))}"


def show(
    draw: Callable[[Any, Any], None],
    data: Any,
    caption: tuple[str, str] | Callable[[Any], tuple[str, str]],
    size: tuple[float, float] = SIZE,
) -> Explorer:
    """A picture without sliders that follows the language: :class:`Explorer` with one frame."""
    words = caption if callable(caption) else lambda _: caption
    return Explorer((), lambda: data, draw, words, size)


def _follow_language(explorer: Explorer) -> Callable[[], None]:
    """Have it speak after each change of language, without keeping it alive."""
    reference = weakref.ref(explorer)

    def changed() -> None:
        if (alive := reference()) is not None:
            alive._speak()

    stop = on_change(changed)
    weakref.finalize(explorer, stop)
    return stop


# ipywidgets keeps every widget for as long as the kernel lives, so a cell run ten times would
# leave ten explorers behind that all redraw when the language changes.
_made_by_cell: dict[str, tuple[int, list[weakref.ref[Explorer]]]] = {}


def _replace_predecessors(explorer: Explorer) -> None:
    """Close what an earlier run of the same cell made."""
    cell, run = _running_cell()
    if cell is None:
        return
    before, made = _made_by_cell.get(cell, (run, []))
    if before != run:
        for reference in made:
            if (old := reference()) is not None:
                old.close()
        made = []
    _made_by_cell[cell] = (run, [*made, weakref.ref(explorer)])


def _running_cell() -> tuple[str | None, int]:
    """The id that JupyterLab gives to the cell that is running, and which run this is."""
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None or not hasattr(shell, "get_parent"):
        return None, 0
    message = shell.get_parent()
    return message.get("metadata", {}).get("cellId"), shell.execution_count


def progress(items: Iterable[Item], *, zh: str, en: str) -> Iterator[Item]:
    """Go through ``items`` behind a progress bar, which is gone when the cell has run.

    ``zh``, ``en``: what takes so long. Nothing is left in the output, also after an error or an
    interrupt. Outside of a notebook there is no bar.
    """
    items = list(items)
    with _bar(len(items), text(zh=zh, en=en)) as advance:
        for done, item in enumerate(items):
            advance(done)
            yield item


@contextlib.contextmanager
def _bar(length: int, words: str) -> Iterator[Callable[[int], None]]:
    """A bar on display that counts; the value sets how far it has come."""
    from IPython.display import display

    shell = kernel_shell()
    if shell is None:
        yield lambda done: None
        return
    bar = ipywidgets.IntProgress(max=length, style={"description_width": "initial"})

    def advance(done: int) -> None:
        bar.value, bar.description = done, f"{words} {done} / {length}"

    advance(0)
    if hasattr(bar, "_repr_mimebundle_"):
        shown = display({**bar._repr_mimebundle_(), "text/plain": ""}, raw=True, display_id=True)
    else:  # ipywidgets 7, as on Colab
        shown = display(bar, display_id=True)

    def end(*_: Any) -> None:
        if bar.comm is not None:  # not closed yet
            # A view of a bar that is no more would be an error when the page is opened again.
            if shown is not None:
                shown.update({"text/plain": ""}, raw=True)
            bar.close()

    # An interrupted loop leaves its generator waiting, and the bar with it, until the cell ends.
    shell.events.register("post_run_cell", end)
    try:
        yield advance
    finally:
        shell.events.unregister("post_run_cell", end)
        end()
