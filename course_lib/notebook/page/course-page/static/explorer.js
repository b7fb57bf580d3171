// An explorer in the page: sliders, a picture, and what is to be seen in it. The pictures that are
// drawn are here, so that a slider switches them without a kernel; one that is not is asked for by
// moving there, and the kernel sends it, and what may be asked for next, as it draws them.

const LANGUAGES = ["zh", "en", "both"];
const SAVED = 300_000; // letters of pictures that are saved with a notebook, for each explorer
const PLAY = {
  back: ["退一步", "one step back", "M6 4h2v16H6zM19 4v16L9 12z"],
  play: ["播放", "play", "M7 4v16l12-8z"],
  pause: ["暂停", "pause", "M6 4h4v16H6zM14 4h4v16h-4z"],
  on: ["进一步", "one step on", "M5 4v16l10-8zM16 4h2v16h-2z"],
  stop: ["停下，回到开头", "stop, back to the start", "M5 5h14v14H5z"],
};
const PHONE = matchMedia("(max-width: 600px)");
const BROKEN = ["这个位置的图画不出来：", "This position cannot be drawn:"];

const inLanguage = ([zh, en], language, between = " · ") =>
  language === "zh" || zh === en ? zh : language === "en" ? en : zh + between + en;

/** How many positions a slider has, whose labels are there in one language or in all. */
const stops = ({ labels }) => Object.values(labels)[0].length;

const keyOf = (language, index) => `${language} ${index}`;

function make(tag, className = "", ...parts) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...parts);
  return element;
}

// --- the pictures of an explorer, shared by all places where it is shown ------------------------

const stores = new WeakMap(); // by that part of them which is saved with the notebook

class Store {
  constructor(model) {
    this.model = model;
    this.pictures = new Map(Object.entries(model.get("pictures")));
    this.views = new Set();
    this.timer = null;
  }

  /** The picture of a position: in the language, else in any. */
  find(language, index) {
    const one = spoken => this.pictures.get(keyOf(spoken, index));
    return one(language) ?? LANGUAGES.map(one).find(found => found);
  }

  take({ pictures, fresh }) {
    const saved = this.model.get("pictures");
    if (fresh) { // what was drawn before shows something else
      this.pictures.clear();
      for (const key in saved) delete saved[key];
    }
    for (const [key, picture] of Object.entries(pictures)) {
      this.pictures.set(key, picture);
      saved[key] = picture;
    }
    this.forget(saved);
    for (const view of this.views) view();
  }

  /** Leave out of what is saved the pictures that are farthest from where the sliders stand. */
  forget(saved) {
    const here = this.model.get("index"), language = this.model.get("language");
    const far = key => {
      const [spoken, index = ""] = key.split(" ");
      const steps = index.split(",").map((place, i) => Math.abs(place - (here[i] ?? 0)));
      return steps.reduce((sum, one) => sum + one, 0) + (spoken === language ? 0 : 3);
    };
    const length = key => saved[key].src?.length ?? 0;
    let all = Object.keys(saved).reduce((sum, key) => sum + length(key), 0);
    for (const key of Object.keys(saved).sort((a, b) => far(b) - far(a))) {
      if (all <= SAVED) break;
      all -= length(key);
      delete saved[key];
    }
  }

  move(slider, place) {
    const index = [...this.model.get("index")];
    const last = stops(this.model.get("sliders")[slider]) - 1;
    index[slider] = Math.min(Math.max(place, 0), last);
    this.model.set("index", index);
    this.model.save_changes();
  }
}

function storeOf(model) {
  const saved = model.get("pictures");
  if (!stores.has(saved)) {
    const store = new Store(model);
    stores.set(saved, store);
    model.on("change:pictures", () => { // the kernel has told everything anew
      const pictures = model.get("pictures");
      stores.set(pictures, store);
      store.take({ pictures: { ...pictures } });
    });
  }
  return stores.get(saved);
}

// --- controls -----------------------------------------------------------------------------------

/** A choice between off and on: a box to tick. */
function toggleRow(store, number, { name, words }) {
  const label = make("span"), input = make("input");
  Object.assign(input, { type: "checkbox", name });
  input.dataset.lmSuppressShortcuts = "true";
  input.addEventListener("change", () => store.move(number, +input.checked));
  const refresh = language => {
    input.checked = store.model.get("index")[number] === 1;
    label.textContent = inLanguage(words, language);
  };
  return [make("label", "course-toggle", input, label), refresh];
}

function sliderRow(store, number, { name, words, labels }) {
  const label = make("span", "course-label"), readout = make("span", "course-readout");
  const input = make("input");
  Object.assign(input, { type: "range", min: 0, max: stops({ labels }) - 1, step: 1, name });
  readout.setAttribute("aria-hidden", "true");
  input.addEventListener("input", () => store.move(number, +input.value));
  const row = make("label", "course-slider", label, input, readout);
  input.dataset.lmSuppressShortcuts = "true"; // arrow keys are the slider's, not the notebook's
  const refresh = language => {
    const place = store.model.get("index")[number];
    input.value = place;
    label.textContent = inLanguage(words, language);
    readout.textContent = labels[language][place];
    input.setAttribute("aria-label", label.textContent);
    input.setAttribute("aria-valuetext", readout.textContent);
  };
  return [row, refresh];
}

function playBar(store, { slider, interval }) {
  const place = () => store.model.get("index")[slider];
  const last = stops(store.model.get("sliders")[slider]) - 1;
  const pause = () => {
    clearInterval(store.timer);
    store.timer = null;
    for (const view of store.views) view();
  };
  const tick = () => {
    const { language } = store;
    if (!store.find(language, store.model.get("index"))) return; // wait for what is being drawn
    store.move(slider, place() + 1);
    if (place() === last) pause();
  };
  const act = {
    play: () => {
      if (store.timer) return pause();
      if (place() === last) store.move(slider, 0);
      store.timer = setInterval(tick, interval);
      for (const view of store.views) view();
    },
    back: () => { pause(); store.move(slider, place() - 1); },
    on: () => { pause(); store.move(slider, place() + 1); },
    stop: () => { pause(); store.move(slider, 0); },
  };
  const bar = make("div", "course-play");
  const buttons = Object.keys(act).map(name => {
    const button = make("button");
    button.type = "button";
    button.dataset.does = name;
    button.dataset.lmSuppressShortcuts = "true"; // Enter and Space, too
    button.addEventListener("click", act[name]);
    bar.append(button);
    return button;
  });
  const refresh = language => {
    for (const button of buttons) {
      const name = button.dataset.does === "play" && store.timer ? "pause" : button.dataset.does;
      const [zh, en, shape] = PLAY[name], words = inLanguage([zh, en], language);
      if (button.title === words) continue;
      button.title = words;
      button.setAttribute("aria-label", words);
      button.innerHTML =
        `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${shape}" fill="currentColor"/></svg>`;
    }
  };
  return [bar, refresh];
}

// --- the picture --------------------------------------------------------------------------------

function sentences(both, language) {
  const one = (words, lang) => {
    const line = make("div", "", ...words.split("\n").flatMap(part => [part, make("br")]).slice(0, -1));
    if (lang) line.lang = lang;
    line.hidden = Boolean(lang) && language !== "both" && language !== lang;
    return line;
  };
  return both[0] === both[1] ? [one(both[0])] : [one(both[0], "zh"), one(both[1], "en")];
}

/** What is shown of it on a screen of this width. */
const sized = picture => (PHONE.matches && picture.narrow) || picture;

/** The part of a picture under a point, or the next one along, says what it is. */
function touching(place, told, parts, wording, language) {
  const mark = make("div", "course-mark");
  let chosen = -1;
  const say = number => {
    chosen = number;
    const image = place.querySelector("img"), part = parts()[number];
    if (!part || !image) return mark.remove();
    const [left, top, width, height, ...words] = part;
    const { offsetLeft, offsetTop, clientWidth, clientHeight } = image;
    Object.assign(mark.style, {
      left: `${offsetLeft + left * clientWidth}px`, top: `${offsetTop + top * clientHeight}px`,
      width: `${width * clientWidth}px`, height: `${height * clientHeight}px`,
    });
    place.append(mark);
    told.replaceChildren(...sentences(wording(words), language()));
  };
  place.addEventListener("click", event => {
    const image = place.querySelector("img");
    if (!image || !parts().length) return;
    const { left, top, width, height } = image.getBoundingClientRect();
    const x = (event.clientX - left) / width, y = (event.clientY - top) / height;
    const slack = 6 / width; // a narrow part is met by a finger, too
    const near = parts().map(([l, t, w, h], i) => [i, y >= t && y <= t + h
      ? Math.max(l - x, x - l - w, 0) : Infinity]).sort((a, b) => a[1] - b[1])[0];
    if (near[1] <= slack) say(near[0]);
  });
  place.addEventListener("keydown", event => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by || !parts().length) return;
    event.preventDefault();
    event.stopPropagation();
    say((chosen + by + parts().length) % parts().length);
  });
  return () => { mark.remove(); told.replaceChildren(); chosen = -1; };
}

function frameOf(store, root) {
  const box = store.model.get("box");
  const place = make("div", "course-picture"), words = make("div", "course-words");
  words.style.maxWidth = `${box.width}px`;
  const told = make("div", "course-told"), images = new WeakMap();
  told.setAttribute("aria-live", "polite");
  const said = store.model.get("said"); // on a page in one language: there, words are numbers
  const forget = touching(place, told, () => (shownPicture && shownPicture.parts) ?? [],
    words => said ? [said[words[0]], said[words[0]]] : words, () => store.language);
  let turn = 0, painted = 0, shown = "", shownPicture = null;

  const imageOf = picture => {
    const one = sized(picture);
    let image = images.get(one);
    if (!image) {
      const { width, height, least, most } = one === picture ? box : box.narrow;
      image = make("img");
      Object.assign(image, { width, height, decoding: "sync", src: one.src });
      Object.assign(image.style, { minWidth: least, maxWidth: most });
      images.set(one, image);
    }
    return image;
  };

  const paint = (picture, language) => {
    if (picture.problem) {
      const alert = make("div", "course-broken", inLanguage(BROKEN, language, " "), " ",
        make("code", "", picture.problem));
      alert.setAttribute("role", "alert");
      return words.replaceChildren(alert);
    }
    const image = imageOf(picture);
    image.alt = inLanguage(picture.words, language);
    if (place.firstChild !== image) place.replaceChildren(image);
    words.replaceChildren(...sentences(picture.words, language));
    forget();
    if (sized(picture).parts) { // reached by keys
      place.tabIndex = 0;
      place.dataset.lmSuppressShortcuts = "true";
    }
  };

  /** Have the pictures ready that one step of a slider leads to. */
  const warm = (language, index) => {
    for (let i = 0; i < index.length; i++)
      for (const by of [-1, 1]) {
        const near = store.find(language, index.map((at, j) => at + (i === j) * by));
        if (near?.src) imageOf(near);
      }
  };

  const refresh = language => {
    const index = store.model.get("index"), picture = store.find(language, index);
    root.setAttribute("aria-busy", String(!store.pictures.has(keyOf(language, index))));
    const looks = `${language} ${index}`;
    if (!picture || (shown === looks && shownPicture === sized(picture))) return;
    const mine = ++turn;
    const put = () => {
      if (mine < painted) return; // a newer one has been quicker
      painted = mine;
      shown = looks;
      shownPicture = sized(picture);
      paint(picture, language);
      setTimeout(() => warm(language, index));
    };
    const image = picture.src && imageOf(picture);
    if (!image || image.complete) put();
    else image.decode().then(put, put);
  };
  return [[place, told, words], refresh];
}

// --- the whole ----------------------------------------------------------------------------------

// A notebook that shows only the cells in view takes the others out of the page and puts them back.
if (!customElements.get("course-explorer"))
  customElements.define("course-explorer", class extends HTMLElement {
    connectedCallback() { this.dispatchEvent(new Event("connected")); }
  });

function initialize({ model }) {
  const store = storeOf(model);
  model.on("msg:custom", message => { if (message.pictures) store.take(message); });
  model.send({ hello: true }); // for what was drawn before this page was opened
}

function render({ model, el }) {
  const store = storeOf(model), root = document.createElement("course-explorer");
  root.className = "course-explorer jupyter-widgets";
  const [frame, showFrame] = frameOf(store, root);
  const parts = model.get("sliders").map((slider, i) =>
    (slider.toggle ? toggleRow : sliderRow)(store, i, slider));
  const played = model.get("played");
  if (played.slider !== undefined) parts.splice(played.slider, 0, playBar(store, played));
  const controls = make("div", "course-controls", ...parts.map(([row]) => row));
  const toggles = [...controls.querySelectorAll(".course-toggle")];
  if (toggles.length) controls.prepend(make("div", "course-toggles", ...toggles));
  root.append(...(parts.length ? [controls] : []), ...frame);
  const refresh = () => {
    const place = root.closest("[data-course-language]");
    const language = place?.dataset.courseLanguage ?? model.get("language");
    store.language = language;
    for (const [, one] of parts) one(language);
    showFrame(language);
  };
  const switched = new MutationObserver(refresh);
  root.addEventListener("connected", () => {
    switched.observe(document.documentElement,
      { subtree: true, attributeFilter: ["data-course-language"] });
    refresh();
  });
  store.views.add(refresh);
  PHONE.addEventListener("change", refresh);
  for (const event of ["change:index", "change:language"]) model.on(event, refresh);
  el.append(root);
  return () => {
    switched.disconnect();
    PHONE.removeEventListener("change", refresh);
    store.views.delete(refresh);
    if (!store.views.size) clearInterval(store.timer);
    for (const event of ["change:index", "change:language"]) model.off(event, refresh);
  };
}

/** A model as anywidget has it, of an explorer that has no kernel any more, or never had one. */
function withoutKernel(state) {
  const listeners = {};
  return {
    get: name => state[name],
    set(name, value) {
      state[name] = value;
      for (const react of listeners[`change:${name}`] ?? []) react();
    },
    on(event, react) { (listeners[event] ??= []).push(react); },
    off(event, react) { listeners[event] = listeners[event]?.filter(one => one !== react); },
    send() {},
    save_changes() {},
  };
}

export default { initialize, render, withoutKernel };
