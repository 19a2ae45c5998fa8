/** The pictures of buttons: strokes on a grid of 24 by 24. They say nothing to a screen reader; their buttons do. */

const SHAPES = {
  plus: "M12 5v14M5 12h14",
  search: "M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14ZM16 16l4.5 4.5",
  menu: "M4 7h16M4 12h16M4 17h16",
  sliders: "M4 8h9M19 8h1M4 16h1M11 16h9M16 10.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5ZM8 18.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5Z",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7.5 7.5h9v9h-9z",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  again: "M20 11a8 8 0 0 0-14.6-3.6L4 9M4 4v5h5M4 13a8 8 0 0 0 14.6 3.6L20 15M20 20v-5h-5",
  branch: "M7 8v8M7 16c0-4 10-2 10-7M7 7.5a2 2 0 1 0 0-4 2 2 0 0 0 0 4ZM7 20.5a2 2 0 1 0 0-4 2 2 0 0 0 0 4ZM17 8.5a2 2 0 1 0 0-4 2 2 0 0 0 0 4Z",
  left: "M14.5 6l-6 6 6 6",
  right: "M9.5 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  close: "M6 6l12 12M18 6L6 18",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.5 11v5M13.5 11v5",
  save: "M12 4v11M7 10.5l5 5 5-5M5 20h14",
  load: "M12 16V5M7 9.5l5-5 5 5M5 20h14",
  nodes: "M5 5h5v5H5zM14 14h5v5h-5zM14 5h5v5h-5zM5 14h5v5H5zM10 7.5h4M10 16.5h4M7.5 10v4M16.5 10v4",
  chat: "M4 5h16v11H10l-4.5 4V16H4z",
  sun: "M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8ZM12 2.5v2M12 19.5v2M2.5 12h2M19.5 12h2M5.3 5.3l1.4 1.4M17.3 17.3l1.4 1.4M18.7 5.3l-1.4 1.4M6.7 17.3l-1.4 1.4",
  moon: "M19.5 14.5A8 8 0 0 1 9.5 4.5a8 8 0 1 0 10 10Z",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
  key: "M8.5 19a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9ZM12 11.5L20 4M16 8l3 3",
  leave: "M14 4H5v16h9M10 12h10M16.5 8l4 4-4 4",
  help: "M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18ZM9.5 9.5a2.5 2.5 0 1 1 3.6 2.2c-.8.4-1.1.9-1.1 1.8M12 16.8h.01",
  side: "M4 5h16v14H4zM10 5v14",
};

/** @typedef {keyof typeof SHAPES} IconName */

const SVG = "http://www.w3.org/2000/svg";

/** @param {IconName} name @returns {HTMLSpanElement} */
export function icon(name) {
  const frame = document.createElement("span");
  frame.className = "icon";
  draw(frame, name);
  return frame;
}

/** @param {Element} frame @param {IconName} name */
export function draw(frame, name) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("viewBox", "0 0 24 24");
  picture.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", SHAPES[name]);
  if (name === "more") path.setAttribute("stroke-width", "2.75");
  picture.append(path);
  frame.replaceChildren(picture);
}

/** Draws what the page's own markup names by data-icon. @param {ParentNode} within */
export function drawIcons(within) {
  for (const frame of within.querySelectorAll("[data-icon]")) {
    draw(frame, /** @type {IconName} */ (/** @type {HTMLElement} */ (frame).dataset.icon));
  }
}
