// The picture: the points of the tiles that are shown, drawn level by level, fewer of them while the view moves.

import { readColour } from "./colours.js";
import { boxOf, isInside } from "./geometry.js";

const FRAME_MS = 30; // a frame while the view moves should take no longer
const REST_MS = 160; // after the last movement: draw what is missing
const LEAST_BUDGET = 2 ** 13;
const MOST_STEP = 16; // while the view moves, of so many points at least one is drawn, even on a slow machine
const POINTS_PER_PIXEL = 3; // more than these would lie on each other
const MOST_DRAWN = 2 ** 22; // points, so that what is drawn fits into what is kept
const MOST_DECODED = 2 ** 19; // points coloured by a gene, whose expression the server decodes

export class Picture {
  // told: called after each frame with the number of points that are drawn
  constructor(canvas, points, tiles, camera, told) {
    Object.assign(this, { canvas, points, tiles, camera, told });
    this.budget = 2 ** 18; // points of a frame; adapts to how long frames take
    this.filters = new Map(); // number of a column -> Uint8Array by code: 1 where it is shown
    this.polygon = [];
    this.colouring = null; // { key, isNumber, steps, rgba }; key null: one colour
    this.states = new Map();
    this.drawn = new Set();
    this.moved = -Infinity;
    this.plain = new Map(); // arrays of one value, by length
    this.frames = 0;
    points.restored = () => this.colouring && this.setColouring(this.colouring);
  }

  setColouring(colouring) {
    this.colouring = colouring;
    this.points.setColours(colouring);
    this.redraw();
  }

  // filters and polygon: which points are shown and selected
  setState(filters, polygon) {
    Object.assign(this, { filters, polygon });
    this.states.clear();
    this.redraw();
  }

  // The view has moved.
  move() {
    this.moved = performance.now();
    this.redraw();
  }

  redraw() {
    this.isDirty = true;
    this.wake();
  }

  wake() {
    this.request ??= requestAnimationFrame((now) => {
      this.request = null;
      this.#frame(now);
    });
  }

  // Everything that a tile needs to be drawn, as [tile, key].
  #needs(tile) {
    const colour = this.colouring.key ? [this.colouring.key] : [];
    const keys = ["points", ...colour, ...[...this.filters.keys()].map((column) => `c${column}`)];
    return keys.map((key) => [tile, key]);
  }

  #frame(now) {
    if (!this.colouring) return;
    const isMoving = now - this.moved < REST_MS;
    if (isMoving && this.wasMoving) this.#adapt(now - this.lastFrame);
    Object.assign(this, { lastFrame: now, wasMoving: isMoving });
    const pixels = this.canvas.width * this.canvas.height;
    if (this.isDirty) this.#begin(isMoving, pixels);
    let left = isMoving && !this.isDirty ? 0 : this.budget;
    this.isDirty = false;
    let isAll = true;
    for (const tile of this.list) {
      if (this.drawn.has(tile)) continue;
      const values = this.#values(tile);
      if (!values) {
        isAll = false;
        continue;
      }
      if (left <= 0) {
        isAll = false;
        this.wake();
        break;
      }
      this.points.draw(tile, values, this.tiles.index.boxes[tile], this.camera, this.look);
      this.drawn.add(tile);
      left -= values.position.length / 2 / this.look.step;
    }
    if (isMoving) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.redraw(), REST_MS + 10);
    }
    this.frames += 1;
    const inDrawn = [...this.drawn].reduce((sum, tile) => sum + this.tiles.size(tile), 0);
    const total = Math.floor(inDrawn / this.look.step);
    this.told(total);
    Object.assign(this.canvas.dataset, { frames: this.frames, points: total, complete: isAll && !isMoving });
  }

  // Clear the canvas, and list the tiles to draw.
  #begin(isMoving, pixels) {
    const shown = this.camera.shown();
    const most = this.colouring.key?.startsWith("g") ? MOST_DECODED : Math.min(POINTS_PER_PIXEL * pixels, MOST_DRAWN);
    const all = this.tiles.inBox(shown, most);
    this.list = isMoving ? this.tiles.inBox(shown, Math.min(this.budget, most)) : all;
    const inList = this.list.reduce((sum, tile) => sum + this.tiles.size(tile), 0);
    const step = isMoving ? Math.min(Math.max(Math.round(inList / this.budget), 1), MOST_STEP) : 1;
    const seen = this.list.reduce((sum, tile) => sum + this.tiles.countIn(tile, shown), 0) / step;
    const ratio = this.canvas.width / this.camera.width;
    const size = Math.min(Math.max(Math.sqrt((0.22 * pixels) / Math.max(seen, 1)), 1.25 * ratio), 7 * ratio);
    this.look = {
      size,
      faded: readColour("faded"),
      missing: readColour("missing"),
      hasSelection: this.polygon.length > 0,
      step,
    };
    this.drawn.clear();
    this.points.clear(readColour("page"));
    this.tiles.want((isMoving ? this.list : all).flatMap((tile) => this.#needs(tile)));
    if (!isMoving) this.points.release((tile) => this.tiles.kept.has(`${tile} points`));
  }

  // Fewer points in a frame if the last one took too long, more if it was quick.
  #adapt(ms) {
    const factor = ms > 1.3 * FRAME_MS ? 0.75 : ms < 0.75 * FRAME_MS ? 1.2 : 1;
    this.budget = Math.min(Math.max(this.budget * factor, LEAST_BUDGET), 2 ** 23);
  }

  // What to draw of a tile; undefined if something of it is not there yet.
  #values(tile) {
    const there = this.#needs(tile).map(([, key]) => this.tiles.get(tile, key));
    if (there.some((values) => !values)) return undefined;
    const n = this.tiles.size(tile);
    const code = this.colouring.key ? there[1] : this.#constant(n, 0);
    return { position: there[0], code, state: this.#state(tile, n) };
  }

  // The state of each point of a tile whose content is there: 0 hidden, 1 shown, 2 selected.
  #state(tile, n) {
    if (!this.filters.size && !this.polygon.length) return this.#constant(n, 1);
    if (!this.states.has(tile)) this.states.set(tile, this.state(tile, (key) => this.tiles.get(tile, key)));
    return this.states.get(tile);
  }

  // read(key): what is there of the tile
  state(tile, read) {
    const n = this.tiles.size(tile);
    const position = read("points");
    const state = new Uint8Array(n).fill(1);
    for (const [column, allowed] of this.filters) {
      const codes = read(`c${column}`);
      for (let k = 0; k < n; k++) state[k] &= allowed[codes[k]];
    }
    if (!this.polygon.length) return state;
    const [x0, y0, x1, y1] = boxOf(this.polygon);
    const box = this.tiles.index.boxes[tile];
    if (box[0] > x1 || box[2] < x0 || box[1] > y1 || box[3] < y0) return state;
    for (let k = 0; k < n; k++) {
      if (!state[k]) continue;
      const [x, y] = this.tiles.place(tile, k, position);
      if (x >= x0 && x <= x1 && y >= y0 && y <= y1 && isInside(x, y, this.polygon)) state[k] = 2;
    }
    return state;
  }

  #constant(n, value) {
    const name = `${n} ${value}`;
    if (!this.plain.has(name)) this.plain.set(name, new Uint8Array(n).fill(value));
    return this.plain.get(name);
  }

  // [tile, place] of the point nearest to a pixel among those drawn, at most `reach` pixels away; null if none is.
  nearest(px, py, reach = 10) {
    const [x, y] = this.camera.toData(px, py);
    const far = reach / this.camera.scale;
    let [best, least] = [null, far * far];
    for (const tile of this.drawn) {
      const [x0, y0, x1, y1] = this.tiles.index.boxes[tile];
      if (x < x0 - far || x > x1 + far || y < y0 - far || y > y1 + far) continue;
      const values = this.#values(tile);
      if (!values) continue;
      const [sx, sy] = [(x1 - x0) / 65535, (y1 - y0) / 65535];
      for (let k = 0; k < values.state.length; k++) {
        if (!values.state[k]) continue;
        const dx = x0 + values.position[2 * k] * sx - x;
        const dy = y0 + values.position[2 * k + 1] * sy - y;
        const distance = dx * dx + dy * dy;
        if (distance < least) [best, least] = [[tile, k], distance];
      }
    }
    return best;
  }
}
