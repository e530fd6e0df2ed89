// What both pages share: the download is shown, then what it took.

import * as ort from "../ort/ort.wasm.min.mjs"; // from the folder dist of the npm package onnxruntime-web
import { load } from "./network.js";

export { ort };
export const at = (id) => document.getElementById(id);
export const number = (value) => value.toLocaleString("en");

/** Loads the network beside the page and says what it took. `dense`: bytes of the same weights as float32. */
export async function network() {
  const { dense } = await (await fetch("about.json")).json();
  const progress = ({ loaded, total }) => ((at("bar").value = loaded), total && (at("bar").max = total));
  const { session, bytes, seconds } = await load(ort, { progress });
  figure("bytes", number(bytes), `bytes, of ${number(dense)}`);
  figure("download", `${seconds.download.toFixed(2)} s`, `at 50 Mbit/s ${((8 * bytes) / 50e6).toFixed(2)} s, dense ${((8 * dense) / 50e6).toFixed(1)} s`);
  figure("decode", `${seconds.decode.toFixed(2)} s`, "beyond waiting for bytes");
  figure("session", `${seconds.session.toFixed(2)} s`, "made by onnxruntime-web");
  at("bar").hidden = true;
  return session;
}

/** Fills one of the boxes. */
export function figure(id, value, words) {
  const small = Object.assign(document.createElement("small"), { textContent: words });
  at(id).replaceChildren(value, small);
}

/** The rows of an answer: how near, and what. */
export function rows(table, found) {
  const cells = found.map(({ value, part, text }) => {
    const row = document.createElement("tr");
    const [left, right] = ["td", "td"].map((tag) => document.createElement(tag));
    left.textContent = value;
    right.textContent = text;
    right.className = "bar";
    right.style.setProperty("--part", `${100 * Math.max(0, Math.min(1, part))}%`);
    row.append(left, right);
    return row;
  });
  table.replaceChildren(...cells);
}

/** Does the page's work and says what went wrong with it. */
export async function told(work) {
  try {
    await work();
    document.documentElement.dataset.ready = "yes";
  } catch (error) {
    at("told").textContent = `${error.message ?? error}`;
    at("bar").hidden = true;
    document.documentElement.dataset.ready = "no";
  }
}
