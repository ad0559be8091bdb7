// The tiles of the atlas: which of them a view needs, and their content, fetched once and kept as long as there is room.

const AT_ONCE = 6; // requests
const MOST_KEPT = 24e6; // points: about 200 MB

export class Tiles {
  // index: tiles/index.json; arrived: called when a tile's content is there; failed: called with an error
  constructor(service, index, arrived, failed) {
    Object.assign(this, { service, index, arrived, failed });
    this.kept = new Map(); // "tile key" -> typed array; the most recently used last
    this.running = new Map(); // "tile key" -> promise
    this.queue = [];
    this.decoding = new Map(); // "tile gene" -> AbortController: what the server still computes
    this.columns = new Map();
  }

  size(tile) {
    return this.index.starts[tile + 1] - this.index.starts[tile];
  }

  get box() {
    const boxes = this.index.boxes;
    return [0, 1, 2, 3].map((k) => Math[k < 2 ? "min" : "max"](...boxes.map((box) => box[k])));
  }

  // The tiles in a box, in the order of levels: whole levels, of up to `most` points (the first level always).
  inBox([x0, y0, x1, y1], most = Infinity) {
    const { levels, boxes } = this.index;
    const found = [];
    let points = 0;
    for (let level = 0; level + 1 < levels.length; level++) {
      const here = [];
      for (let tile = levels[level]; tile < levels[level + 1]; tile++) {
        const box = boxes[tile];
        if (box[0] <= x1 && box[2] >= x0 && box[1] <= y1 && box[3] >= y0) here.push(tile);
      }
      points += here.reduce((sum, tile) => sum + this.size(tile), 0);
      if (found.length && points > most) break;
      found.push(...here);
    }
    return found;
  }

  // How many points of a tile are in a box, about: as if they were spread evenly.
  countIn(tile, [x0, y0, x1, y1]) {
    const box = this.index.boxes[tile];
    const share = (low, high, from, to) =>
      high > low ? Math.max(Math.min(high, to) - Math.max(low, from), 0) / (high - low) : 1;
    return this.size(tile) * share(box[0], box[2], x0, x1) * share(box[1], box[3], y0, y1);
  }

  // What is kept of a tile: key is "points", "c" with the number of a column, or "g" with the name of a gene.
  get(tile, key) {
    const name = `${tile} ${key}`;
    const found = this.kept.get(name);
    if (found) {
      this.kept.delete(name);
      this.kept.set(name, found);
    }
    return found;
  }

  // Fetch these [tile, key] in this order, instead of what was wanted before and is not under way yet.
  want(list) {
    const wanted = new Set(list.map(([tile, key]) => `${tile} ${key}`));
    for (const [name, stop] of this.decoding) if (!wanted.has(name)) stop.abort();
    this.queue = list.filter(([tile, key]) => !this.kept.has(`${tile} ${key}`) && !this.running.has(`${tile} ${key}`));
    this.#fill();
  }

  #fill() {
    while (this.queue.length && this.running.size < AT_ONCE) {
      const [tile, key] = this.queue.shift();
      this.load(tile, key, true).catch((error) => {
        if (error.name === "AbortError") return;
        this.queue = this.queue.filter((each) => each[1] !== key);
        this.failed(error, key);
      });
    }
  }

  // A promise of the content of a tile. Only what the picture alone waits for may be given up: see `want`.
  load(tile, key, mayStop = false) {
    const name = `${tile} ${key}`;
    const found = this.get(tile, key);
    if (found) return Promise.resolve(found);
    if (!this.running.has(name)) {
      const stop = new AbortController();
      if (mayStop && key.startsWith("g")) this.decoding.set(name, stop);
      const promise = this.#read(tile, key, stop.signal).then((values) => this.#keep(name, values));
      this.running.set(name, promise);
      const end = () => {
        this.decoding.delete(name);
        this.running.delete(name);
        this.#fill();
      };
      promise.then(end, end);
    }
    if (!mayStop) this.decoding.delete(name);
    return this.running.get(name);
  }

  async #read(tile, key, signal) {
    const column = key.startsWith("c") ? this.columns.get(Number(key.slice(1))) : undefined;
    const version = `v=${encodeURIComponent(column?.identity ?? this.index.identity)}`;
    const path = {
      p: () => `tiles/points/${tile}?${version}`,
      c: () => `tiles/columns/${key.slice(1)}/${tile}?${version}`,
      g: () => `tiles/genes/${tile}?gene=${encodeURIComponent(key.slice(1))}&${version}`,
    }[key[0]]();
    const bytes = await this.service.bytes(path, { signal });
    const isByte = column?.dtype === "uint8";
    const values = isByte ? new Uint8Array(bytes) : new Uint16Array(bytes);
    const expected = this.size(tile) * (key === "points" ? 2 : 1);
    if (values.length !== expected) throw new Error(`tile ${tile} has ${values.length} values and not ${expected}`);
    return values;
  }

  #keep(name, values) {
    this.kept.set(name, values);
    this.total = (this.total ?? 0) + values.length;
    for (const [old, there] of this.kept) {
      if (this.total <= MOST_KEPT || old === name) break;
      this.kept.delete(old);
      this.total -= there.length;
    }
    this.arrived();
    return values;
  }

  // How to read a column: its kind, categories, range.
  async column(number) {
    if (!this.columns.has(number)) {
      const version = encodeURIComponent(this.index.identity);
      this.columns.set(number, await this.service.json(`tiles/columns/${number}.json?v=${version}`));
    }
    return this.columns.get(number);
  }

  // x and y of a point of a tile whose points are there.
  place(tile, k, points = this.get(tile, "points")) {
    const [x0, y0, x1, y1] = this.index.boxes[tile];
    return [x0 + (points[2 * k] * (x1 - x0)) / 65535, y0 + (points[2 * k + 1] * (y1 - y0)) / 65535];
  }
}
