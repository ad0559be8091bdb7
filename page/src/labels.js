// Names of categories in the picture, each at a cell in the middle of its cells.

import { make } from "./elements.js";

const MOST = 60;

// [{ name, n, x, y }] of the commonest categories, from the first tile.
export function placeLabels(tiles, column, codes) {
  const xs = new Map();
  for (let k = 0; k < codes.length; k++) {
    if (codes[k] === column.missing) continue;
    if (!xs.has(codes[k])) xs.set(codes[k], []);
    xs.get(codes[k]).push(k);
  }
  const common = [...xs].sort((one, other) => other[1].length - one[1].length).slice(0, MOST);
  return common.map(([code, members]) => {
    const points = members.map((k) => tiles.place(0, k));
    const median = (axis) => points.map((point) => point[axis]).sort((a, b) => a - b)[points.length >> 1];
    const [mx, my] = [median(0), median(1)];
    const distance = ([x, y]) => (x - mx) ** 2 + (y - my) ** 2;
    const [x, y] = points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
    return { code, name: column.categories[code], x, y };
  });
}

// Put labels where the camera shows their places; those that would cover a commoner one are hidden. Their elements stay,
// and are only moved, so that nothing is laid out or painted again for each frame.
export function showLabels(layer, labels, camera) {
  if (layer.labels !== labels) {
    layer.labels = labels;
    layer.replaceChildren(...labels.map(({ name }) => make("span", { class: "label", text: shorten(name) })));
  }
  const taken = [];
  labels.forEach(({ name, x, y }, k) => {
    const { style } = layer.children[k];
    let [px, py] = camera.toScreen(x, y);
    const half = 3.9 * shorten(name).length + 4;
    const isInside = px >= 0 && py >= 0 && px <= camera.width && py <= camera.height;
    px = Math.min(Math.max(px, half), camera.width - half);
    py = Math.min(Math.max(py, 12), camera.height - 12);
    const isFree = !taken.some(([qx, qy, other]) => Math.abs(px - qx) < half + other && Math.abs(py - qy) < 18);
    style.visibility = isInside && isFree ? "visible" : "hidden";
    if (!isInside || !isFree) return;
    taken.push([px, py, half]);
    style.transform = `translate(-50%, -50%) translate(${px}px, ${py}px)`;
  });
}

const shorten = (name) => (name.length > 26 ? `${name.slice(0, 25)}…` : name);
