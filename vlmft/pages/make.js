"use strict";
// An element with attributes, or listeners where the value is a function. Texts enter as text nodes alone.
function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key, value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;

// Boxes and points over a picture, in its own pixels. layers: [style, name, [[numbers, label], ...]].
function withLayers(picture, [width, height], layers) {
  const element = (name, attributes, ...children) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };
  const drawn = layers.flatMap(([style, name, marks]) => marks.map(([numbers, label]) => {
    const [x, y, right, bottom] = numbers;
    const title = element("title", {}, name + " " + label);
    if (numbers.length === 2) return element("circle", { class: "mark-" + style, cx: x, cy: y, r: Math.max(width, height) / 60 }, title);
    return element("rect", { class: "mark-" + style, x, y, width: Math.max(0, right - x), height: Math.max(0, bottom - y) }, title);
  }));
  return make("span", { class: "marked" }, picture,
    element("svg", { viewBox: "0 0 " + width + " " + height, "aria-hidden": "true" }, ...drawn));
}
