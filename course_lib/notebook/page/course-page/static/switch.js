// The language switch in the page. It hides and shows in its own notebook only, at once, with or
// without a kernel, and sees to it that what the widgets of that notebook show is saved with it.

const LANGUAGES = [
  ["zh", "中文", "中"],
  ["en", "English", "En"],
  ["both", "中文 + English", "中 + En"],
];
const NAME = "课程语言 · Course language";
const CHOSEN_LAST = "gradient-checkpointing-course language";
const ASLEEP = {
  zh: "滑块和输入框没有连着内核，停在上次的样子。要让它们动起来，用菜单：" +
      "运行（Run）▸ 运行所有单元格（Run All Cells）。",
  en: "The sliders and fields are not connected to a kernel and stand as they were left. " +
      "To bring them to life: menu Run ▸ Run All Cells.",
};
const ASLEEP_BRIEFLY = {
  zh: "没有连着内核：请运行所有单元格（Run All Cells）",
  en: "Not connected: Run ▸ Run All Cells",
};
const VIEW = "application/vnd.jupyter.widget-view+json";
const STATE = "application/vnd.jupyter.widget-state+json";

/** What this browser remembers; a page that may not remember anything forgets. */
const memory = {
  get() { try { return localStorage.getItem(CHOSEN_LAST); } catch { return null; } },
  set(language) { try { localStorage.setItem(CHOSEN_LAST, language); } catch { /* forgotten */ } },
};

// A notebook that shows only the cells in view takes the others out of the page and puts them back.
if (!customElements.get("course-language"))
  customElements.define("course-language", class extends HTMLElement {
    connectedCallback() { this.dispatchEvent(new Event("connected")); }
  });

/** What the switch acts on: the notebook it stands in; a page that is no notebook, as a whole. */
const territory = element =>
  element.closest(".jp-NotebookPanel, .jp-LinkedOutputView") ?? document.body;

function make(tag, className, words = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = words;
  return element;
}

/** A row of buttons that choose a language; `short` for the one that is always there. */
function row(model, short, signal) {
  const group = make("div", short ? "course-language-short" : "widget-toggle-buttons");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", NAME);
  group.dataset.lmSuppressShortcuts = "true"; // Enter and Space are the button's, not the notebook's
  const looks = "jupyter-widgets jupyter-button widget-toggle-button course-language-button";
  for (const [language, name, abbreviated] of LANGUAGES) {
    const button = make("button", short ? "" : looks, short ? abbreviated : name);
    button.type = "button";
    button.title = name;
    button.setAttribute("aria-label", name);
    button.dataset.language = language;
    button.addEventListener("click", () => {
      memory.set(language);
      model.set("language", language);
      model.save_changes();
    });
    group.append(button);
  }
  const press = () => {
    for (const button of group.children) {
      const pressed = button.dataset.language === model.get("language");
      button.setAttribute("aria-pressed", pressed);
      button.classList.toggle("mod-active", pressed);
    }
  };
  listen(model, "change:language", press, signal);
  press();
  return group;
}

function listen(model, event, react, signal) {
  model.on(event, react);
  signal.addEventListener("abort", () => model.off(event, react));
}

/** Say how to bring the widgets to life, in each of `lines`, while they have no kernel. */
async function watch(model, lines, signal) {
  const itself = await model.widget_manager.get_model(model.get("own_id"));
  const speak = () => {
    const chosen = model.get("language");
    for (const [line, words] of lines) {
      line.hidden = itself.comm_live !== false;
      const read = Object.keys(words).filter(one => chosen === "both" || chosen === one);
      line.title = read.map(one => words[one]).join(" "); // where there is no room for all of it
      line.replaceChildren(...read.map(one =>
        Object.assign(make("div", "", words[one]), { lang: one })));
    }
  };
  // A saved notebook opens in the language that was chosen last, in whichever lesson.
  const last = memory.get();
  if (itself.comm_live === false && LANGUAGES.some(([language]) => language === last))
    model.set("language", last);
  listen(model, "change:language", speak, signal);
  listen(itself, "comm_live_update", speak, signal);
  speak();
}

function render({ model, el, signal, asleep }) {
  const place = document.createElement("course-language");
  const line = make("div", "course-asleep"), brief = make("div", "course-asleep-briefly");
  line.setAttribute("role", "status");
  const bar = make("div", "course-language-bar");
  bar.append(brief, row(model, true, signal));
  const under = new ResizeObserver(([{ target }]) => { bar.style.top = `${target.offsetTop}px`; });
  let notebook = null;
  const hide = () => { if (notebook) notebook.dataset.courseLanguage = model.get("language"); };
  const leave = () => {
    bar.remove();
    under.disconnect();
    if (notebook?.courseLanguage === place) { // no other has taken its place
      delete notebook.courseLanguage;
      delete notebook.dataset.courseLanguage;
    }
    notebook = null;
  };
  place.addEventListener("connected", () => {
    const here = territory(place);
    if (here !== notebook) leave();
    notebook = here;
    notebook.courseLanguage = place;
    const content = notebook.querySelector(":scope > .jp-NotebookPanel-notebook");
    if (content) { // makes room for the bar; in it, the notebook would take the focus away
      for (const other of notebook.querySelectorAll(":scope > .course-language-bar")) other.remove();
      notebook.append(bar);
      under.disconnect();
      under.observe(content);
    }
    hide();
  });
  listen(model, "change:language", hide, signal);
  signal.addEventListener("abort", leave);
  place.append(row(model, false, signal), line);
  watch(model, [[line, ASLEEP], [brief, asleep ?? ASLEEP_BRIEFLY]], signal);
  el.append(place);
}

/** The outputs of a notebook that are widgets, each with the name of its model. */
function* views(cells) {
  for (const cell of cells)
    for (let i = 0; i < (cell.outputs?.length ?? 0); i++) {
      const output = cell.outputs.get(i), id = output.data?.[VIEW]?.model_id;
      if (id) yield [output, id];
    }
}

/** The models that the outputs of a notebook show, and whatever these consist of. */
function shown(cells, states) {
  const found = {}, waiting = [...views(cells)].map(([, id]) => id);
  while (waiting.length) {
    const id = waiting.pop();
    if (id in found || !(id in states)) continue;
    found[id] = states[id];
    for (const [, part] of JSON.stringify(states[id]).matchAll(/"IPY_MODEL_(\w+)"/g))
      waiting.push(part);
  }
  return found;
}

/**
 * Save what the widgets show with the notebook, whatever JupyterLab's settings say, so that it is
 * there when the notebook is opened again. JupyterLab itself saves only widgets whose kernel still
 * runs: those of an earlier one would be lost with the next save.
 */
function keepWidgets(manager) {
  const context = manager?.context;
  if (!context?.saveState || !context.model?.setMetadata || context.courseKeepsWidgets) return;
  context.courseKeepsWidgets = true;
  const states = {};
  const saved = () => context.model.getMetadata("widgets")?.[STATE]?.state ?? {};
  Object.assign(states, saved());
  context.saveState.connect((_, stage) => {
    if (stage !== "started") return;
    const live = manager.get_state_sync({ drop_defaults: true });
    Object.assign(states, live.state);
    const state = shown(context.model.cells, states);
    context.model.setMetadata("widgets", { [STATE]: { ...live, state } });
  });
}

/**
 * Put right what could not be drawn. On a slow machine JupyterLab asks for widgets before it has
 * restored them, and leaves it at an error; and one that nobody saved has a picture beside it.
 */
function mend(manager) {
  const failed = [...document.querySelectorAll(".jp-OutputArea-output.jupyter-widgets")]
    .some(drawn => drawn.firstChild?.nodeType === Node.TEXT_NODE);
  if (!failed || !manager.restoredStatus) return;
  for (const [output, id] of views(manager.context.model.cells)) {
    const { [VIEW]: view, ...beside } = output.data;
    const there = manager.has_model(id);
    if (there || Object.keys(beside).length)
      output.setData({ data: there ? { ...beside, [VIEW]: view } : beside });
  }
}

function initialize({ model }) {
  const manager = model.widget_manager;
  keepWidgets(manager);
  if (!manager?.context?.model?.cells) return;
  manager.restored.connect(() => mend(manager));
  const looking = setInterval(() => mend(manager), 300);
  setTimeout(() => clearInterval(looking), 15000);
}

export default { initialize, render };
