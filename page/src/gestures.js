// What mouse, fingers and keys do to the picture.

const CLICK_PX = 4;

// actions: { pan, zoomAt, reset, pick(px, py), lasso(polygon of pixels), drawing(polygon), isLasso(), toggleLasso,
//            selectView, clear }
export function listen(stage, actions) {
  const pointers = new Map();
  let line = null;
  let travelled = 0;
  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  stage.addEventListener("pointerdown", (event) => {
    if (event.button > 0) return;
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    if (pointers.size === 1) {
      travelled = 0;
      line = actions.isLasso() || event.shiftKey ? [at(event)] : null;
    } else {
      line = null;
      actions.drawing([]);
    }
  });

  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = at(event);
    travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (pointers.size === 2) pinch(event.pointerId, before, now);
    else if (line) {
      line.push(now);
      actions.drawing(line.flat());
    } else if (travelled > CLICK_PX) actions.pan(now[0] - before[0], now[1] - before[1]);
    pointers.set(event.pointerId, now);
  });

  function pinch(id, before, now) {
    const [other] = [...pointers].filter(([each]) => each !== id).map(([, place]) => place);
    const length = (place) => Math.max(Math.hypot(place[0] - other[0], place[1] - other[1]), 1);
    actions.pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    actions.zoomAt(length(now) / length(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  }

  function end(event) {
    if (!pointers.delete(event.pointerId) || pointers.size) return;
    actions.drawing([]);
    if (event.type === "pointercancel") return;
    if (travelled <= CLICK_PX) actions.pick(...at(event));
    else if (line && line.length > 2) actions.lasso(line.flat());
    line = null;
  }
  stage.addEventListener("pointerup", end);
  stage.addEventListener("pointercancel", end);

  stage.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 16 : 1;
      actions.zoomAt(Math.exp(-0.0018 * lines * Math.min(Math.max(event.deltaY, -300), 300)), ...at(event));
    },
    { passive: false },
  );

  const STEP = 60;
  const keys = {
    ArrowLeft: () => actions.pan(STEP, 0),
    ArrowRight: () => actions.pan(-STEP, 0),
    ArrowUp: () => actions.pan(0, STEP),
    ArrowDown: () => actions.pan(0, -STEP),
    "+": () => actions.zoomAt(1.4),
    "=": () => actions.zoomAt(1.4),
    "-": () => actions.zoomAt(1 / 1.4),
    0: () => actions.reset(),
    l: () => actions.toggleLasso(),
    v: () => actions.selectView(),
    Enter: () => actions.pick(stage.clientWidth / 2, stage.clientHeight / 2, 40),
    Escape: () => actions.clear(),
  };
  stage.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
}
