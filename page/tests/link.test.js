import assert from "node:assert/strict";
import { test } from "node:test";

import { readLink, writeLink } from "../src/link.js";

function open(hash) {
  globalThis.location = { hash };
  globalThis.history = { replaceState: (state, title, written) => (globalThis.location = { hash: written }) };
  return readLink();
}

test("a link holds the view, the colours, the filters of columns of any name, and the selection", () => {
  open("");
  const view = {
    at: [1.5, -2, 3],
    column: "a&b=c#",
    gene: null,
    filters: { "x y": "~1.2", "µ,%": "0:4" },
    lasso: [0, 0, 1.25, 0, 1, 1],
    labels: false,
    theme: "dark",
  };
  writeLink(view);
  assert.deepEqual(readLink(), view);
  writeLink({ ...view, gene: "CD19", labels: true, theme: null });
  assert.deepEqual(readLink(), { ...view, column: null, gene: "CD19", labels: true, theme: null });
});

test("what is no view is left out of a link that somebody has changed", () => {
  const { at, lasso, theme, gene } = open("#at=1,x,2&lasso=0,0,1,1,2&theme=<b>&gene=");
  assert.deepEqual([at, lasso, theme], [[], [], null]);
  assert.ok(!gene);
  assert.deepEqual(open("#lasso=0,0,1,1").lasso, []);
});
