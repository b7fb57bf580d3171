// A lesson that is opened without a kernel. JupyterLab draws no widget then: where one was, it says
// “Loading widget...” for good. This shows the picture or the words that were stored beside the
// widget instead, and the language switch, which needs no kernel.

(() => {
  const HERE = document.currentScript.src.replace(/[^/]*$/, "");
  const VIEW = "application/vnd.jupyter.widget-view+json";
  const WAY_OUT = {
    zh: "没有内核：请选一个（Change Kernel），重新载入网页，再运行所有单元格（Run All Cells）",
    en: "No kernel: choose one (Change Kernel), reload the page, and Run All Cells",
  };

  const isLesson = panel => panel.content.widgets.some(cell =>
    ["zh", "en"].some(language => (cell.model.getMetadata("tags") ?? []).includes(language)));

  const statesOf = context =>
    context.model.getMetadata("widgets")?.["application/vnd.jupyter.widget-state+json"]?.state ?? {};

  const make = (tag, ...parts) => {
    const element = document.createElement(tag);
    element.append(...parts);
    return element;
  };

  /** What renders `data` as JupyterLab would: HTML that nobody trusts loses what it could do. */
  function rendered(rendermime, data, metadata, trusted) {
    const kind = rendermime.preferredMimeType(data, "any");
    const renderer = kind && rendermime.createRenderer(kind);
    renderer?.renderModel({ data, metadata, trusted, setData() {} });
    return renderer?.node;
  }

  /** An explorer moves without a kernel, as far as its pictures were saved. */
  function explorer(state) {
    const el = document.createElement("div");
    import(HERE + "explorer.js").then(({ default: { render, withoutKernel } }) =>
      render({ model: withoutKernel(structuredClone(state)), el }));
    return el;
  }

  /** A saved widget as it was left: its words and pictures, what was typed; null if it is empty. */
  function still(states, id, html) {
    const { model_name: kind, state = {} } = states[id] ?? {};
    if (kind === "HTMLModel") return state.value ? html(state.value) : null;
    if (kind === "TextModel") return make("b", state.value || "?");
    if (state.pictures) return explorer(state);
    const parts = (state.children ?? [])
      .map(part => still(states, part.replace("IPY_MODEL_", ""), html)).filter(part => part);
    if (!parts.length) return null;
    const box = make("div", ...parts);
    if (kind === "HBoxModel") box.style.cssText = "display:flex;flex-wrap:wrap;gap:0.6em";
    return box;
  }

  /** Show each widget that waits for a kernel as it was saved; else what is stored beside it. */
  function showStored(panel, context) {
    const { rendermime, widgets } = panel.content, states = statesOf(context);
    const code = widgets.filter(cell => cell.model.type === "code" && cell.outputArea);
    for (const { outputArea } of code)
      for (let i = 0; i < outputArea.model.length; i++) {
        const { data: { [VIEW]: view, ...stored }, metadata } = outputArea.model.get(i);
        const drawn = outputArea.widgets[i]?.node.querySelector(".jp-OutputArea-output");
        if (!view || !drawn || drawn.dataset.stored) continue;
        drawn.dataset.stored = "true";
        const { trusted } = outputArea.model;
        const saved = still(states, view.model_id,
          html => rendered(rendermime, { "text/html": html }, {}, trusted));
        const node = saved ?? rendered(rendermime, stored, metadata, trusted);
        drawn.replaceChildren(...(node ? [node] : []));
      }
  }

  /** The language in which the lesson was saved. */
  const savedLanguage = context => Object.values(statesOf(context))
    .find(({ state }) => state?._anywidget_id?.endsWith(".Switch"))?.state.language ?? "both";

  /** The switch, in the language that was chosen last. */
  async function showSwitch(panel, context) {
    const { default: { render } } = await import(HERE + "switch.js");
    const { default: { withoutKernel } } = await import(HERE + "explorer.js");
    const model = withoutKernel({ language: savedLanguage(context) });
    model.widget_manager = { get_model: async () => ({ comm_live: false, on() {}, off() {} }) };
    const el = document.createElement("div");
    el.hidden = true;
    panel.node.append(el);
    render({ model, el, signal: new AbortController().signal, asleep: WAY_OUT });
  }

  /** Whether no kernel is there, nor on its way: Lab's own promise then never comes true. */
  async function staysWithoutKernel(panel, context) {
    for (let looks = 0; looks < 3; looks = context.sessionContext.hasNoKernel ? looks + 1 : 0) {
      if (context.sessionContext.session?.kernel || panel.isDisposed) return false;
      await new Promise(next => setTimeout(next, 400));
    }
    return true;
  }

  const plugin = {
    id: "course-page:without-kernel",
    autoStart: true,
    activate(app) {
      for (const sheet of ["switch.css", "explorer.css"])
        document.head.append(Object.assign(
          document.createElement("link"), { rel: "stylesheet", href: HERE + sheet }));
      app.docRegistry.addWidgetExtension("Notebook", {
        createNew(panel, context) {
          Promise.all([context.ready, panel.revealed]).then(async () => {
            if (!isLesson(panel) || !await staysWithoutKernel(panel, context)) return;
            const show = () => showStored(panel, context);
            show();
            new MutationObserver(show) // for cells that come into view later
              .observe(panel.content.node, { childList: true, subtree: true });
            showSwitch(panel, context);
          });
          return { dispose() {}, isDisposed: false };
        },
      });
    },
  };

  (window._JUPYTERLAB ??= {})["course-page"] = {
    init() {},
    get: async () => () => ({ __esModule: true, default: plugin }),
  };
})();
