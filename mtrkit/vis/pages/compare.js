/* The page of `mtrkit compare`. */

const size = { width: 860, height: 460 };
const MARGIN = { left: 62, right: 24, top: 16, bottom: 48 };
const FEW = 3; // methods whose intervals are all shown
const COLOURS = 8; // of the style sheet
const NEAR = 40; // pixels from the pointer within which a point is chosen

const points = data.points.map((point, index) => ({ ...point, index, dense: point.method === "dense" }));
const methods = [...new Set(points.filter((point) => !point.dense).map((point) => point.method))];
const timed = points.some((point) => point.images_per_second !== null);
const state = { cost: "gflops", gain: "change", hidden: new Set(), chosen: null, sort: null, down: false };

const nameOf = (point) => (point.dense ? `${point.model}, dense` : `${point.method} at ${amountOf(point)}`);
const amountOf = (point) => (point.amount.includes("=") ? point.amount : `ratio ${point.amount}`);
const seriesOf = (point) => (point.dense ? "dense" : `s${methods.indexOf(point.method) % COLOURS}`);
const MARKS = ["circle", "square", "diamond", "up"];
const turn = (index) => index + Math.floor(index / COLOURS); // the colours' second turn has other marks
const markOf = (point) => (point.dense ? "circle" : MARKS[turn(methods.indexOf(point.method)) % MARKS.length]);
const cost = (point) => point[state.cost];
const visible = () => points.filter((point) => cost(point) !== null && (point.dense || !state.hidden.has(point.method)));

/** Value, lower and upper end of what the vertical axis shows, in per cent or points. */
function gain(point) {
  if (state.gain === "top1") return [point.top1, ...point.interval].map((share) => 100 * share);
  const { share, low, high } = point.difference ?? { share: 0, low: 0, high: 0 };
  return [share, low, high].map((part) => 100 * part);
}

/* ---- the plot ---- */

function ticks(low, high, wanted) {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(value);
  return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function extent(values, share) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const space = (high - low || Math.abs(high) || 1) * share;
  return [low - space, high + space];
}

function scales(shown) {
  const [left, right] = extent(shown.map(cost), 0.06);
  const [bottom, top] = extent(shown.flatMap(gain), 0.08);
  return {
    x: (value) => MARGIN.left + ((value - left) / (right - left)) * (size.width - MARGIN.left - MARGIN.right),
    y: (value) => size.height - MARGIN.bottom - ((value - bottom) / (top - bottom)) * (size.height - MARGIN.top - MARGIN.bottom),
    across: ticks(left, right, 6),
    up: ticks(bottom, top, 6),
  };
}

function drawPlot() {
  const shown = visible();
  size.width = Math.max(320, byId("plot").clientWidth);
  size.height = Math.round(Math.min(480, Math.max(300, 0.55 * size.width)));
  const svg = shape("svg", { viewBox: `0 0 ${size.width} ${size.height}`, role: "group", "aria-label": "Accuracy against cost" });
  const { x, y, across, up } = scales(shown);
  svg.append(axes(x, y, across, up));
  const few = methods.length - state.hidden.size <= FEW;
  const place = (point) => x(cost(point)) + (few ? besides(point) : 0);
  const body = shape("g", few ? { class: "few" } : {});
  body.append(front(shown, place, y));
  for (const method of methods) {
    const line = shown.filter((point) => point.method === method).sort((a, b) => cost(a) - cost(b));
    const corners = line.map((point) => `${place(point)},${y(gain(point)[0])}`).join(" ");
    if (line.length < 2) continue;
    const curve = shape("polyline", { class: `curve ${seriesOf(line[0])}`, points: corners });
    curve.dataset.method = method;
    body.append(curve);
  }
  for (const point of shown) body.append(drawPoint(point, place(point), y));
  if (state.cost === "gflops") body.append(amountsBelow(shown, x));
  svg.append(body);
  svg.addEventListener("pointermove", (event) => pick(event, shown, place, y));
  svg.addEventListener("pointerdown", (event) => pick(event, shown, place, y));
  const focused = document.activeElement.closest?.("#plot g.point")?.dataset.index;
  byId("plot").replaceChildren(svg);
  if (focused !== undefined) svg.querySelector(`[data-index="${focused}"]`)?.focus();
}

/** What was removed, once below the points of all methods, which cost as much. */
function amountsBelow(shown, x) {
  const group = shape("g", { "aria-hidden": "true" });
  const reduced = shown.filter((point) => !point.dense);
  for (const amount of new Set(reduced.map(amountOf))) {
    const costs = reduced.filter((point) => amountOf(point) === amount).map(cost);
    const middle = costs.reduce((sum, one) => sum + one, 0) / costs.length;
    if (x(Math.max(...costs)) - x(Math.min(...costs)) > NEAR) continue;
    const text = size.width < 600 ? amount.replace("ratio ", "") : amount;
    group.append(label(text, { x: x(middle), y: size.height - MARGIN.bottom - 6, "text-anchor": "middle" }));
  }
  return group;
}

/** Choose the point that is nearest to the pointer: points may lie so close that none could be hit. */
function pick(event, shown, place, y) {
  const frame = byId("plot").firstElementChild.getBoundingClientRect();
  const distance = (point) =>
    Math.hypot(frame.left + place(point) - event.clientX, frame.top + y(gain(point)[0]) - event.clientY);
  const nearest = shown.reduce((best, point) => (distance(point) < distance(best) ? point : best));
  if (distance(nearest) < NEAR) choose(nearest.index);
}

/** Pixels by which methods that have the same cost stand apart, so that their intervals do not cover each other. */
function besides(point) {
  const shown = methods.filter((method) => !state.hidden.has(method));
  if (point.dense || state.cost !== "gflops") return 0;
  return 9 * (shown.indexOf(point.method) - (shown.length - 1) / 2);
}

function label(text, attributes) {
  const element = shape("text", attributes);
  element.textContent = text;
  return element;
}

function axes(x, y, across, up) {
  const group = shape("g", { "aria-hidden": "true" });
  for (const value of across.found) {
    group.append(shape("line", { class: "grid", x1: x(value), x2: x(value), y1: MARGIN.top, y2: size.height - MARGIN.bottom }));
    group.append(label(value.toFixed(across.digits), { class: "tick", x: x(value), y: size.height - MARGIN.bottom + 18, "text-anchor": "middle" }));
  }
  for (const value of up.found) {
    const zero = state.gain === "change" && Math.abs(value) < 1e-9;
    group.append(shape("line", { class: zero ? "zero" : "grid", x1: MARGIN.left, x2: size.width - MARGIN.right, y1: y(value), y2: y(value) }));
    group.append(label(value.toFixed(up.digits).replace("-", "−"), { class: "tick", x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }));
  }
  const middle = (MARGIN.top + size.height - MARGIN.bottom) / 2;
  group.append(label(state.cost === "gflops" ? "GFLOPs for one input, by ratio" : "inputs per second", { x: (MARGIN.left + size.width - MARGIN.right) / 2, y: size.height - 8, "text-anchor": "middle" }));
  group.append(label(state.gain === "change" ? "points from dense" : "top-1, %", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(14 ${middle}) rotate(-90)` }));
  return group;
}

/** The models that no other one beats in cost and accuracy. */
function unbeaten(shown) {
  const cheaper = (a, b) => (state.cost === "gflops" ? cost(a) - cost(b) : cost(b) - cost(a));
  const found = [];
  for (const point of [...shown].sort((a, b) => cheaper(a, b) || gain(b)[0] - gain(a)[0])) {
    if (!found.length || gain(point)[0] > gain(found[found.length - 1])[0]) found.push(point);
  }
  return found;
}

function front(shown, place, y) {
  const corners = unbeaten(shown).map((point) => `${place(point)},${y(gain(point)[0])}`);
  return shape("polyline", { class: "front", points: corners.join(" ") });
}

function drawPoint(point, left, y) {
  const [value, low, high] = gain(point);
  const top = y(value);
  const classes = `point ${seriesOf(point)}${state.chosen === point.index ? " chosen" : ""}`;
  const group = shape("g", { class: classes, tabindex: "0", role: "img", "aria-label": describe(point) });
  group.dataset.index = point.index;
  group.append(
    shape("line", { class: "interval", x1: left, x2: left, y1: y(low), y2: y(high) }),
    shape("circle", { class: "halo", cx: left, cy: top, r: 12 }),
    mark(markOf(point), left, top),
    label(point.amount, { class: "amount", x: left + 8, y: top - 8, "aria-hidden": "true" }),
  );
  group.addEventListener("focus", () => choose(point.index));
  return group;
}

function mark(kind, x, y) {
  if (kind === "circle") return shape("circle", { class: "mark", cx: x, cy: y, r: 5.5 });
  const corners = {
    square: [[-5, -5], [5, -5], [5, 5], [-5, 5]],
    diamond: [[0, -7], [7, 0], [0, 7], [-7, 0]],
    up: [[0, -6.5], [6.5, 5], [-6.5, 5]],
  }[kind];
  return shape("polygon", { class: "mark", points: corners.map(([dx, dy]) => `${x + dx},${y + dy}`).join(" ") });
}

function describe(point) {
  const parts = [`${nameOf(point)}: top-1 ${percent(point.top1, 1)} (${bounds(point.interval)})`];
  if (point.difference) parts.push(`${difference(point)} points from dense`);
  parts.push(`${gflops(point.gflops)} GFLOPs`);
  if (point.images_per_second !== null) parts.push(`${rate(point.images_per_second)} per second, ${times(point.speedup)}`);
  return `${parts.join("; ")}.`;
}

const bounds = ([low, high]) => `${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)}`;
const clear = ({ low, high }) => low > 0 || high < 0;
const difference = ({ difference: found }) =>
  found ? `${signed(100 * found.share)} (${signed(100 * found.low)} to ${signed(100 * found.high)})${clear(found) ? " *" : ""}` : "";

function choose(index) {
  state.chosen = index;
  byId("status").textContent = describe(points[index]);
  for (const group of document.querySelectorAll("#plot g.point")) {
    group.classList.toggle("chosen", Number(group.dataset.index) === index);
  }
  for (const curve of document.querySelectorAll("#plot .curve")) {
    curve.classList.toggle("faint", !points[index].dense && curve.dataset.method !== points[index].method);
  }
  for (const row of document.querySelectorAll("#table tbody tr")) {
    row.classList.toggle("chosen", Number(row.dataset.index) === index);
  }
}

/* ---- the table ---- */

const COLUMNS = [
  ["Model or method", (point) => nameOf(point), (point) => nameOf(point)],
  ["Top-1, % (95 % interval)", (point) => `${(100 * point.top1).toFixed(1)} (${bounds(point.interval)})`, (point) => point.top1],
  ["Difference from dense (95 %)", difference, (point) => point.difference?.share ?? 0],
  ["GFLOPs", (point) => gflops(point.gflops), (point) => point.gflops],
  ...(timed
    ? [
        ["Per second", (point) => rate(point.images_per_second), (point) => point.images_per_second ?? 0],
        ["Speed-up", (point) => times(point.speedup), (point) => point.speedup ?? 0],
      ]
    : []),
];

function drawTable() {
  const heads = COLUMNS.map(([text], index) => {
    const button = make("button", { type: "button", text });
    button.addEventListener("click", () => sortBy(index));
    const order = state.sort === index ? (state.down ? "descending" : "ascending") : "none";
    return make("th", { scope: "col", "aria-sort": order }, button);
  });
  const lines = sorted().map((point) => {
    const [name, ...cells] = COLUMNS.map(([, text]) => text(point));
    const key = make("span", { className: "hidden", text: point.dense ? "dense model " : "" });
    const row = make("tr", {}, make("th", { scope: "row" }, key, name), ...cells.map((text) => make("td", { text })));
    row.dataset.index = point.index;
    row.classList.toggle("chosen", state.chosen === point.index);
    row.addEventListener("pointerenter", () => choose(point.index));
    return row;
  });
  byId("table").replaceChildren(make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...lines));
}

function sorted() {
  if (state.sort === null) return points;
  const value = COLUMNS[state.sort][2];
  const order = (a, b) => (value(a) < value(b) ? -1 : value(a) > value(b) ? 1 : a.index - b.index);
  return [...points].sort((a, b) => (state.down ? order(b, a) : order(a, b)));
}

function sortBy(index) {
  state.down = state.sort === index ? !state.down : index > 0;
  state.sort = index;
  drawTable();
  byId("table").querySelectorAll("thead button")[index].focus();
}

/* ---- controls ---- */

function buildControls() {
  for (const [group, key] of [["cost", "cost"], ["gain", "gain"]]) {
    for (const radio of document.querySelectorAll(`input[name="${group}"]`)) {
      radio.addEventListener("change", () => {
        state[key] = radio.value;
        drawPlot();
      });
    }
  }
  byId("across").hidden = !timed;
  for (const method of methods) {
    const box = make("input", { type: "checkbox", checked: true });
    box.addEventListener("change", () => {
      if (box.checked) state.hidden.delete(method);
      else state.hidden.add(method);
      drawPlot();
    });
    const key = make("span", { className: `key s${methods.indexOf(method) % COLOURS}`, "aria-hidden": "true" });
    byId("methods").append(make("label", {}, box, key, make("span", { text: method })));
  }
}

byId("status").textContent = "No point is chosen.";
buildControls();
drawTable();
new ResizeObserver(drawPlot).observe(byId("plot")); // draws the first time too
