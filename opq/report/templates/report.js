"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const compressed = D.tensors.filter((t) => t.action === "compress");
const curved = D.curves; // one a tensor; of many tensors one a group
const kept = D.tensors.filter((t) => t.action !== "compress");

// --- numbers and elements ------------------------------------------------------------------
const whole = (x) => Math.round(x).toLocaleString("en");
const percent = (x, digits = 1) => (100 * x).toFixed(digits) + " %";
const size = (b) =>
  b < 1e4
    ? whole(b) + " B"
    : b < 1e6
      ? (b / 1e3).toFixed(1) + " kB"
      : b < 1e9
        ? (b / 1e6).toFixed(2) + " MB"
        : (b / 1e9).toFixed(2) + " GB";
const short = (x) =>
  x === 0 ? "0" : Math.abs(x) >= 1e-3 && Math.abs(x) < 1e4 ? String(+x.toPrecision(4)) : x.toExponential(2);
const counted = (n, noun) => `${whole(n)} ${noun}${n === 1 ? "" : "s"}`;
const sum = (list, f) => list.reduce((total, x) => total + f(x), 0);

function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "rect", "circle", "text", "g"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) made.setAttribute(k, v);
  made.append(...children);
  return made;
}
function tile(value, name) {
  return element("div", { class: "tile" }, element("b", {}, value), element("span", {}, name));
}

// --- axes ----------------------------------------------------------------------------------
function nice(low, high, count) {
  const raw = (high - low) / count,
    power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const ticks = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step)
    ticks.push(Math.abs(t) < step * 1e-9 ? 0 : t);
  return ticks;
}
const wide = (id) => Math.min(1060, Math.max(280, $(id).clientWidth));
function chart(
  box,
  {
    x,
    y,
    width = wide(box),
    height = 300,
    xlabel = "",
    ylabel = "",
    xticks,
    yticks,
    xname = short,
    yname = short,
    bare = false,
  },
) {
  const m = bare ? { l: 4, r: 4, t: 4, b: 4 } : { l: 52, r: 10, t: 10, b: 36 };
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  const px = (v) => m.l + ((v - x[0]) / (x[1] - x[0] || 1)) * (width - m.l - m.r);
  const py = (v) => height - m.b - ((v - y[0]) / (y[1] - y[0] || 1)) * (height - m.t - m.b);
  if (!bare) {
    for (const t of xticks || nice(x[0], x[1], Math.min(6, width / 70)))
      svg.append(
        element("line", { x1: px(t), x2: px(t), y1: m.t, y2: height - m.b, class: "axis" }),
        element("text", { x: px(t), y: height - m.b + 15, "text-anchor": "middle" }, xname(t)),
      );
    for (const t of yticks || nice(y[0], y[1], 5))
      svg.append(
        element("line", { x1: m.l, x2: width - m.r, y1: py(t), y2: py(t), class: "axis" }),
        element("text", { x: m.l - 6, y: py(t) + 4, "text-anchor": "end" }, yname(t)),
      );
    svg.append(element("text", { x: (m.l + width - m.r) / 2, y: height - 4, "text-anchor": "middle" }, xlabel));
    svg.append(
      element(
        "text",
        { transform: `translate(12 ${(m.t + height - m.b) / 2}) rotate(-90)`, "text-anchor": "middle" },
        ylabel,
      ),
    );
  }
  $(box) ? $(box).replaceChildren(svg) : box.append(svg);
  return { svg, px, py, m, width, height };
}
const saying = (svg, label) => svg.setAttribute("aria-label", label);
const path = (points) => points.map(([a, b], i) => (i ? "L" : "M") + a.toFixed(2) + " " + b.toFixed(2)).join("");
function named(node, text) {
  const tip = $("tip");
  const show = (e) => {
    tip.textContent = text();
    tip.hidden = false;
    tip.style.left = Math.min(e.clientX + 12, innerWidth - tip.offsetWidth - 8) + "px";
    tip.style.top = e.clientY + 14 + "px";
  };
  node.addEventListener("pointermove", show);
  node.addEventListener("pointerdown", show);
  node.addEventListener("pointerleave", () => {
    tip.hidden = true;
  });
}

// --- headline and bytes --------------------------------------------------------------------
function headline() {
  const bits = (8 * D.file_bytes) / D.elements,
    over = D.coded_bytes / D.entropy_bytes - 1;
  $("lead").textContent =
    `Method ${D.method}${D.budget ? ", budget " + D.budget : ""}. ${counted(D.compressed, "tensor")} compressed, ${whole(D.kept)} kept or shared. By ${D.basis}.${D.base ? ` The file holds ${D.base}.` : ""}`;
  $("tiles").append(
    tile(size(D.file_bytes), "file, " + whole(D.file_bytes) + " bytes"),
    tile((D.source_bytes / D.file_bytes).toFixed(2) + "×", "smaller than " + size(D.source_bytes)),
    tile(bits.toFixed(3), "bits per weight, all counted"),
    tile(D.compressed ? percent(D.zeros) : "–", "of compressed weights are zero"),
    tile(
      Number.isFinite(over) ? (over >= 0 ? "+" : "−") + percent(Math.abs(over), 2) : "–",
      "codes against the fewest bytes by frequencies alone (entropy)",
    ),
  );
  const parts = [
    ["Codes", D.coded_bytes, "--codes"],
    ["Kept tensors", D.kept_bytes, "--kept"],
    ["Header, plan, index", D.other_bytes, "--other"],
  ];
  const legend = element("ul", { class: "legend" });
  const bar = element("div", {
    class: "bar",
    role: "img",
    "aria-label": parts.map(([n, b]) => `${n} ${percent(b / D.file_bytes)}`).join(", "),
  });
  for (const [name, bytes, colour] of parts) {
    bar.append(element("i", { style: `flex: ${bytes} 0 0; background: var(${colour})`, title: name }));
    legend.append(
      element(
        "li",
        {},
        element("i", { style: `background: var(${colour})` }),
        `${name}: ${whole(bytes)} bytes (${percent(bytes / D.file_bytes)})`,
      ),
    );
  }
  $("bytes").append(bar, legend);
  const most = [...D.tensors]
    .sort((a, b) => b.bytes - a.bytes)
    .slice(0, 3)
    .filter((t) => t.bytes);
  $("bytes-note").textContent = most.length
    ? "The largest: " + most.map((t) => `${t.name} (${percent(t.bytes / D.file_bytes)})`).join(", ") + "."
    : "";
}

// --- the allocation: one dual scalar ---------------------------------------------------------
function interpolate(xs, ys, x) {
  // xs ascending
  const last = xs.length - 1;
  if (x <= xs[0]) return ys[0];
  if (x >= xs[last]) return ys[last];
  let lo = 0,
    hi = last;
  while (hi - lo > 1) {
    const mid = (lo + hi) >> 1;
    if (xs[mid] <= x) lo = mid;
    else hi = mid;
  }
  return ys[lo] + ((ys[hi] - ys[lo]) * (x - xs[lo])) / (xs[hi] - xs[lo] || 1);
}
for (const t of curved) {
  t.down = t.curve.slope.map((s) => -s);
  t.logA = Math.log(t.a);
}
const rateAt = (t, logLambda) => interpolate(t.down, t.curve.rate, t.logA - logLambda);
const totalBits = (logLambda) => sum(curved, (t) => t.size * rateAt(t, logLambda));
const [LOW, HIGH] = curved.length
  ? [Math.min(...curved.map((t) => t.logA - t.down.at(-1))) - 1, Math.max(...curved.map((t) => t.logA - t.down[0])) + 1]
  : [0, 1];
function solve(bits) {
  // the log lambda whose rates add up to `bits`: bisection on a decreasing function
  let low = LOW,
    high = HIGH;
  for (let k = 0; k < 60; k++) {
    const mid = (low + high) / 2;
    if (totalBits(mid) > bits) low = mid;
    else high = mid;
  }
  return (low + high) / 2;
}
const entropyBits = 8 * sum(curved, (t) => t.entropy);
const fixedBytes = D.file_bytes - sum(curved, (t) => t.bytes);
const here = solve(entropyBits);
const coding = sum(curved, (t) => t.bytes) / Math.max(totalBits(here) / 8, 1e-9); // coded bytes for a byte of entropy
const fileAt = (logLambda) => fixedBytes + (coding * totalBits(logLambda)) / 8;
const errorAt = (logLambda) =>
  sum(curved, (t) => t.a * t.size * interpolate(t.curve.rate, t.curve.distortion, rateAt(t, logLambda)));
const smallest = fileAt(HIGH),
  largest = Math.min(fileAt(LOW), Math.max(1.25 * D.elements, 2 * D.file_bytes));
const toBytes = (s) => smallest * (largest / smallest) ** (s / 1000);
const toSlider = (b) => (1000 * Math.log(b / smallest)) / Math.log(largest / smallest);
const lambdaFor = (bytes) => solve(((bytes - fixedBytes) / coding) * 8);

let axes = {};
const redrawn = []; // what is drawn again where the page changes its width
function drawCurves() {
  const top = Math.max(
    1,
    ...curved.map((t) => Math.min(t.curve.rate.at(-1), Math.max(8, (8 * t.entropy) / t.size + 1))),
  );
  const drawnAt = (t) => [...t.curve.rate.filter((r) => r < top), Math.min(top, t.curve.rate.at(-1))];
  const slopeAt = (t, rate) => interpolate(t.curve.rate, t.curve.slope, rate);
  const decades = (v) => v / Math.LN10;
  const gains = curved.flatMap((t) => drawnAt(t).map((rate) => decades(t.logA + slopeAt(t, rate))));
  const y = [Math.floor(Math.min(...gains)), Math.ceil(Math.max(...gains))];
  const ticks = nice(y[0], y[1], 6).filter(Number.isInteger);
  const level = chart("level", {
    x: [0, top],
    y,
    xlabel: "bits per weight",
    ylabel: "gain of one more bit",
    yticks: ticks,
    yname: (v) => "1e" + v,
  });
  const relative = (t, d) => 10 * Math.log10(Math.max(d, 1e-30) / t.curve.distortion[0]);
  const curves = chart("curves", { x: [0, top], y: [-6 * top - 4, 0], xlabel: "bits per weight", ylabel: "error, dB" });
  for (const t of curved) {
    const line = (axis, f) => {
      const inside = drawnAt(t)
        .map((rate) => [axis.px(rate), f(rate)])
        .filter(([, b]) => b <= axis.height - axis.m.b && b >= axis.m.t);
      const d = path(inside);
      const drawn = element("path", { d, fill: "none", stroke: "var(--curve)", "stroke-width": 1.2 });
      const wide = element("path", { d, fill: "none", stroke: "transparent", "stroke-width": 9 });
      named(wide, () => `${t.name}: ${rateAt(t, axes.lambda).toFixed(2)} bits`);
      axis.svg.append(drawn, wide);
    };
    line(level, (rate) => level.py(decades(t.logA + slopeAt(t, rate))));
    line(curves, (rate) => curves.py(relative(t, interpolate(t.curve.rate, t.curve.distortion, rate))));
  }
  const water = element("line", {
    x1: level.m.l,
    x2: level.width - level.m.r,
    stroke: "var(--accent)",
    "stroke-width": 1.5,
  });
  level.svg.append(water);
  for (const t of curved) {
    t.dots = [level, curves].map((axis) => {
      const dot = element("circle", { r: 3.2, fill: "var(--accent)", stroke: "var(--bg)", "stroke-width": 0.7 });
      named(dot, () => `${t.name}: ${rateAt(t, axes.lambda).toFixed(2)} bits`);
      axis.svg.append(dot);
      return dot;
    });
  }
  saying(level.svg, `What one more bit gains in each of ${curved.length} tensors, against bits per weight, and the multiplier as a line.`);
  saying(curves.svg, `Error against bits per weight of each of ${curved.length} tensors.`);
  axes = { level, curves, water, decades, relative, top };
}
function drawAllocation() {
  const most = axes.top;
  const c = chart("alloc", {
    x: [0, curved.length],
    y: [0, most],
    height: 220,
    xlabel:
      curved.length < D.compressed - D.uncurved ? "tensors and groups of tensors" : "tensors, in the model's order",
    ylabel: "bits per weight",
    xticks: [],
  });
  const w = Math.max(1, (c.px(1) - c.px(0)) * 0.8);
  curved.forEach((t, k) => {
    t.bar = element("rect", { x: c.px(k + 0.1), width: w, fill: "var(--codes)" });
    const mine = Math.min((8 * t.entropy) / t.size, most);
    const outline = element("rect", {
      x: c.px(k + 0.1),
      width: w,
      y: c.py(mine),
      height: c.py(0) - c.py(mine),
      fill: "none",
      stroke: "var(--ink)",
      "stroke-width": 0.8,
    });
    named(t.bar, () => `${t.name}: ${rateAt(t, axes.lambda).toFixed(2)} bits`);
    c.svg.append(t.bar, outline);
  });
  saying(c.svg, `Bits per weight of each of ${curved.length} tensors: this file's as outlines, the slider's budget filled.`);
  axes.alloc = c;
}
function show(logLambda) {
  axes.lambda = logLambda;
  const bytes = fileAt(logLambda),
    y = axes.level.py(axes.decades(logLambda));
  const weights = sum(curved, (t) => t.size);
  const zeros = sum(curved, (t) => t.size * (1 - interpolate(t.curve.rate, t.curve.density, rateAt(t, logLambda))));
  $("solved").replaceChildren(
    tile(size(bytes), "predicted file"),
    tile(((8 * bytes) / D.elements).toFixed(3), "bits per weight"),
    tile((D.source_bytes / bytes).toFixed(2) + "×", "smaller"),
    tile((10 * Math.log10(errorAt(logLambda) / errorAt(here))).toFixed(2) + " dB", "weighted error against this file; 3 dB is double or half"),
    tile(percent(zeros / weights), "zero, predicted"),
    tile(short(Math.exp(logLambda)), "multiplier λ"),
  );
  $("budget").setAttribute("aria-valuetext", `${size(bytes)}, ${((8 * bytes) / D.elements).toFixed(2)} bits per weight`);
  axes.water.setAttribute("y1", y);
  axes.water.setAttribute("y2", y);
  for (const t of curved) {
    const rate = rateAt(t, logLambda),
      r = Math.min(rate, axes.top);
    const gain = axes.decades(t.logA - interpolate(t.curve.rate, t.down, rate));
    const places = [
      [axes.level, axes.level.py(gain)],
      [axes.curves, axes.curves.py(axes.relative(t, interpolate(t.curve.rate, t.curve.distortion, rate)))],
    ];
    places.forEach(([axis, at], k) => {
      t.dots[k].setAttribute("cx", axis.px(r));
      t.dots[k].setAttribute("cy", Math.min(Math.max(at, axis.m.t), axis.height - axis.m.b));
    });
    const tall = Math.min(rate, axes.top);
    t.bar.setAttribute("y", axes.alloc.py(tall));
    t.bar.setAttribute("height", axes.alloc.py(0) - axes.alloc.py(tall));
  }
}
function budget() {
  if (!curved.length || !(largest > smallest)) {
    $("budget-section").remove();
    return;
  }
  const draw = (logLambda) => {
    drawCurves();
    drawAllocation();
    show(logLambda);
  };
  const slider = $("budget");
  $("smallest").textContent = size(smallest);
  $("largest-size").textContent = size(largest);
  slider.value = toSlider(D.file_bytes);
  slider.addEventListener("input", () => show(lambdaFor(toBytes(+slider.value))));
  $("reset").addEventListener("click", () => {
    slider.value = toSlider(D.file_bytes);
    show(here);
  });
  draw(here);
  redrawn.push(() => draw(axes.lambda));
  $("curves-note").textContent =
    (D.measured
      ? "The curves were measured on the source's own weights."
      : "The file holds codes, not weights: these curves are the closed form of a Laplacian fitted to each tensor's codes (opq report FILE --source SOURCE measures the real ones).") +
    " Sizes are scaled so that this file's own point gives this file's own size; another budget is a prediction, good to a few per cent." +
    (D.trellised
      ? ` Of ${counted(D.trellised, "tensor")} on a trellis it is the curve on plain grids less the bits that a trellis saves, up to 0.2.`
      : "") +
    (D.uncurved ? ` ${counted(D.uncurved, "tensor")} without a uniform grid, or all zero, ${D.uncurved === 1 ? "stays as it is" : "stay as they are"}.` : "") +
    (curved.length < D.compressed - D.uncurved
      ? " Tensors whose names differ in numbers only are drawn as one: under one λ their curves add up."
      : "");
}

// --- histograms ------------------------------------------------------------------------------
function drawHistogram(box, t, bare) {
  const n = sum(t.counts, (c) => c),
    reach = Math.max(...t.codes.map((q, k) => (t.counts[k] / n > 2e-5 || Math.abs(q) < 2 ? Math.abs(q) : 0)), 1) + 0.6;
  const floor = Math.log10(0.5 / n / t.step),
    tops = t.codes.map((q, k) => Math.log10(t.counts[k] / n / (q === 0 ? 2 * t.threshold : t.step)));
  let top = Math.max(...tops) + 0.15;
  if (t.tau) top = Math.max(top, Math.log10(1 / (2 * t.tau)) + 0.1);
  const span = [-reach * t.step, reach * t.step];
  const c = chart(box, {
    x: span,
    y: [floor, top],
    width: bare ? 260 : wide(box),
    height: bare ? 120 : 300,
    xlabel: "weight",
    ylabel: "density",
    yticks: nice(floor, top, 5).filter(Number.isInteger),
    yname: (v) => "1e" + v,
    bare,
  });
  saying(c.svg, `Histogram of the codes of ${t.name}: step ${short(t.step)}, ${percent(t.sparsity)} zero.`);
  const inside = (v) => Math.min(Math.max(v, span[0]), span[1]);
  if (!t.trellis)
    c.svg.append(
      element("rect", {
        x: c.px(inside(-t.threshold)),
        width: c.px(inside(t.threshold)) - c.px(inside(-t.threshold)),
        y: c.m.t,
        height: c.height - c.m.t - c.m.b,
        fill: "var(--dead)",
      }),
    );
  t.codes.forEach((q, k) => {
    if (Math.abs(q) > reach) return;
    const half = q === 0 ? t.threshold : t.step / 2,
      a = q === 0 ? -half : q * t.step - half * 0.8,
      b = q === 0 ? half : q * t.step + half * 0.8;
    if (tops[k] <= floor) return;
    const bar = element("rect", {
      x: c.px(a),
      width: Math.max(c.px(b) - c.px(a), 0.5),
      y: c.py(tops[k]),
      height: c.py(floor) - c.py(tops[k]),
      fill: q === 0 && !t.trellis ? "var(--other)" : "var(--codes)",
      opacity: t.trellis && q % 2 ? 0.4 : 0.75,
    });
    named(bar, () => `code ${q} → weight ${short(q * t.step)}: ${whole(t.counts[k])} of ${whole(n)}`);
    c.svg.append(bar);
    if (!bare && reach < 60)
      c.svg.append(
        element("line", {
          x1: c.px(q * t.step),
          x2: c.px(q * t.step),
          y1: c.py(floor),
          y2: c.py(floor) + 5,
          stroke: "var(--accent)",
        }),
      );
  });
  const curve = (points, colour) =>
    c.svg.append(
      element("path", {
        d: path(
          points
            .filter(([v, d]) => v >= span[0] && v <= span[1] && d >= floor)
            .map(([v, d]) => [c.px(v), c.py(Math.min(d, top))]),
        ),
        fill: "none",
        stroke: colour,
        "stroke-width": 1.6,
      }),
    );
  if (t.weights)
    curve(
      t.weights[1].map((h, k) => [(t.weights[0][k] + t.weights[0][k + 1]) / 2, h > 0 ? Math.log10(h) : -99]),
      "var(--ink)",
    );
  if (t.tau) {
    const xs = Array.from({ length: 121 }, (_, k) => span[0] + ((span[1] - span[0]) * k) / 120);
    curve(
      xs.map((v) => [v, Math.log10(Math.exp(-Math.abs(v) / t.tau) / (2 * t.tau))]),
      "var(--kept)",
    );
  }
}
function histograms() {
  const drawn = D.histograms;
  if (!drawn.length) {
    $("which").closest("section").remove();
    return;
  }
  const largest = [...drawn].sort((a, b) => b.size - a.size);
  const choose = (t) => {
    $("which").value = t.name;
    drawHistogram("histogram", t, false);
    $("histogram-note").textContent =
      `${t.name}, ${t.shape}: step ${short(t.step)}, ` +
      (t.trellis
        ? "on a trellis: each weight is rounded to one of two grids of twice that step (dark and light), told by the codes above it, and there is no dead zone; "
        : `dead zone ±${short(t.threshold)} (shaded, ${(t.threshold / t.step).toFixed(2)} steps), `) +
      `${percent(t.sparsity)} zero. ` +
      `Bars: codes at their codebook values (red ticks), logarithmic. Orange: the Laplacian ${D.measured ? "with the tensor's mean magnitude" : "fitted to the codes"}, τ = ${short(t.tau)}.` +
      (t.weights ? " Thin line: the source's own weights." : "");
  };
  if (drawn.length < D.compressed) $("largest").textContent = `Of the ${whole(drawn.length)} largest.`;
  for (const t of drawn) $("which").append(element("option", { value: t.name }, t.name));
  $("which").addEventListener("change", () => choose(drawn.find((t) => t.name === $("which").value)));
  for (const t of largest.slice(0, 8)) {
    const button = element("button", { type: "button" }, t.name);
    drawHistogram(button, t, true);
    button.addEventListener("click", () => choose(t));
    $("multiples").append(button);
  }
  choose(largest[0]);
  redrawn.push(() => choose(drawn.find((t) => t.name === $("which").value)));
}

// --- tables ------------------------------------------------------------------------------------
const PAGE = 100; // rows shown at a time
function table(id, columns, items, cells) {
  // columns: name, class, and the number to order by
  const head = element("tr"),
    body = element("tbody"),
    find = element("input", { type: "search", placeholder: "Find by name", "aria-label": "Find by name" });
  const said = element("span"),
    back = element("button", { type: "button" }, "Previous"),
    on = element("button", { type: "button" }, "Next");
  let found = items,
    first = 0,
    ordered = null;
  const fill = () => {
    body.replaceChildren(
      ...found
        .slice(first, first + PAGE)
        .map((t) =>
          element(
            "tr",
            {},
            ...cells(t).map((cell, k) => element("td", columns[k][1] ? { class: columns[k][1] } : {}, cell)),
          ),
        ),
    );
    said.textContent = found.length
      ? `${whole(first + 1)} to ${whole(Math.min(first + PAGE, found.length))} of ${whole(found.length)}`
      : "none";
    back.disabled = first === 0;
    on.disabled = first + PAGE >= found.length;
  };
  const choose = () => {
    const words = find.value.toLowerCase();
    found = items.filter((t) => t.name.toLowerCase().includes(words));
    if (ordered) found.sort((a, b) => ordered.sign * (ordered.key(b) - ordered.key(a)));
    first = 0;
    fill();
  };
  for (const [name, kind, key] of columns) {
    const th = element("th", kind ? { class: kind } : {});
    if (key && items.length > 1) {
      const sort = element("button", { type: "button", title: "Order by " + name }, name);
      sort.addEventListener("click", () => {
        ordered = { key, sign: ordered && ordered.key === key ? -ordered.sign : 1 };
        head.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
        th.setAttribute("aria-sort", ordered.sign > 0 ? "descending" : "ascending");
        choose();
      });
      th.append(sort);
    } else th.append(name);
    head.append(th);
  }
  find.addEventListener("input", choose);
  back.addEventListener("click", () => {
    first -= PAGE;
    fill();
  });
  on.addEventListener("click", () => {
    first += PAGE;
    fill();
  });
  if (items.length > PAGE) $(id).parentElement.before(element("div", { class: "pager" }, find, said, back, on));
  $(id).append(element("thead", {}, head), body);
  fill();
}
function meter(share, dot) {
  const at = (100 * Math.min(Math.max(share, 0), 1)).toFixed(1) + "%";
  return element(
    "span",
    { class: "meter" },
    element("i", dot ? { class: "dot", style: `left: ${at}` } : { style: `width: ${at}` }),
  );
}
function tables() {
  const widest = Math.max(...compressed.map((t) => t.bytes), 1),
    steps = compressed.filter((t) => t.step > 0).map((t) => Math.log(t.step));
  const [low, high] = steps.length ? [Math.min(...steps), Math.max(...steps)] : [0, 1];
  const over = (t) => (t.entropy ? t.bytes / t.entropy - 1 : 0),
    rate = (t) => (8 * t.bytes) / t.size;
  table(
    "tensors",
    [
      ["tensor", "name"],
      ["shape"],
      ["bytes", "number", (t) => t.bytes],
      [""],
      ["zero", "number", (t) => t.sparsity],
      [""],
      ["step", "number", (t) => t.step],
      [""],
      ["bits/weight", "number", rate],
      ["over entropy", "number", over],
      ["sensitivity", "number", (t) => t.a],
    ],
    compressed,
    (t) => [
      t.name,
      t.shape,
      whole(t.bytes),
      meter(t.bytes / widest),
      percent(t.sparsity),
      meter(t.sparsity),
      t.step ? short(t.step) : t.codebook,
      t.step ? meter((Math.log(t.step) - low) / (high - low || 1), true) : "",
      rate(t).toFixed(2),
      t.entropy ? (over(t) >= 0 ? "+" : "−") + percent(Math.abs(over(t)), 2) : "–",
      short(t.a),
    ],
  );
  table(
    "kept",
    [
      ["why", "name"],
      ["tensors", "number"],
      ["elements", "number"],
      ["bytes", "number"],
    ],
    D.reasons.map((r) => ({ name: r[0], r })),
    ({ r }) => [r[0], ...r.slice(1).map(whole)],
  );
  table(
    "kept-all",
    [["tensor", "name"], ["shape"], ["type"], ["what"], ["bytes", "number", (t) => t.bytes], ["why"]],
    kept,
    (t) => [t.name, t.shape, t.dtype, t.action, whole(t.bytes), t.reason],
  );
  if (D.tensors.length < D.compressed + D.kept)
    $("unlisted").textContent =
      `Listed here and below: the ${whole(D.tensors.length)} tensors with the most bytes of ${whole(D.compressed + D.kept)}; opq inspect lists all. Sums are over all.`;
}

headline();
budget();
histograms();
tables();
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) {
    width = innerWidth;
    redrawn.forEach((again) => again());
  }
});
document.documentElement.dataset.drawn = "yes";
