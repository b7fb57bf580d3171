"""The names and values of controls, for those who hear the page instead of seeing it.

ipywidgets has a slider announce the index of its position in place of the value that stands beside
it, and nothing tells what a button with an icon does.
"""

from __future__ import annotations

from collections.abc import Mapping

import anywidget
import traitlets

# Around this widget, up to the element of class `course-named`: the browser is asked for the words
# that can be seen there, so nothing has to be said twice.
_MODULE = """
function set(node, name, words) {
  if (node && words && node.getAttribute(name) !== words) node.setAttribute(name, words);
}

function render({model, el}) {
  let observer, waiting;
  const say = () => {
    const around = el.closest('.course-named');
    if (!around) return;  // taken off the page meanwhile
    for (const slider of around.querySelectorAll('.widget-slider')) {
      const handle = slider.querySelector('.noUi-handle');
      set(handle, 'aria-label', slider.querySelector('.widget-label')?.textContent);
      set(handle, 'aria-valuetext', slider.querySelector('.widget-readout')?.textContent);
    }
    for (const button of around.querySelectorAll('button')) {
      if (/^\\d+$/.test(button.textContent.trim())) set(button, 'aria-label', button.title);
      for (const [icon, words] of Object.entries(model.get('buttons')))
        if (button.querySelector('.fa-' + icon)) {
          set(button, 'aria-label', words);
          set(button, 'title', words);
        }
    }
  };
  const begin = () => {
    const around = el.closest('.course-named');
    if (!around) {  // not on the page yet
      waiting = requestAnimationFrame(begin);
      return;
    }
    say();
    observer = new MutationObserver(say);
    observer.observe(around, {subtree: true, childList: true, characterData: true,
      attributes: true, attributeFilter: ['aria-valuetext', 'class', 'title']});
  };
  begin();
  model.on('change:buttons', say);
  return () => {
    cancelAnimationFrame(waiting);
    observer?.disconnect();
  };
}

export default {render};
"""


class Names(anywidget.AnyWidget):
    """Gives sliders and buttons around it the names and values that can be seen beside them.

    It is put among the children of a widget of class ``course-named`` and shows nothing.
    ``buttons``: the words of buttons that have only an icon, by the icon's name.
    """

    _esm = _MODULE
    buttons = traitlets.Dict().tag(sync=True)

    def __init__(self, buttons: Mapping[str, str] | None = None):
        super().__init__(buttons=dict(buttons or {}), layout={"display": "none"})
