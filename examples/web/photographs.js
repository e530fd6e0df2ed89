// Classes of a photograph: its middle, 224 x 224 pixels from -1 to 1, through the network.

import { at, figure, network, number, ort, rows, told } from "./page.js";

const SIDE = 224;
const SHOWN = 0.875; // of the shorter side: what evaluations crop
const MOST = 5;

/** The middle of a picture on the canvas, and its pixels, channel by channel. */
function pixels(picture) {
  const canvas = at("picture");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const { width, height } = picture;
  const side = width === SIDE && height === SIDE ? SIDE : SHOWN * Math.min(width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, (width - side) / 2, (height - side) / 2, side, side, 0, 0, SIDE, SIDE);
  const { data } = context.getImageData(0, 0, SIDE, SIDE);
  const area = SIDE * SIDE;
  return Float32Array.from({ length: 3 * area }, (_, i) => data[4 * (i % area) + Math.floor(i / area)] / 127.5 - 1);
}

function softmax(scores) {
  const most = Math.max(...scores);
  const raised = Array.from(scores, (score) => Math.exp(score - most));
  const sum = raised.reduce((all, value) => all + value, 0);
  return raised.map((value) => value / sum);
}

let session;
let classes;

async function look(blob) {
  const input = pixels(await createImageBitmap(blob));
  const start = performance.now();
  const found = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", input, [1, 3, SIDE, SIDE]) });
  const output = found[session.outputNames[0]].data;
  figure("last", `${(performance.now() - start).toFixed(0)} ms`, "one photograph");
  const likely = softmax(output);
  const best = [...likely.keys()].sort((a, b) => likely[b] - likely[a]).slice(0, MOST);
  rows(at("answer"), best.map((k) => ({ value: `${(100 * likely[k]).toFixed(1)} %`, part: likely[k], text: classes[k] })));
  globalThis.seen = { input: Array.from(input), output: Array.from(output), best };
}

/** One photograph after the other. */
let turn = Promise.resolve();
const looked = (blob) => (turn = turn.then(async () => look(await blob)).catch((error) => (at("told").textContent = `No photograph: ${error.message}`)));

await told(async () => {
  const { names, samples } = await (await fetch("about.json")).json();
  classes = names;
  session = await network();
  for (const [k, name] of samples.entries()) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.append(Object.assign(document.createElement("img"), { src: name, alt: `photograph ${number(k + 1)}`, loading: "lazy" }));
    button.onclick = () => {
      for (const other of at("samples").children) other.setAttribute("aria-pressed", other === button);
      at("told").textContent = "";
      return looked(fetch(name).then((answer) => answer.blob()));
    };
    at("samples").append(button);
  }
  if (samples.length) await at("samples").firstChild.onclick();
});

at("choose").onchange = () => at("choose").files.length && looked(at("choose").files[0]);
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind !== "drop" || !event.dataTransfer.files.length) return;
    at("told").textContent = "";
    looked(event.dataTransfer.files[0]);
  });
}
