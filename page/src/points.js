// Points on a canvas, by WebGL 2. A tile is drawn by one call; tiles can be added to what is on the canvas already.

import * as twgl from "twgl.js";

const VERTEX = `#version 300 es
in vec2 position;  // in the box of the tile, 0 to 1
in float code;     // of a category, or a step of a number
in float state;    // 0: hidden; 1: shown; 2: selected
uniform vec4 place;      // where the box of the tile is: lower left corner and size, in clip space
uniform vec3 steps;      // first step and scale of the colours of numbers, and the code of a missing value
uniform float size, isNumber;
uniform float part;      // 0: all that are shown; 1: those that are not selected, faded; 2: the selected ones
uniform vec4 faded, missing;
uniform sampler2D palette;
out vec4 colour;
void main() {
  bool isMissing = code == steps.z;
  if (isNumber > 0.5) {
    float t = clamp((code - steps.x) * steps.y, 0.0, 1.0);
    colour = texture(palette, vec2((t * 255.0 + 0.5) / 256.0, 0.5));
  } else {
    int k = int(code);
    colour = texelFetch(palette, ivec2(k & 255, k >> 8), 0);
  }
  if (isMissing) colour = missing;
  if (part == 1.0) colour = faded;
  bool isHidden = state < 0.5 || (part == 1.0 && state > 1.5) || (part == 2.0 && state < 1.5);
  gl_Position = isHidden ? vec4(2.0, 2.0, 2.0, 1.0) : vec4(place.xy + position * place.zw, 0.0, 1.0);
  gl_PointSize = size;
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec4 colour;
uniform float size;
out vec4 drawn;
void main() {
  drawn = colour;
  if (size > 2.5) {
    float edge = length(gl_PointCoord - 0.5) * size;
    float cover = clamp(size * 0.5 - edge + 0.5, 0.0, 1.0);
    if (cover < 0.02) discard;
    drawn *= cover;
  }
}`;

export class Points {
  // Throws if the browser has no WebGL 2.
  constructor(canvas) {
    const gl = canvas.getContext("webgl2", { antialias: false, depth: false, preserveDrawingBuffer: true });
    if (!gl) throw new Error("This page needs WebGL 2, which this browser does not have, or which is switched off.");
    Object.assign(this, { canvas, gl, drawnTiles: new Map() });
    this.#prepare();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.drawnTiles.clear();
      this.#prepare();
      this.restored?.();
    });
  }

  #prepare() {
    const gl = this.gl;
    this.program = twgl.createProgramInfo(gl, [VERTEX, FRAGMENT]);
    const near = { min: gl.NEAREST, mag: gl.NEAREST, wrap: gl.CLAMP_TO_EDGE, auto: false };
    this.palette = twgl.createTexture(gl, { src: new Uint8Array(1024), width: 256, height: 1, ...near });
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  // colours: { rgba: Uint8Array of a palette 256 wide, isNumber, steps: [first, scale, missing] }
  setColours(colours) {
    this.colours = colours;
    const height = colours.rgba.length / 1024;
    twgl.setTextureFromArray(this.gl, this.palette, colours.rgba, { width: 256, height, auto: false });
  }

  clear([r, g, b]) {
    const gl = this.gl;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(r / 255, g / 255, b / 255, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
  }

  // Draw a tile. values: { position: Uint16Array, code: Uint8Array or Uint16Array, state: Uint8Array }; an array that is
  // another object than before is sent to the graphics card. look: { size, faded, missing, hasSelection, step }, where
  // of `step` points one is drawn: points that follow each other are near each other, so these are all over the tile
  draw(tile, values, box, camera, look) {
    const gl = this.gl;
    const buffers = this.#upload(tile, values);
    for (const each of Object.values(buffers.attribs)) each.stride = look.step * each.bytes;
    const x = (2 * camera.scale) / camera.width;
    const y = (2 * camera.scale) / camera.height;
    const { isNumber, steps } = this.colours;
    gl.useProgram(this.program.program);
    twgl.setBuffersAndAttributes(gl, this.program, buffers);
    twgl.setUniforms(this.program, {
      place: [(box[0] - camera.x) * x, (box[1] - camera.y) * y, (box[2] - box[0]) * x, (box[3] - box[1]) * y],
      steps,
      isNumber: Number(isNumber),
      palette: this.palette,
      size: look.size,
      faded: toUnit(look.faded),
      missing: toUnit(look.missing),
    });
    for (const part of look.hasSelection ? [1, 2] : [0]) {
      twgl.setUniforms(this.program, { part });
      gl.drawArrays(gl.POINTS, 0, Math.floor(values.position.length / 2 / look.step));
    }
  }

  #upload(tile, values) {
    const gl = this.gl;
    const there = this.drawnTiles.get(tile);
    const kinds = { position: [gl.UNSIGNED_SHORT, 2, true], code: [null, 1, false], state: [gl.UNSIGNED_BYTE, 1, false] };
    const made = there ?? { attribs: {}, from: {} };
    for (const [name, [type, numComponents, normalize]] of Object.entries(kinds)) {
      if (made.from[name] === values[name]) continue;
      if (made.attribs[name]) gl.deleteBuffer(made.attribs[name].buffer);
      const buffer = twgl.createBufferFromTypedArray(gl, values[name]);
      const kind = type ?? (values[name] instanceof Uint8Array ? gl.UNSIGNED_BYTE : gl.UNSIGNED_SHORT);
      const bytes = numComponents * values[name].BYTES_PER_ELEMENT;
      made.attribs[name] = { buffer, type: kind, numComponents, normalize, bytes };
      made.from[name] = values[name];
    }
    this.drawnTiles.set(tile, made);
    return made;
  }

  // Release the tiles of which nothing is kept.
  release(isKept) {
    for (const [tile, made] of this.drawnTiles) {
      if (isKept(tile)) continue;
      for (const { buffer } of Object.values(made.attribs)) this.gl.deleteBuffer(buffer);
      this.drawnTiles.delete(tile);
    }
  }
}

const toUnit = (colour) => [colour[0] / 255, colour[1] / 255, colour[2] / 255, 1];
