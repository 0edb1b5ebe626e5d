"use strict";

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
