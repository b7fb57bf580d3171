"""Pictures that answer to sliders.

An explorer has three parts: ``frame``, a pure function from the controls' values to data; ``draw``,
which puts the data on a figure; and the binding, which is this module. What a slider shows is
computed by ``frame`` from measurements, so it can be tested at every position without a browser.
"""

from __future__ import annotations

import base64
import contextlib
import html
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ipywidgets

from .figures import SIZE, Picture, image_html, picture_widths, style
from .idle import kernel_shell, when_idle
from .language import columns, language, on_change, spoken, text
from .names import Names

Item = TypeVar("Item")
AROUND, ROW = 200, 32  # pixels: JupyterLab's bars and the caption; a slider
EVERY_COMBINATION = 500  # more than this many are too many to try one by one
AHEAD = 100  # positions around the one that is shown, drawn while nothing else is to be done
REMEMBERED = 2 * AHEAD  # pictures of an explorer, some ten KiB each


@dataclass(frozen=True)
class Control:
    """A slider that stops at each of ``values`` and begins at ``start``.

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

    def options(self) -> list[tuple[str, Any]]:
        """What ``ipywidgets`` wants: (label, value)."""
        return [(self.show(value), value) for value in self.values]

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


class Explorer(ipywidgets.VBox):
    """Sliders above a picture with a caption, all in the language in use.

    ``frame(**values)`` computes the data, ``draw(figure, data)`` draws it on an empty figure, and
    ``caption(data)`` says in one sentence what is to be seen: (zh, en). What any of them raises is
    shown in place of the caption and raised again. A cell that is run again closes the explorers
    that it had made before.
    """

    more_rows = 0  # of controls beside the sliders

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
        self._picture = Picture(size)
        self._drawn: dict[tuple, tuple[bytes, tuple[str, str]]] = {}  # by language and position
        self._png, self._words = b"", ("", "")
        self._sliders = {control.name: self._slider(control) for control in controls}
        self._names = Names()
        self._name_sliders()
        self._shown = ipywidgets.HTML()
        self._moving = False
        self._rows = len(controls) + self.more_rows
        named = [self._names] if controls else []  # a picture alone has its alternative text
        super().__init__([*self._sliders.values(), self._shown, *named])
        self.add_class("course-explorer")
        self.add_class("course-named")
        self._redraw()
        for slider in self._sliders.values():
            slider.observe(self._slid, "index")
        self._stop_listening = _follow_language(self)
        _replace_predecessors(self)

    @property
    def values(self) -> dict[str, Any]:
        """Where the sliders stand."""
        return self._values_at(self._position())

    def _position(self) -> tuple[int, ...]:
        return tuple(slider.index for slider in self._sliders.values())

    def _values_at(self, position: tuple[int, ...]) -> dict[str, Any]:
        controls = zip(self.controls.items(), position, strict=True)
        return {name: control.values[index] for (name, control), index in controls}

    @property
    def caption(self) -> str:
        """The sentence below the picture, in the language in use."""
        return text(zh=self._words[0], en=self._words[1])

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
        indices = {name: self.controls[name].index(value) for name, value in values.items()}
        with self._without_redrawing():
            for name, index in indices.items():
                self._sliders[name].index = index
        self._redraw()

    def close(self) -> None:
        """Take the explorer off the page and forget it."""
        getattr(self, "_stop_listening", lambda: None)()
        parts = (getattr(self, name, None) for name in ("_shown", "_names"))
        for part in (*getattr(self, "_sliders", {}).values(), *parts):
            if part is not None:
                part.close()
        super().close()

    def _slider(self, control: Control) -> ipywidgets.SelectionSlider:
        return ipywidgets.SelectionSlider(
            options=control.options(),
            index=control.index(control.start),
            continuous_update=True,
            layout={"width": "100%", "max_width": f"{self._picture.bbox.width:.0f}px"},
        )

    def _name_sliders(self) -> None:
        """Say what each slider sets; the tracks of several begin below one another."""
        names = {name: text(zh=c.zh, en=c.en) for name, c in self.controls.items()}
        width = f"{0.6 * max(map(columns, names.values()), default=0) + 0.5:.1f}em"
        for name, slider in self._sliders.items():
            slider.description, slider.style.description_width = names[name], width

    def _slid(self, _: Any) -> None:
        if not self._moving:
            self._redraw()

    @contextlib.contextmanager
    def _without_redrawing(self) -> Iterator[None]:
        self._moving = True
        try:
            yield
        finally:
            self._moving = False

    def _speak(self) -> None:
        """Say everything again, in the language now in use."""
        self._name_sliders()
        with self._without_redrawing():
            for name, control in self.controls.items():
                slider = self._sliders[name]
                index, options = slider.index, control.options()
                if options != list(slider.options):  # setting them moves the slider to the first
                    slider.options = options
                    slider.index = index
        self._redraw()

    def _redraw(self) -> None:
        try:
            self._png, self._words = self._drawing(self._position())
        except Exception as problem:
            self._shown.value = _broken(problem)
            raise
        self._shown.value = self._page()
        if self._sliders:
            when_idle(self._draw_ahead)

    def _drawing(self, position: tuple[int, ...]) -> tuple[bytes, tuple[str, str]]:
        """The picture and its words, drawn now unless they have been before."""
        place = language(), position
        found = self._drawn.get(place)
        if found is not None:  # do not wait for what another thread is drawing
            return found
        with style():  # one thread at a time
            data = self._frame(**self._values_at(position))
            self._picture.clear()
            self._draw(self._picture, data)
            found = self._picture.png(), self._caption(data)
            if self._sliders:  # what has none is drawn for something that changes
                self._drawn[place] = found
                if len(self._drawn) > REMEMBERED:
                    del self._drawn[next(iter(self._drawn))]
        return found

    def _draw_ahead(self) -> bool:
        """Draw a position that a slider may be moved to next; False if none is left."""
        if self.comm is None:  # closed
            return False
        spoken = language()
        near = (p for p in self._neighbours() if (spoken, p) not in self._drawn)
        position = next(near, None)
        if position is None:
            return False
        try:
            self._drawing(position)
        except Exception:
            return False  # whoever moves a slider there will see it
        return True

    def _neighbours(self) -> list[tuple[int, ...]]:
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

    def _page(self) -> str:
        """Picture and caption in one piece, so that they change together."""
        width = self.width
        png = base64.b64encode(self._png).decode()
        return (
            image_html(png, self.caption, self._size(), self._beside())
            + f'<div style="line-height:1.5;max-width:{width}px">{spoken(*self._words)}</div>'
        )

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        bundle = super()._repr_mimebundle_(include=include, exclude=exclude) or {}
        picture = base64.b64encode(self._png).decode()
        return {**bundle, "image/png": picture, "text/plain": self.caption}


def show(
    draw: Callable[[Any, Any], None],
    data: Any,
    caption: tuple[str, str] | Callable[[Any], tuple[str, str]],
    size: tuple[float, float] = SIZE,
) -> Explorer:
    """A picture without sliders that follows the language: :class:`Explorer` with one frame."""
    words = caption if callable(caption) else lambda _: caption
    return Explorer((), lambda: data, draw, words, size)


def _broken(problem: Exception) -> str:
    words = html.escape(f"{type(problem).__name__}: {problem}")
    return (
        '<div role="alert" style="background:#fdecea;color:#8c1d18;padding:0.3em 0.6em">'
        + spoken("这个位置的图画不出来：", "This position cannot be drawn:", tag="span")
        + f" <code>{words}</code></div>"
    )


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
