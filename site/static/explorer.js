// Explorers without a kernel: a slider over frames, with a menu where there are several series.
//
// A page holds <div class="course-explorer" data-name="…" data-source="….js"> with a picture of the
// first frame in it. The source sets window.courseExplorers[name] = {slider, choice, start, labels,
// size, series, pictures}; what these mean is said in notebooks/frames.py.
(() => {
  "use strict";
  const NONE = -1;
  let count = 0;

  const element = (tag, attributes, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  const play = (box, told) => {
    const still = box.querySelector("img");
    const described = still ? still.alt : "";
    const loaded = new Map();
    const picture = (number) => {
      if (!loaded.has(number)) {
        const image = new Image();
        image.src = "data:image/webp;base64," + told.pictures[number];
        loaded.set(number, image.decode().then(() => image));
      }
      return loaded.get(number);
    };

    const id = `course-explorer-${++count}`;
    const last = told.labels.length - 1;
    const slider = element("input", {
      type: "range", id: `${id}-slider`, class: "course-slider", min: 0, max: last, step: 1,
    });
    slider.value = told.start;
    const readout = element("output", { class: "course-readout", for: slider.id });
    const menu = element("select", { id: `${id}-menu`, class: "course-menu" });
    told.series.forEach(([name], i) => menu.append(new Option(name, i)));
    const canvas = element("canvas", {
      class: "course-frame", role: "img", width: told.size[0], height: told.size[1],
    });
    const context = canvas.getContext("2d");

    let turn = 0;
    const show = async () => {
      const mine = ++turn;
      const position = Number(slider.value), [name, frames] = told.series[Number(menu.value)];
      const label = told.labels[position];
      readout.textContent = label;
      slider.setAttribute("aria-valuetext", label);
      canvas.setAttribute("aria-label", [name, label, described].filter(Boolean).join(". "));
      const [ground, x, y, change] = frames[position];
      const [under, over] = await Promise.all(
        [ground, change].map((number) => (number === NONE ? null : picture(number))));
      if (mine !== turn) return; // the reader has moved on
      context.fillStyle = "white";
      context.fillRect(0, 0, canvas.width, canvas.height);
      if (under) context.drawImage(under, 0, 0);
      if (over) context.drawImage(over, x, y);
      box.dataset.shown = `${menu.value}:${position}`;
    };
    slider.addEventListener("input", show);
    menu.addEventListener("input", show);

    const controls = element("div", { class: "course-controls" });
    if (told.series.length > 1) {
      const name = element("label", { for: menu.id }, told.choice);
      controls.append(element("div", { class: "course-control" }, name, menu));
    }
    const name = element("label", { for: slider.id }, told.slider);
    controls.append(
      element("div", { class: "course-control course-wide" }, name, slider, readout));
    show().then(() => {
      box.replaceChildren(controls, element("div", { class: "course-figure" }, canvas));
      box.classList.add("course-ready");
    });
  };

  const load = (box) => {
    const told = () => (window.courseExplorers || {})[box.dataset.name];
    if (told()) return play(box, told());
    const script = element("script", { src: box.dataset.source });
    script.addEventListener("load", () => play(box, told()));
    document.head.append(script);
  };

  const start = () => {
    const boxes = document.querySelectorAll(".course-explorer[data-source]");
    if (!("IntersectionObserver" in window)) return boxes.forEach(load);
    const near = new IntersectionObserver((entries) => {
      for (const entry of entries.filter((entry) => entry.isIntersecting)) {
        near.unobserve(entry.target);
        load(entry.target);
      }
    }, { rootMargin: "800px" });
    boxes.forEach((box) => near.observe(box));
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
