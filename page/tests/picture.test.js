import assert from "node:assert/strict";
import { test } from "node:test";

import { Picture } from "../src/picture.js";

const TILE = 65536;

// A picture of one tile of 65,536 points. next(milliseconds, isMoving) draws a frame so much later; drawn: how many points
// were drawn, and of which size, each time.
function makePicture() {
  let [time, frame] = [0, null];
  globalThis.requestAnimationFrame = (call) => (frame = call);
  globalThis.document = { documentElement: {} };
  globalThis.getComputedStyle = () => ({ getPropertyValue: () => "#000000" });
  const drawn = [];
  const points = {
    setColours() {},
    clear() {},
    release() {},
    draw: (tile, values, box, camera, look) => drawn.push({ n: TILE / look.step, size: look.size }),
  };
  const tiles = {
    index: { boxes: [[0, 0, 1, 1]] },
    kept: new Map(),
    size: () => TILE,
    inBox: () => [0],
    countIn: () => TILE,
    want() {},
    get: (tile, key) => new Uint16Array(TILE * (key === "points" ? 2 : 1)),
  };
  const canvas = { width: 800, height: 600, dataset: {} };
  const picture = new Picture(canvas, points, tiles, { width: 800, shown: () => [0, 0, 1, 1] }, () => {});
  picture.setColouring({ key: "c0" });
  const next = (later, isMoving = false) => {
    time += later;
    if (isMoving) picture.moved = time;
    picture.redraw();
    frame(time);
    clearTimeout(picture.timer);
  };
  return { drawn, next, canvas };
}

test("slow frames draw fewer and larger points while the view moves, and all of them when it rests", () => {
  const { drawn, next, canvas } = makePicture();
  next(10);
  assert.equal(drawn.at(-1).n, TILE);
  const size = drawn.at(-1).size;
  for (let k = 0; k < 40; k++) next(200, true);
  assert.ok(drawn.at(-1).n < TILE / 6 && drawn.at(-1).n >= TILE / 16, `${drawn.at(-1).n}`);
  assert.ok(drawn.at(-1).size > 1.5 * size);
  assert.equal(canvas.dataset.points, Math.floor(drawn.at(-1).n));
  next(1000);
  assert.equal(drawn.at(-1).n, TILE);
  assert.equal(canvas.dataset.complete, true);
});

test("quick frames draw all points of a tile while the view moves", () => {
  const { drawn, next } = makePicture();
  for (let k = 0; k < 20; k++) next(16, true);
  assert.equal(drawn.at(-1).n, TILE);
});
