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

// ---- tokens: two lists with lines between them, and the running text

const lists = { queries: new Map(), keys: new Map(), text: new Map(), keytext: new Map() }; // elements by position

function makeToken(tag, tokens, i) {
  const element = document.createElement(tag);
  element.dataset.i = i;
  element.title = tokens[i];
  return element;
}

function makeText(id, tokens) {
  tokens.forEach((token, i) => {
    const element = makeToken("span", tokens, i);
    element.textContent = visible(token);
    lists[id].set(i, element);
    $(id).append(element, token.endsWith("\n") ? document.createElement("br") : "");
  });
}

/** Fills one list: all tokens, or those around position i and the ones that links name. */
function makeList(id, tokens, i, linked) {
  const middle = Math.min(i, tokens.length - 1), near = (j) => tokens.length <= ALL || Math.abs(j - middle) <= REACH;
  const wanted = new Set([...tokens.keys()].filter(near).concat(linked));
  const focused = $(id).contains(document.activeElement);
  lists[id].clear();
  $(id).replaceChildren(...[...wanted].sort((a, b) => a - b).map((j) => {
    const button = makeToken("button", tokens, j), text = document.createElement("b");
    button.type = "button";
    button.tabIndex = j === middle ? 0 : -1;
    button.setAttribute("aria-label", named(tokens, j));
    button.setAttribute("aria-pressed", String(j === (id === "queries" ? state.pinned?.t : state.pinned?.s)));
    button.classList.toggle("gap", j > 0 && !wanted.has(j - 1));
    text.textContent = visible(tokens[j]);
    button.append(text, document.createElement("i"));
    lists[id].set(j, button);
    return button;
  }));
  if (focused) lists[id].get(middle).focus({ preventScroll: true });
}

/** Scrolls a box, and nothing else, until it shows an element. */
function reveal(box, element) {
  for (const [offset, scroll, size] of [["offsetTop", "scrollTop", "Height"], ["offsetLeft", "scrollLeft", "Width"]]) {
    const before = element[offset] - box[scroll], after = before + element[`offset${size}`] - box[`client${size}`];
    if (before < 0 || after > 0) box[scroll] += before < 0 ? before - 3 * ROW : after + 3 * ROW;
  }
}

function makeLists() {
  const at = state.pinned, ends = (links, end) => strongest(links, 8).map((link) => link[end]);
  const i = at ? at.t ?? at.s : 0;
  makeList("queries", queryTokens, i, at && at.s !== null ? ends(column(at.s), 0) : []);
  makeList("keys", keyTokens, i, at && at.t !== null ? ends(row(at.t), 1) : []);
}

/** Draws links, [links, colour, power]: the line of a weight w is as opaque as w ** power. */
function drawLines(groups) {
  const heights = (list) => new Map([...list.keys()].map((i, order) => [i, (order + 0.5) * ROW]));
  const left = heights(lists.queries), right = heights(lists.keys), width = $("between").clientWidth;
  const context = sharp($("between"), ROW * Math.max(left.size, right.size));
  context.lineWidth = 1.5;
  for (const [links, name, power] of groups) {
    const colour = css(name), nan = css("--nan");
    for (const [t, s, byte] of links) {
      const from = left.get(t), to = right.get(s), alpha = strength(byte) ** (2 * power);
      if (alpha < 0.03 || from === undefined || to === undefined) continue;
      context.globalAlpha = alpha;
      context.strokeStyle = byte === data.nan ? nan : colour;
      context.beginPath();
      context.moveTo(0, from);
      context.bezierCurveTo(width / 2, from, width / 2, to, width, to);
      context.stroke();
    }
  }
}

const lit = new Set(); // the tokens that are coloured, framed or numbered

function clear() {
  for (const element of lit) {
    element.style.background = element.style.borderColor = "";
    element.classList.remove("current");
    if (element.tagName === "BUTTON") element.lastChild.textContent = "";
  }
  lit.clear();
}

function frame(element) {
  element?.classList.add("current");
  if (element) lit.add(element);
}

/** Colours the tokens of a list that links name, with numbers beside the strongest. */
function tint(list, links, end, property, hue) {
  const most = property === "background" ? 65 : 100; // per cent: text has to stay readable on it
  const numbered = new Set(strongest(links, 5));
  for (const link of links) {
    const element = list.get(link[end]), colour = link[2] === data.nan ? "--nan" : hue;
    if (!element) continue;
    lit.add(element);
    const percent = (most * strength(link[2])).toFixed(1);
    element.style[property] = `color-mix(in srgb, var(${colour}) ${percent}%, transparent)`;
    if (element.tagName === "BUTTON" && numbered.has(link)) element.lastChild.textContent = number(link[2]);
  }
}

/** Shows what the pointer, or else the pin, is at. */
function refresh() {
  const at = state.hover ?? state.pinned, pair = at?.among !== undefined;
  let out = null, into = null; // who is looked at; who looks
  if (pair) out = row(at.t).filter((link) => link[1] === at.s);
  else if (at && (shared || at.t !== null)) out = row(at.t ?? at.s);
  if (at && !pair && (shared || at.s !== null)) into = column(at.s ?? at.t);
  clear();

  const groups = at ? [] : [[[...lists.queries.keys()].flatMap(row), "--out", 1]]; // all together need more air
  if (at && at.t !== null) {
    tint(lists.keys, out, 1, "background", "--out");
    frame(lists.queries.get(at.t));
    groups.push([out, "--out", 0.5]);
  }
  if (at && at.s !== null) {
    if (!pair) {
      tint(lists.queries, into, 0, "background", "--into");
      groups.push([into, "--into", 0.5]);
    }
    frame(lists.keys.get(at.s));
  }
  tint(shared ? lists.text : lists.keytext, out ?? [], 1, "background", "--out");
  tint(lists.text, into ?? [], 0, "borderColor", "--into");
  if (at) frame(out ? lists.text.get(at.t ?? at.s) : lists.keytext.get(at.s));
  drawLines(groups);
  drawMatrix(at);
  $("status").textContent = at
    ? sentence(at, out, into) : "Point at a token or a cell, or press j, to see what looks at what.";
}

// ---- heads

const shown = (select, count) => (select.value === "" ? [...Array(count).keys()] : [Number(select.value)]);

function makeGrid() {
  const rows = shown($("layers"), layers), columns = shown($("heads"), N);
  const label = (textContent, className = "") =>
    Object.assign(document.createElement("span"), { textContent, className });
  $("grid").style.gridTemplateColumns = `auto repeat(${columns.length}, var(--cell))`;
  $("grid").style.setProperty("--cell", `clamp(1.9rem, min(28rem, 100vw - 7rem) / ${columns.length}, 6rem)`);
  $("grid").replaceChildren(label(""), ...columns.map((head) => label(`H${head}`)));
  for (const layer of rows) {
    $("grid").append(label(`L${layer}`, "row"));
    for (const head of columns) {
      const button = document.createElement("button"), canvas = document.createElement("canvas");
      button.type = "button";
      Object.assign(button.dataset, { layer, head });
      button.title = `layer ${layer}, head ${head}, entropy ${decimals(data.numbers.entropy[layer][head])} nats`;
      button.setAttribute("aria-label", button.title);
      picture(canvas, layer, head, 64, 64);
      canvas.className = Math.max(T, S) <= 32 ? "few" : "";
      button.append(canvas);
      $("grid").append(button);
    }
  }
  const nearest = (all, i) => (all.includes(i) ? i : all[0]);
  select(nearest(rows, state.layer), nearest(columns, state.head));
}

function select(layer, head) {
  Object.assign(state, { layer, head });
  const focused = $("grid").contains(document.activeElement);
  for (const button of $("grid").querySelectorAll("button")) {
    const chosen = Number(button.dataset.layer) === layer && Number(button.dataset.head) === head;
    button.setAttribute("aria-pressed", String(chosen));
    button.tabIndex = chosen ? 0 : -1;
    if (chosen && focused) button.focus();
    if (chosen) reveal($("grid"), button);
  }
  $("head").textContent = `Layer ${layer}, head ${head}`;
  const unit = { entropy: " nats", distance: " positions" };
  $("numbers").replaceChildren(...Object.entries(data.numbers).map(([name, values]) => {
    const pair = document.createElement("div");
    pair.append(document.createElement("dt"), document.createElement("dd"));
    pair.firstChild.textContent = name.replace("_", " ");
    pair.lastChild.textContent = decimals(values[layer][head], name in unit ? 2 : 3) + (unit[name] ?? "");
    return pair;
  }));
  layMatrix();
  makeLists();
  refresh();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light theme" : "Dark theme";
  makePalette();
  const bar = new ImageData(new Uint8ClampedArray(palette.slice(0, data.steps + 1).buffer), data.steps + 1);
  $("scale").width = data.steps + 1;
  $("scale").getContext("2d").putImageData(bar, 0, 0);
  makeGrid();
}

// ---- pointer and keys

const same = (at, other) => JSON.stringify(at) === JSON.stringify(other);

function hover(at) {
  if (same(at, state.hover)) return;
  state.hover = at;
  refresh();
}

function pin(at) {
  state.pinned = at;
  makeLists();
  refresh();
  if (at && at.t !== null) reveal($("lines"), lists.queries.get(at.t));
  if (at && at.s !== null) reveal($("lines"), lists.keys.get(at.s));
  const id = shared || at?.t !== null ? "text" : "keytext";
  if (at) reveal($(id), lists[id].get(at.t ?? at.s));
}

/** Makes the tokens in a box point, and a click pin; meant(i) is what token i stands for. */
function listen(box, meant) {
  const at = (event) => {
    const token = event.target.closest("[data-i]");
    return token && meant(Number(token.dataset.i));
  };
  box.addEventListener("pointermove", (event) => hover(at(event))); // not pointerover: lists change under the pointer
  box.addEventListener("pointerleave", () => hover(null));
  box.addEventListener("focusin", (event) => hover(at(event)));
  box.addEventListener("focusout", () => hover(null));
  box.addEventListener("click", (event) => at(event) && pin(same(at(event), state.pinned) ? null : at(event)));
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("select")) return;
  const rows = shown($("layers"), layers), columns = shown($("heads"), N);
  const moved = (all, i, step) => all[Math.min(Math.max(all.indexOf(i) + step, 0), all.length - 1)];
  const arrows = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  const from = state.hover ?? state.pinned;
  if (event.key in arrows) {
    const [down, across] = arrows[event.key];
    select(moved(rows, state.layer, down), moved(columns, state.head, across));
  } else if (event.key === "j" || event.key === "k") {
    state.hover = null;
    const key = from ? from.t === null : false, step = event.key === "j" ? 1 : -1;
    const i = from ? Math.min(Math.max((from.t ?? from.s) + step, 0), (key ? S : T) - 1) : 0;
    const query = from && (from.s === null || from.among !== undefined) || !shared;
    pin(key ? { t: null, s: i } : { t: i, s: query ? null : i });
  } else if (event.key === "Escape") {
    state.hover = null;
    pin(null);
  } else return;
  event.preventDefault();
}

async function start() {
  const types = { top_keys: Int32Array, entropy: Float32Array, distance: Float32Array, received: Float32Array };
  arrays = {};
  for (const name in data.arrays) arrays[name] = await unpack(data.arrays[name], types[name] ?? Uint8Array);
  document.title = $("title").textContent = data.title;
  const within = Math.ceil(500 / data.steps + 0.5) / 1000; // of what is stored, and the rounding of what is printed
  const many = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  $("about").textContent = `${many(layers, "layer")} × ${many(N, "head")}, ${many(T, "token")}`
    + (shared ? "" : ` looking at ${S}`) + `; weights to within ${within}`
    + (arrays.weights ? "" : `; of each query only the ${arrays.top_keys.length / (layers * N * T)} largest are known`);
  for (const [id, count] of [["layers", layers], ["heads", N]]) {
    $(id).append(new Option("All", ""), ...[...Array(count).keys()].map((i) => new Option(i, i)));
    $(id).addEventListener("change", makeGrid);
  }
  makeText("text", queryTokens);
  if (!shared) makeText("keytext", keyTokens);
  $("keytext").hidden = shared;
  $("nan").hidden = !(arrays.weights ?? arrays.top_weights).includes(data.nan);

  listen($("queries"), (i) => ({ t: i, s: null }));
  listen($("keys"), (i) => ({ t: null, s: i }));
  listen($("text"), (i) => ({ t: i, s: shared ? i : null }));
  listen($("keytext"), (i) => ({ t: null, s: i }));
  $("matrix").addEventListener("pointermove", (event) => hover(pointed(event)));
  $("matrix").addEventListener("pointerleave", () => hover(null));
  $("matrix").addEventListener("click", (event) => pointed(event) && pin({ t: pointed(event).t, s: null }));
  $("grid").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) select(Number(button.dataset.layer), Number(button.dataset.head));
  });
  document.addEventListener("keydown", onKey);
  addEventListener("resize", () => { layMatrix(); refresh(); });
  const dark = matchMedia("(prefers-color-scheme: dark)"), follow = () => setTheme(dark.matches ? "dark" : "light");
  const other = () => (document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  $("theme").addEventListener("click", () => setTheme(other()));
  dark.addEventListener("change", follow);
  follow();
}

start().catch((error) => { $("status").textContent = `This page could not be opened: ${error.message}`; });
