// The cells in a polygon that are shown: how many there are of each value of a column, and the cells themselves.

import { boxOf } from "./geometry.js";

// Go through the selected points of all tiles, also of those that are not drawn. each(tile, state, read) is called for
// every tile that the polygon may touch, when its points and what `keys` names are there; read(key) gives them.
async function visit(picture, keys, signal, progress, each) {
  const { tiles, polygon, filters } = picture;
  const all = tiles.inBox(boxOf(polygon));
  const needed = ["points", ...[...filters.keys()].map((column) => `c${column}`), ...keys];
  let done = 0;
  const queue = [...all];
  const work = async () => {
    for (let tile = queue.shift(); tile !== undefined; tile = queue.shift()) {
      const there = await Promise.all(needed.map((key) => tiles.load(tile, key)));
      signal.throwIfAborted();
      const read = (key) => there[needed.indexOf(key)]; // not from what is kept, where there may be no room for it
      each(tile, picture.state(tile, read), read);
      progress(++done, all.length);
    }
  };
  await Promise.all([work(), work(), work()]);
}

// { total, counts: Map of code -> selected cells }; column: its number, or null for the total alone
export async function countSelected(picture, column, signal, progress) {
  const counts = new Map();
  let total = 0;
  await visit(picture, column === null ? [] : [`c${column}`], signal, progress, (tile, state, read) => {
    const codes = column === null ? null : read(`c${column}`);
    for (let k = 0; k < state.length; k++) {
      if (state[k] !== 2) continue;
      total += 1;
      if (codes) counts.set(codes[k], (counts.get(codes[k]) ?? 0) + 1);
    }
  });
  return { total, counts };
}

// The selected cells as rows: { tile, place, x, y, codes } with the codes of these columns.
export async function listSelected(picture, columns, signal, progress) {
  const found = [];
  const keys = columns.map((column) => `c${column}`);
  await visit(picture, keys, signal, progress, (tile, state, read) => {
    for (let place = 0; place < state.length; place++) {
      if (state[place] !== 2) continue;
      const [x, y] = picture.tiles.place(tile, place, read("points"));
      found.push({ tile, place, x, y, codes: keys.map((key) => read(key)[place]) });
    }
  });
  return found.sort((one, other) => one.tile - other.tile || one.place - other.place);
}
