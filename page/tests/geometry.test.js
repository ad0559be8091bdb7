import assert from "node:assert/strict";
import { test } from "node:test";

import { boxOf, isInside, simplify } from "../src/geometry.js";

const L = [0, 0, 4, 0, 4, 1, 1, 1, 1, 3, 0, 3];

test("points of a polygon that is not convex are those of its two rectangles", () => {
  for (let k = 0; k < 2000; k++) {
    const [x, y] = [Math.random() * 6 - 1, Math.random() * 6 - 1];
    const expected = (x > 0 && x < 4 && y > 0 && y < 1) || (x > 0 && x < 1 && y > 0 && y < 3);
    assert.equal(isInside(x, y, L), expected);
  }
  assert.deepEqual(boxOf(L), [0, 0, 4, 3]);
});

test("a line drawn by hand keeps its shape with fewer corners", () => {
  const circle = Array.from({ length: 1000 }, (_, k) => [10 * Math.cos(k / 159.2), 10 * Math.sin(k / 159.2)]).flat();
  const fewer = simplify(circle, 60);
  assert.equal(fewer.length, 120);
  for (let k = 0; k < fewer.length; k += 2) assert.ok(Math.abs(Math.hypot(fewer[k], fewer[k + 1]) - 10) < 1e-9);
  assert.ok(isInside(9.9, 0.3, fewer) && isInside(-9.8, -0.3, fewer) && !isInside(10.1, 0, fewer));
  assert.deepEqual(simplify(L, 60), L);
});
