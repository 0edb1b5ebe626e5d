"use strict";

// A weight is a byte here: a multiple of 1 / data.steps, or data.nan for NaN, which so counts as the largest.
const data = JSON.parse(document.getElementById("data").textContent);
const [layers, N, T, S] = data.shape;
const shared = data.keys === null, queryTokens = data.tokens, keyTokens = data.keys ?? data.tokens;
const ROW = 20; // px of a token in the lists, as in the style
const ALL = 160, REACH = 10; // tokens that a list shows all; how far it goes each way where there are more
// hover and pinned are {t, s}, the query and the key pointed at; one of them is null where only the other is meant.
const state = { layer: 0, head: 0, hover: null, pinned: null };
const $ = (id) => document.getElementById(id);
let arrays, palette; // by name; of each byte, the four bytes of its colour

// ---- weights

async function unpack(text, Type) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Type(await new Response(stream).arrayBuffer());
}

/** Calls visit(t, s, byte) for each weight of a head that is stored and not 0. */
function cells(layer, head, visit, from = 0, to = T) {
  const { weights, top_keys: keys, top_weights: tops } = arrays, first = (layer * N + head) * T;
  const width = weights ? S : keys.length / (layers * N * T);
  for (let t = from; t < to; t++)
    for (let i = 0, at = (first + t) * width; i < width; i++, at++)
      if (weights) weights[at] && visit(t, i, weights[at]);
      else if (keys[at] >= 0 && tops[at]) visit(t, keys[at], tops[at]);
}

function collect(wanted, from, to) {
  const found = [];
  cells(state.layer, state.head, (t, s, byte) => wanted(s) && found.push([t, s, byte]), from, to);
  return found;
}
const row = (t) => collect(() => true, t, t + 1);
const column = (key) => collect((s) => s === key);
const strongest = (links, count) => links.slice().sort((a, b) => b[2] - a[2]).slice(0, count);
const strength = (byte) => (byte === data.nan ? 1 : Math.sqrt(byte / data.steps)); // the root, to see small ones too

// ---- words

const number = (byte) => (byte === data.nan ? "NaN" : (byte / data.steps).toFixed(3));
const decimals = (x, digits = 2) => (x === null || Number.isNaN(x) ? "NaN" : x.toFixed(digits));

function visible(token) {
  const escaped = (c) => "\\u" + c.codePointAt(0).toString(16).padStart(4, "0");
  const shown = token.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/\p{Zs}/gu, "␣");
  const characters = [...shown.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, escaped)];
  return characters.length > 16 ? characters.slice(0, 15).join("") + "…" : characters.join("") || "∅";
}

const named = (tokens, i) => `‘${visible(tokens[i])}’ (${i})`;

function sentence({ t, s, among }, out, into) {
  if (among !== undefined) {
    const weight = out.length ? number(out[0][2]) : arrays.weights ? number(0) : "not among the strongest";
    return `${among}${named(queryTokens, t)} → ${named(keyTokens, s)}: ${weight}`;
  }
  const i = t ?? s;
  const own = (name) => decimals(arrays[name][(state.layer * N + state.head) * arrays[name].length / (layers * N) + i]);
  const list = (links, tokens, end) =>
    strongest(links, 5).map((link) => `${named(tokens, link[end])} ${number(link[2])}`).join(", ")
    || `nothing above ${number(0.5)}`;
  const parts = [];
  if (out) parts.push(`looks at: ${list(out, keyTokens, 1)}`);
  if (into) parts.push(`is looked at by: ${list(into, queryTokens, 0)}`);
  if (out && arrays.entropy) parts.push(`entropy ${own("entropy")} nats, mean distance ${own("distance")}`);
  if (into && arrays.received) parts.push(`receives ${own("received")} in all`);
  return `${named(out ? queryTokens : keyTokens, i)} ${parts.join("; ")}.`;
}

// ---- pictures

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function makePalette() {
  const rgb = (name) => [1, 3, 5].map((at) => parseInt(css(name).slice(at, at + 2), 16));
  const stops = ["--low", "--middle", "--high"].map(rgb), bytes = new Uint8Array(4 * 256);
  for (let byte = 0; byte < 256; byte++) {
    const along = 2 * Math.min(1, strength(byte)), i = along < 1 ? 0 : 1;
    const mixed = stops[i].map((from, c) => from + (stops[i + 1][c] - from) * (along - i));
    bytes.set([...(byte === data.nan ? rgb("--nan") : mixed), 255], 4 * byte);
  }
  palette = new Uint32Array(bytes.buffer);
}

/** Draws one head on at most width x height pixels; each is the largest weight that falls on it. */
function picture(canvas, layer, head, width, height) {
  width = canvas.width = Math.max(1, Math.min(width, S));
  height = canvas.height = Math.max(1, Math.min(height, T));
  const largest = new Uint8Array(width * height), image = new ImageData(width, height);
  cells(layer, head, (t, s, byte) => {
    const pixel = Math.floor(t * height / T) * width + Math.floor(s * width / S);
    if (byte > largest[pixel]) largest[pixel] = byte;
  });
  new Uint32Array(image.data.buffer).set(Uint32Array.from(largest, (byte) => palette[byte]));
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Fits a canvas to the screen's pixels and returns its context, in CSS pixels. */
function sharp(canvas, height) {
  canvas.style.height = `${height}px`;
  canvas.width = canvas.clientWidth * devicePixelRatio;
  canvas.height = height * devicePixelRatio;
  const context = canvas.getContext("2d");
  context.scale(devicePixelRatio, devicePixelRatio);
  return context;
}

const matrix = { image: document.createElement("canvas") }; // the weights, and where they lie on #matrix

function layMatrix() {
  const space = Math.max($("matrix").clientWidth - 76, 1), ratio = Math.min(Math.max(T / S, 0.3), 1.3);
  const width = Math.min(space, 44 * Math.max(S, T / ratio)), height = width * ratio;
  const margin = (tokens, fit, least) =>
    fit ? Math.min(75, 10 + 6.7 * Math.max(...tokens.map((token) => visible(token).length))) : least;
  const rows = height / T >= 11, columns = width / S >= 11; // whether tokens fit as labels, or else some positions
  const left = margin(queryTokens, rows, 40), top = margin(keyTokens, columns, 20);
  Object.assign(matrix, { left, top, width, height, rows, columns });
  const pixels = (length) => Math.min(600, Math.floor(length * devicePixelRatio));
  picture(matrix.image, state.layer, state.head, pixels(width), pixels(height));
  matrix.context = sharp($("matrix"), top + height + 2);
  $("matrix").setAttribute("aria-label", `weights of layer ${state.layer}, head ${state.head}`);
}

function drawMatrix(at) {
  const { context, image, left, top, width, height, rows, columns } = matrix, x = width / S, y = height / T;
  context.clearRect(0, 0, $("matrix").width, $("matrix").height);
  context.imageSmoothingEnabled = false;
  context.drawImage(image, left, top, width, height);
  context.font = "11px ui-monospace, Menlo, Consolas, monospace";
  context.textBaseline = "middle";
  const write = (tokens, all, i, room, lit) => {
    context.fillStyle = css(lit ? "--ink" : "--soft");
    context.fillText(all ? visible(tokens[i]) : i, 0, 0, room);
  };
  const steps = [1, 10, 100, 1e3, 1e4].flatMap((power) => [power, 2 * power, 5 * power]);
  const along = (size, all, count, place) => {
    for (let i = 0, step = all ? 1 : steps.find((n) => n * size >= 40) ?? count; i < count; i += step) {
      context.save();
      place(i);
      context.restore();
    }
  };
  along(y, rows, T, (i) => {
    context.textAlign = "right";
    context.translate(left - 4, top + (i + 0.5) * y);
    write(queryTokens, rows, i, left - 6, i === at?.t);
  });
  along(x, columns, S, (i) => {
    context.translate(left + (i + 0.5) * x, columns ? top - 4 : top - 9);
    if (columns) context.rotate(-Math.PI / 2);
    else context.textAlign = "center";
    write(keyTokens, columns, i, columns ? top - 6 : 40, i === at?.s);
  });
  context.strokeStyle = css("--edge");
  context.strokeRect(left, top, width, height);
  context.strokeStyle = css("--into");
  context.lineWidth = 1.5;
  if (at && at.t !== null) context.strokeRect(left, top + at.t * y, width, Math.max(y, 1));
  if (at && at.s !== null) context.strokeRect(left + at.s * x, top, Math.max(x, 1), height);
}

/** The query and key under the pointer; of several under one pixel, the largest weight. */
function pointed(event) {
  const { left, top, width, height, image } = matrix, cell = (x, size, count) => Math.floor(x / size * count);
  const x = cell(event.offsetX - left, width, image.width), y = cell(event.offsetY - top, height, image.height);
  if (x < 0 || y < 0 || x >= image.width || y >= image.height) return null;
  const span = (i, pixels, count) => [Math.ceil(i * count / pixels), Math.ceil((i + 1) * count / pixels)];
  const [t, lastT] = span(y, image.height, T), [s, lastS] = span(x, image.width, S);
  if (lastT - t === 1 && lastS - s === 1) return { t, s, among: "" };
  const [best] = strongest(collect((key) => key >= s && key < lastS, t, lastT), 1);
  return { t: best?.[0] ?? t, s: best?.[1] ?? s, among: `strongest of ${lastT - t} × ${lastS - s}: ` };
}
