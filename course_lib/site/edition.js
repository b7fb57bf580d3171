// Brings a page's explorers to life, with the front end that notebooks have: explorer.js, which
// stands before this in the same file. A page's pictures are all drawn; those that one move leads
// to are fetched when the explorer comes near.

for (const place of document.querySelectorAll(".course-static")) {
  const state = JSON.parse(place.querySelector("script").textContent);
  render({ model: withoutKernel(state), el: place });
  const near = new IntersectionObserver(seen => {
    if (!seen.some(one => one.isIntersecting)) return;
    near.disconnect();
    state.sliders.forEach((slider, i) => {
      for (let at = 0; at < stops(slider); at++) {
        const picture = state.pictures[keyOf(state.language, state.index.with(i, at))];
        if (picture) new Image().src = sized(picture).src;
      }
    });
  }, { rootMargin: "100%" });
  near.observe(place);
}

// The other language opens at the same heading.
document.querySelector(".course-other")?.addEventListener("click", ({ currentTarget: link }) => {
  const above = [...document.querySelectorAll("main :is(h2, h3)[id]")]
    .filter(heading => heading.getBoundingClientRect().top < innerHeight / 3);
  link.hash = above.at(-1)?.id ?? "";
});
