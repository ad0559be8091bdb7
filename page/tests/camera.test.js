import assert from "node:assert/strict";
import { test } from "node:test";

import { Camera } from "../src/camera.js";

function makeCamera() {
  const camera = new Camera([-10, 0, 10, 10], () => {});
  camera.resize(800, 600);
  camera.reset();
  return camera;
}

const near = (found, expected) => found.forEach((value, k) => assert.ok(Math.abs(value - expected[k]) < 1e-6, `${found}`));

test("the whole is in the middle of the screen, and y goes up", () => {
  const camera = makeCamera();
  near(camera.toScreen(0, 5), [400, 300]);
  assert.equal(camera.zoom, 1);
  assert.ok(camera.toScreen(0, 10)[1] < camera.toScreen(0, 0)[1]);
  const [x0, y0, x1, y1] = camera.shown();
  assert.ok(x0 < -10 && y0 < 0 && x1 > 10 && y1 > 10);
});

test("what is under the pointer stays there while one zooms, also at the largest zoom", () => {
  const camera = makeCamera();
  for (let k = 0; k < 60; k++) {
    const before = camera.toData(500, 250);
    camera.zoomAt(1.3, 500, 250);
    near(camera.toData(500, 250), before);
  }
  assert.equal(Math.round(camera.zoom), 400);
});

test("a drag moves the picture by as many pixels, and not out of the atlas", () => {
  const camera = makeCamera();
  camera.zoomAt(4);
  const before = camera.toScreen(1, 5);
  camera.pan(30, -20);
  near(camera.toScreen(1, 5), [before[0] + 30, before[1] - 20]);
  for (let k = 0; k < 100; k++) camera.pan(500, 500);
  assert.ok(camera.x >= -10 && camera.y <= 10);
});

test("another size of the window shows the same part", () => {
  const camera = makeCamera();
  camera.place(3, 4, 5);
  camera.resize(400, 300);
  near([camera.x, camera.y, camera.zoom], [3, 4, 5]);
});

test("a single point, or cells at one place, have a picture", () => {
  const camera = new Camera([2, 2, 2, 2], () => {});
  camera.resize(300, 300);
  camera.reset();
  near(camera.toScreen(2, 2), [150, 150]);
});
