import assert from "node:assert/strict";
import { test } from "node:test";

import { Tiles } from "../src/tiles.js";

// Two levels: a tile of the whole, then two halves.
const INDEX = {
  identity: "a b",
  levels: [0, 1, 3],
  starts: [0, 100, 160, 200],
  boxes: [
    [0, 0, 10, 10],
    [0, 0, 5, 10],
    [5.1, 0, 10, 10],
  ],
};

function makeTiles(read = (path) => new ArrayBuffer(path.includes("points/0") ? 400 : 0)) {
  const asked = [];
  const told = { arrived: 0, failed: [] };
  const bytes = async (path) => {
    asked.push(path);
    return read(path);
  };
  const failed = (error, key) => told.failed.push([error.message, key]);
  return { tiles: new Tiles({ bytes }, INDEX, () => told.arrived++, failed), asked, told };
}

test("a view has the tiles in it, level by level, and only whole levels", () => {
  const { tiles } = makeTiles();
  assert.deepEqual(tiles.inBox([0, 0, 10, 10]), [0, 1, 2]);
  assert.deepEqual(tiles.inBox([6, 2, 7, 3]), [0, 2]);
  assert.deepEqual(tiles.inBox([0, 0, 10, 10], 150), [0]);
  assert.deepEqual(tiles.inBox([6, 2, 7, 3], 150), [0, 2]);
  assert.deepEqual(tiles.inBox([0, 0, 10, 10], 1), [0]);
  assert.deepEqual(tiles.box, [0, 0, 10, 10]);
  assert.equal(tiles.countIn(0, [0, 0, 5, 10]), 50);
});

test("content is fetched once, and its arrival is told to whoever waits, also if it was asked for before", async () => {
  const { tiles, asked, told } = makeTiles();
  const first = tiles.load(0, "points");
  tiles.want([[0, "points"]]);
  await first;
  assert.equal(told.arrived, 1);
  await tiles.load(0, "points");
  assert.deepEqual(asked, ["tiles/points/0?v=a%20b"]);
  assert.equal(tiles.get(0, "points").length, 200);
  assert.deepEqual(tiles.place(0, 0), [0, 0]);
});

test("codes of one byte are read as such, and content of a wrong length is an error", async () => {
  const { tiles, told } = makeTiles(() => new Uint8Array(100).fill(3).buffer);
  tiles.columns.set(4, { dtype: "uint8" });
  assert.deepEqual([...(await tiles.load(0, "c4"))], Array(100).fill(3));
  tiles.want([[0, "points"]]);
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(told.failed, [["tile 0 has 50 values and not 200", "points"]]);
});

test("what is wanted no longer is not fetched any more, and decoding of it is called off", async () => {
  let release;
  const gate = new Promise((resolve) => (release = resolve));
  const { tiles, asked } = makeTiles(async () => (await gate, new ArrayBuffer(0)));
  const signals = [];
  const { bytes } = tiles.service;
  tiles.service.bytes = (path, options) => (signals.push(options.signal), bytes(path));
  tiles.want(Array.from({ length: 20 }, (_, k) => [k % 3, `gGENE${k}`]));
  const n = asked.length;
  tiles.want([]);
  release();
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(asked.length, n);
  assert.ok(n < 20 && signals.every((signal) => signal.aborted));
});

test("what somebody waits for is not called off, whatever the picture wants", async () => {
  let release;
  const gate = new Promise((resolve) => (release = resolve));
  const { tiles } = makeTiles();
  const signals = [];
  tiles.service.bytes = async (_, { signal }) => (signals.push(signal), await gate, new ArrayBuffer(80));
  tiles.want([[2, "gA"]]);
  const [both, alone] = [tiles.load(2, "gA"), tiles.load(2, "gB")];
  tiles.want([]);
  release();
  assert.deepEqual([(await both).length, (await alone).length], [40, 40]);
  assert.ok(!signals.some(({ aborted }) => aborted));
});
