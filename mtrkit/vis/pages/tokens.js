/* The page of `mtrkit draw`. Patches are numbered frame after frame, and row by row in a frame. */

const { rows, columns, frames } = data.grid;
const patchesPerFrame = rows * columns;
const ROLES = {
  k: "kept",
  t: "kept, others are merged into it",
  s: "merged into another one",
  d: "dropped",
  g: "dropped earlier",
};
const passesOf = (method) => data.passes.filter((pass) => pass.method === method);
const methods = [...new Set(data.passes.map((pass) => pass.method))];
const state = { input: 0, method: methods[0], amount: 0, map: "tokens", frame: 0, chosen: null, pinned: false };
state.amount = Math.floor((passesOf(state.method).length - 1) / 2);
const pictures = data.inputs.map((input) => input.frames.map(load));
let panels = [];
let timer = null;

function load(address) {
  const image = new Image();
  image.addEventListener("load", redraw);
  image.src = address;
  return image;
}

const currentPass = () => passesOf(state.method)[state.amount];
const currentStages = () => currentPass().inputs[state.input].stages;

/* ---- colours and marks: those of the pictures that `mtrkit draw` writes ---- */

const css = ([red, green, blue], alpha = 1) => `rgb(${red} ${green} ${blue} / ${alpha})`;
const heat = (rank) => {
  const stops = data.colours.heat;
  const place = (rank / 100) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  return stops[low].map((from, channel) => Math.round(from + (place - low) * (stops[low + 1][channel] - from)));
};
const distinct = (number) => `hsl(${(360 * number * 0.618034) % 360} 100% ${number % 2 ? 72 : 55}%)`;

function box(patch, width, height) {
  const row = Math.floor(patch / columns);
  const column = patch % columns;
  const left = Math.round((column * width) / columns);
  const top = Math.round((row * height) / rows);
  const right = Math.round(((column + 1) * width) / columns);
  const bottom = Math.round(((row + 1) * height) / rows);
  return { left, top, width: right - left, height: bottom - top };
}

function neighbours(patch) {
  const row = Math.floor(patch / columns);
  const column = patch % columns;
  return [
    row > 0 ? patch - columns : -1,
    column < columns - 1 ? patch + 1 : -1,
    row < rows - 1 ? patch + columns : -1,
    column > 0 ? patch - 1 : -1,
  ];
}

/** Strokes along the edges at which `same(patch, other)` is false, inside of the patch; the border counts as an edge. */
function edges(context, patch, same, size, inset) {
  const { left, top, width, height } = box(patch, size.width, size.height);
  const corners = [
    [left + inset, top + inset],
    [left + width - inset, top + inset],
    [left + width - inset, top + height - inset],
    [left + inset, top + height - inset],
  ];
  neighbours(patch).forEach((other, side) => {
    if (other >= 0 && same(other)) return;
    context.moveTo(...corners[side]);
    context.lineTo(...corners[(side + 1) % 4]);
  });
}

function outline(context, members, size, colour, thick) {
  context.strokeStyle = colour;
  context.lineWidth = thick;
  context.lineCap = "square";
  context.beginPath();
  for (const patch of members) edges(context, patch, (other) => members.has(other), size, thick / 2);
  context.stroke();
}

function cross(context, patch, size, colour) {
  const { left, top, width, height } = box(patch, size.width, size.height);
  const inset = width / 5;
  context.strokeStyle = colour;
  context.lineWidth = Math.max(1, width / 14);
  context.beginPath();
  context.moveTo(left + inset, top + inset);
  context.lineTo(left + width - inset, top + height - inset);
  context.moveTo(left + inset, top + height - inset);
  context.lineTo(left + width - inset, top + inset);
  context.stroke();
}

function fill(context, patch, size, colour) {
  const { left, top, width, height } = box(patch, size.width, size.height);
  context.fillStyle = colour;
  context.fillRect(left, top, width, height);
}

/** Token → its patches in one frame, as numbers within the frame. */
function tokensOf(slot, frame) {
  const found = new Map();
  for (let patch = 0; patch < patchesPerFrame; patch++) {
    const token = slot[frame * patchesPerFrame + patch];
    if (token < 0) continue;
    if (!found.has(token)) found.set(token, new Set());
    found.get(token).add(patch);
  }
  return found;
}

function piecesOf(members) {
  const left = new Set(members);
  const found = [];
  for (const first of members) {
    const piece = [];
    const waiting = [first];
    while (waiting.length) {
      const patch = waiting.pop();
      if (!left.delete(patch)) continue;
      piece.push(patch);
      waiting.push(...neighbours(patch));
    }
    if (piece.length) found.push(piece);
  }
  return found;
}

/** Tokens of several patches: their colour, and a number if the patches are not all side by side. */
function marksOf(slot) {
  const patches = new Map();
  const pieces = new Map();
  for (let frame = 0; frame < frames; frame++) {
    for (const [token, members] of tokensOf(slot, frame)) {
      patches.set(token, (patches.get(token) ?? 0) + members.size);
      pieces.set(token, (pieces.get(token) ?? 0) + piecesOf(members).length);
    }
  }
  const merged = [...patches.keys()].filter((token) => patches.get(token) > 1).sort((a, b) => a - b);
  let number = 0;
  return new Map(
    merged.map((token, index) => [token, { colour: distinct(index), number: pieces.get(token) > 1 ? ++number : null }]),
  );
}

/* ---- panels ---- */

const untouched = Array.from({ length: frames * patchesPerFrame }, (_, index) => index);

/** Token of each patch in front of a reduction. */
const entering = (index) => (index === 0 ? untouched : currentStages()[index - 1].slot);

/** By what a panel tells tokens apart: what the patches have become there. */
function slotOf(panel) {
  const stages = currentStages();
  return panel.stage === null ? stages[stages.length - 1].slot : stages[panel.stage].slot;
}

function paintRoles(context, size, stage, before) {
  const from = state.frame * patchesPerFrame;
  const side = size.width / columns;
  const thick = Math.max(1.5, side / 11);
  const roles = [...stage.roles.slice(from, from + patchesPerFrame)];
  roles.forEach((role, patch) => {
    const { colour, tint } = data.colours.roles[role];
    if (colour) fill(context, patch, size, css(colour, tint));
  });
  paintBorders(context, size, before);
  for (const members of tokensOf(before, state.frame).values()) {
    const role = roles[Math.min(...members)];
    if ("ts".includes(role)) outline(context, members, size, css(data.colours.roles[role].colour), thick);
  }
  roles.forEach((role, patch) => {
    if ("dg".includes(role)) cross(context, patch, size, css(data.colours.crosses[role]));
  });
}

function paintBorders(context, size, slot) {
  if (size.width / columns < 10) return;
  const from = state.frame * patchesPerFrame;
  context.strokeStyle = "rgb(255 255 255 / 0.35)";
  context.lineWidth = 1;
  context.beginPath();
  for (let patch = 0; patch < patchesPerFrame; patch++) {
    const token = slot[from + patch];
    edges(context, patch, (other) => token >= 0 && slot[from + other] === token, size, 0);
  }
  context.stroke();
}

function paintImportance(context, size, stage) {
  const from = state.frame * patchesPerFrame;
  for (let patch = 0; patch < patchesPerFrame; patch++) {
    const rank = stage.ranks[from + patch];
    if (rank < 0) {
      fill(context, patch, size, css(data.colours.roles.g.colour, data.colours.roles.g.tint));
      cross(context, patch, size, css(data.colours.crosses.g));
    } else {
      fill(context, patch, size, css(heat(rank), 0.55));
    }
  }
}

function paintGroups(context, size, slot) {
  const marks = marksOf(slot);
  const side = size.width / columns;
  for (let patch = 0; patch < patchesPerFrame; patch++) {
    if (slot[state.frame * patchesPerFrame + patch] >= 0) continue;
    fill(context, patch, size, css(data.colours.roles.g.colour, data.colours.roles.g.tint));
    cross(context, patch, size, css(data.colours.crosses.g));
  }
  paintBorders(context, size, slot);
  for (const [token, members] of tokensOf(slot, state.frame)) {
    const mark = marks.get(token);
    if (!mark) continue;
    outline(context, members, size, mark.colour, Math.max(1.5, side / 11));
    if (mark.number === null || side < 13 * size.scale) continue;
    for (const piece of piecesOf(members)) write(context, Math.min(...piece), size, String(mark.number));
  }
}

function write(context, patch, size, text) {
  const { left, top, width, height } = box(patch, size.width, size.height);
  context.font = `600 ${Math.round(Math.min(height * 0.55, 14 * size.scale))}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineWidth = 3 * size.scale;
  context.strokeStyle = "#000";
  context.strokeText(text, left + width / 2, top + height / 2);
  context.fillStyle = "#fff";
  context.fillText(text, left + width / 2, top + height / 2);
}

/** The chosen token: all other patches darker, its own outlined, and lines from what is merged in this block. */
function paintChosen(context, size, panel) {
  if (!state.chosen) return;
  const from = state.frame * patchesPerFrame;
  const members = new Set();
  for (const index of state.chosen.members) {
    if (index >= from && index < from + patchesPerFrame) members.add(index - from);
  }
  for (let patch = 0; patch < patchesPerFrame; patch++) {
    if (!members.has(patch)) fill(context, patch, size, "rgb(0 0 0 / 0.45)");
  }
  outline(context, members, size, "#000", 4 * size.scale);
  outline(context, members, size, "#ffe14d", 2.5 * size.scale);
  if (panel.stage !== null) paintMoves(context, size, panel.stage, members);
}

function paintMoves(context, size, index, members) {
  const roles = currentStages()[index].roles;
  const from = state.frame * patchesPerFrame;
  const middle = (patch) => {
    const { left, top, width, height } = box(patch, size.width, size.height);
    return [left + width / 2, top + height / 2];
  };
  const targets = [...members].filter((patch) => roles[from + patch] === "t");
  const sources = [...members].filter((patch) => roles[from + patch] === "s");
  if (!targets.length) return;
  for (const [colour, thick] of [["#000", 4], ["#ffe14d", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = thick * size.scale;
    context.beginPath();
    for (const source of sources) {
      context.moveTo(...middle(source));
      context.lineTo(...middle(targets[0]));
    }
    context.stroke();
  }
}

function paint(panel) {
  const image = pictures[state.input][state.frame];
  const { canvas } = panel;
  if (!image.complete || !image.naturalWidth || !canvas.clientWidth) return;
  canvas.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
  const scale = window.devicePixelRatio || 1;
  const size = { width: Math.round(canvas.clientWidth * scale), height: Math.round(canvas.clientHeight * scale), scale };
  canvas.width = size.width;
  canvas.height = size.height;
  const context = canvas.getContext("2d");
  const grey = state.map === "importance" && panel.stage !== null;
  context.filter = grey ? "grayscale(1)" : "none";
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, size.width, size.height);
  context.filter = "none";
  if (grey) paintImportance(context, size, currentStages()[panel.stage]);
  else if (panel.stage !== null) paintRoles(context, size, currentStages()[panel.stage], entering(panel.stage));
  else if (panel.end) paintGroups(context, size, slotOf(panel));
  paintChosen(context, size, panel);
}

function redraw() {
  panels.forEach(paint);
}

function buildPanels() {
  const stages = currentPass().stages;
  const wanted = [
    { stage: null, end: false, text: "Input" },
    ...stages.map((stage, index) => ({
      stage: index,
      end: false,
      text: `Block ${stage.layer}: ${stage.before} to ${stage.after} tokens`,
    })),
    { stage: null, end: true, text: `The ${stages[stages.length - 1].after} tokens at the end` },
  ];
  if (panels.length !== wanted.length) {
    panels = wanted.map((_, index) => newPanel(index));
    byId("panels").replaceChildren(...panels.map((panel) => panel.figure));
  }
  wanted.forEach((one, index) => {
    Object.assign(panels[index], one);
    panels[index].caption.textContent = one.text;
    panels[index].canvas.setAttribute("aria-label", `${one.text}. Arrow keys move between patches.`);
  });
}

function newPanel(index) {
  const canvas = make("canvas", { tabIndex: 0, role: "application", "aria-roledescription": "picture of patches" });
  const caption = make("figcaption");
  const panel = { canvas, caption, cursor: Math.floor(rows / 2) * columns + Math.floor(columns / 2) };
  panel.figure = make("figure", {}, canvas, caption);
  canvas.addEventListener("pointermove", (event) => point(index, event));
  canvas.addEventListener("pointerleave", () => leave());
  canvas.addEventListener("click", (event) => pin(index, event));
  canvas.addEventListener("keydown", (event) => step(index, event));
  canvas.addEventListener("focus", () => {
    if (canvas.matches(":focus-visible")) choose(index, panel.cursor);
  });
  canvas.addEventListener("blur", () => leave());
  return panel;
}

/* ---- choosing a patch ---- */

function patchUnder(canvas, event) {
  const place = canvas.getBoundingClientRect();
  const column = Math.floor(((event.clientX - place.left) / place.width) * columns);
  const row = Math.floor(((event.clientY - place.top) / place.height) * rows);
  return Math.min(rows - 1, Math.max(0, row)) * columns + Math.min(columns - 1, Math.max(0, column));
}

function point(index, event) {
  if (!state.pinned && event.pointerType !== "touch") choose(index, patchUnder(panels[index].canvas, event));
}

function pin(index, event) {
  const patch = patchUnder(panels[index].canvas, event);
  const again = state.pinned && state.chosen?.panel === index && state.chosen.patch === patch;
  state.pinned = !again;
  if (again) clearChoice();
  else choose(index, patch);
}

function leave() {
  if (!state.pinned) clearChoice();
}

function step(index, event) {
  const panel = panels[index];
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (event.key === "Escape") {
    state.pinned = false;
    clearChoice();
  } else if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    state.pinned = !state.pinned;
    choose(index, panel.cursor);
  } else if (event.key in moves) {
    event.preventDefault();
    const next = panel.cursor + moves[event.key];
    const wraps = Math.abs(moves[event.key]) === 1 && Math.floor(next / columns) !== Math.floor(panel.cursor / columns);
    if (next >= 0 && next < patchesPerFrame && !wraps) panel.cursor = next;
    choose(index, panel.cursor);
  }
}

function choose(index, patch) {
  const panel = panels[index];
  const slot = slotOf(panel);
  const place = state.frame * patchesPerFrame + patch;
  const members = slot[place] < 0 ? [place] : untouched.filter((other) => slot[other] === slot[place]);
  panel.cursor = patch;
  state.chosen = { panel: index, patch, frame: state.frame, members };
  tell();
}

function clearChoice() {
  state.chosen = null;
  tell();
}

function tell() {
  byId("status").textContent = state.chosen ? describe() : "No patch is chosen.";
  markFilm();
  redraw();
}

function describe() {
  const { panel: index, patch, frame, members } = state.chosen;
  const panel = panels[index];
  const place = frame * patchesPerFrame + patch;
  const where = `Row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}${frames > 1 ? `, frame ${frame + 1}` : ""}`;
  const token = slotOf(panel)[place];
  const parts = [];
  if (panel.stage === null) parts.push(token < 0 ? `${where}: dropped on the way.` : `${where}.`);
  else {
    const stage = currentStages()[panel.stage];
    parts.push(`Block ${currentPass().stages[panel.stage].layer}, ${where.toLowerCase()}: ${ROLES[stage.roles[place]]}.`);
    if (stage.ranks && stage.ranks[place] >= 0) parts.push(`More important than ${stage.ranks[place]} % of the tokens.`);
  }
  if (token >= 0) {
    const when = panel.stage === null ? "At the end" : "Behind it";
    parts.push(
      members.length === 1 ? `${when} it is a token of its own.` : `${when} ${members.length} patches are one token.`,
    );
  }
  return parts.join(" ");
}

/* ---- numbers and answers ---- */

function showNumbers() {
  const pass = currentPass();
  const last = pass.stages[pass.stages.length - 1];
  const cards = [
    [
      "FLOPs for one input",
      `${gflops(data.dense.gflops)} → ${gflops(pass.gflops)} G`,
      `${percent(pass.ratio, 1)} removed, which promises ${times(pass.promised)}`,
    ],
    ["Tokens", `${data.tokens} → ${last.after}`, "special tokens included"],
  ];
  if (pass.images_per_second !== null) {
    cards.push([
      `${frames > 1 ? "Clips" : "Images"} per second`,
      `${rate(data.dense.images_per_second)} → ${rate(pass.images_per_second)}`,
      `${times(pass.speedup)}, measured`,
    ]);
  }
  byId("numbers").replaceChildren(
    ...cards.map(([name, value, note]) =>
      make("div", {}, make("span", { text: name }), make("strong", { text: value }), make("small", { text: note })),
    ),
  );
}

function showAnswers() {
  const dense = data.inputs[state.input].top;
  const reduced = currentPass().inputs[state.input].top;
  byId("answers").replaceChildren(answerTable("Dense model", dense), answerTable("Reduced model", reduced));
  const same = dense[0]?.[0] === reduced[0]?.[0];
  const verdict = byId("verdict");
  verdict.className = same ? "same" : "changed";
  verdict.textContent = !dense.length
    ? ""
    : same
      ? `Both answer ${dense[0][0]}.`
      : `The answer changes from ${dense[0][0]} to ${reduced[0][0]}.`;
}

function answerTable(title, top) {
  const table = make("table", {}, make("caption", { text: title }));
  table.append(make("thead", { className: "hidden" }, make("tr", {}, head("Class"), head("Probability"))));
  const body = make("tbody");
  for (const [label, probability] of top) {
    const bar = make("i");
    bar.style.width = `calc(${100 * probability}% - 0.5rem)`;
    const cell = make("td", {}, bar, make("span", { text: percent(probability, 1) }));
    body.append(make("tr", {}, make("td", { text: label }), cell));
  }
  table.append(body);
  return table;
}

const head = (text) => make("th", { scope: "col", text });

function showTable() {
  const titles = ["Reduction", "Tokens at the end", "GFLOPs", "Removed", "Inputs per second", "Speed-up", "Promised", "Answer"];
  const line = (name, cells) => make("tr", {}, make("th", { scope: "row", text: name }), ...cells.map((text) => make("td", { text })));
  const cost = (one) => [gflops(one.gflops), percent(one.ratio, 1), rate(one.images_per_second), times(one.speedup), times(one.promised)];
  const answer = (top) => (top.length ? `${top[0][0]} ${percent(top[0][1])}` : "–");
  const lines = data.passes.map((pass) =>
    line(`${pass.method} at ${pass.amount}`, [
      String(pass.stages[pass.stages.length - 1].after),
      ...cost(pass),
      answer(pass.inputs[state.input].top),
    ]),
  );
  byId("table").replaceChildren(
    make("caption", { text: `All reductions, for ${data.inputs[state.input].name}` }),
    make("thead", {}, make("tr", {}, ...titles.map(head))),
    make("tbody", {}, line("dense", [String(data.tokens), ...cost(data.dense), answer(data.inputs[state.input].top)]), ...lines),
  );
}

function showLegend() {
  const stages = currentStages();
  const occurring = new Set(stages.flatMap((stage) => [...stage.roles]));
  const items = [];
  if (state.map === "importance") {
    items.push([ramp(), "least to most important for the method, by rank among the tokens of patches"]);
    if (occurring.has("g")) items.push([swatch("g"), ROLES.g]);
  } else {
    for (const role of "ktsdg") if (occurring.has(role)) items.push([swatch(role), ROLES[role]]);
    if (occurring.has("s")) items.push([numbered(), "patches of one token; the same number: the same token"]);
  }
  byId("legend").replaceChildren(
    ...items.map(([picture, text]) => make("li", {}, picture, make("span", { text }))),
  );
}

function blank(width = 44, height = 44) {
  const canvas = make("canvas", { width, height, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  context.fillStyle = "#a8aca0";
  context.fillRect(0, 0, width, height);
  return [canvas, context];
}

function swatch(role) {
  const [canvas, context] = blank();
  const { colour, tint } = data.colours.roles[role];
  if (colour) {
    context.fillStyle = css(colour, tint);
    context.fillRect(0, 0, 44, 44);
  }
  context.lineWidth = 5;
  if ("ts".includes(role)) {
    context.strokeStyle = css(colour);
    context.strokeRect(2.5, 2.5, 39, 39);
  }
  if ("dg".includes(role)) {
    context.strokeStyle = css(data.colours.crosses[role]);
    context.lineWidth = 3;
    context.beginPath();
    context.moveTo(9, 9);
    context.lineTo(35, 35);
    context.moveTo(9, 35);
    context.lineTo(35, 9);
    context.stroke();
  }
  return canvas;
}

function numbered() {
  const [canvas, context] = blank();
  context.strokeStyle = distinct(0);
  context.lineWidth = 5;
  context.strokeRect(2.5, 2.5, 39, 39);
  context.font = "600 24px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineWidth = 6;
  context.strokeStyle = "#000";
  context.strokeText("1", 22, 23);
  context.fillStyle = "#fff";
  context.fillText("1", 22, 23);
  return canvas;
}

function ramp() {
  const [canvas, context] = blank(192, 44);
  canvas.className = "ramp";
  for (let x = 0; x < 192; x++) {
    context.fillStyle = css(heat((100 * x) / 191));
    context.fillRect(x, 0, 1, 44);
  }
  return canvas;
}

/* ---- controls ---- */

function buildInputs() {
  const choices = data.inputs.map((input, index) => {
    const radio = make("input", { type: "radio", name: "input", value: String(index), checked: index === 0, className: "hidden" });
    radio.addEventListener("change", () => {
      state.input = index;
      changed();
      showFilm();
    });
    return make("label", {}, radio, make("img", { src: input.frames[0], alt: "" }), make("span", { text: input.name }));
  });
  byId("inputs").append(...choices);
}

function buildMethods() {
  const select = byId("method");
  select.append(...methods.map((method) => make("option", { value: method, text: method })));
  byId("method-field").hidden = methods.length < 2;
  select.addEventListener("change", () => {
    const amount = currentPass().amount;
    state.method = select.value;
    const same = passesOf(state.method).findIndex((pass) => pass.amount === amount);
    state.amount = same >= 0 ? same : Math.min(state.amount, passesOf(state.method).length - 1);
    changed();
  });
  byId("amount").addEventListener("input", () => {
    state.amount = Number(byId("amount").value);
    changed();
  });
}

function buildMaps() {
  for (const radio of document.querySelectorAll('input[name="map"]')) {
    radio.addEventListener("change", () => {
      state.map = radio.value;
      changed();
    });
  }
}

function showControls() {
  const choices = passesOf(state.method);
  const slider = byId("amount");
  slider.max = String(choices.length - 1);
  slider.value = String(state.amount);
  slider.disabled = choices.length < 2;
  const text = `${currentPass().method} at ${currentPass().amount}, ${percent(currentPass().ratio, 1)} of the FLOPs`;
  slider.setAttribute("aria-valuetext", text);
  byId("amount-text").textContent = text;
  const has = currentStages().every((stage) => stage.ranks !== null);
  const [tokens, importance] = document.querySelectorAll('input[name="map"]');
  importance.disabled = !has;
  importance.parentElement.title = has ? "" : `${state.method} does not rank tokens by importance`;
  if (!has && state.map === "importance") {
    state.map = "tokens";
    tokens.checked = true;
  }
}

/* ---- clips ---- */

const timeOf = (frame) => {
  const seconds = data.inputs[state.input].times?.[frame];
  return `frame ${frame + 1} of ${frames}${seconds === undefined ? "" : `, ${seconds.toFixed(2)} s`}`;
};

function buildClip() {
  if (frames < 2) return;
  byId("clip").hidden = false;
  byId("frame").max = String(frames - 1);
  byId("frame").addEventListener("input", () => {
    stop();
    goTo(Number(byId("frame").value));
  });
  byId("play").addEventListener("click", () => (timer === null ? play() : stop()));
  showFilm();
}

function showFilm() {
  if (frames < 2) return;
  const buttons = data.inputs[state.input].frames.map((address, frame) => {
    const button = make("button", { type: "button", "aria-label": timeOf(frame) }, make("img", { src: address, alt: "" }));
    button.addEventListener("click", () => {
      stop();
      goTo(frame);
    });
    return make("li", {}, button);
  });
  byId("film").replaceChildren(...buttons);
  goTo(state.frame);
}

function goTo(frame) {
  state.frame = frame;
  byId("frame").value = String(frame);
  byId("frame").setAttribute("aria-valuetext", timeOf(frame));
  byId("frame-text").textContent = timeOf(frame);
  markFilm();
  redraw();
}

function play() {
  byId("play").textContent = "Pause";
  timer = window.setInterval(() => goTo((state.frame + 1) % frames), 500);
}

function stop() {
  byId("play").textContent = "Play";
  window.clearInterval(timer);
  timer = null;
}

/** In each frame, how many patches the chosen token has there. */
function markFilm() {
  if (frames < 2) return;
  [...byId("film").children].forEach((item, frame) => {
    const button = item.firstElementChild;
    button.setAttribute("aria-current", String(frame === state.frame));
    button.querySelector("b")?.remove();
    const count = (state.chosen?.members ?? []).filter((index) => Math.floor(index / patchesPerFrame) === frame).length;
    if (count) button.append(make("b", { text: String(count) }));
  });
}

/** After another input, method or amount. */
function changed() {
  state.pinned = false;
  state.chosen = null;
  showControls();
  buildPanels();
  showNumbers();
  showAnswers();
  showTable();
  showLegend();
  tell();
}

byId("note").textContent = data.note;
byId("note").hidden = !data.note;
buildInputs();
buildMethods();
buildMaps();
changed();
buildClip();
new ResizeObserver(redraw).observe(byId("panels"));
