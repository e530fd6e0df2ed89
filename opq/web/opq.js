/**
 * Reads `.opq.safetensors` files and folders of shards, to the very same numbers as the Python package `opq`.
 *
 * One module without dependencies, for pages, workers, Node 20 and Deno. docs/format.md of the package is the
 * specification; names here are its names. Nothing that a file says is believed before it is checked.
 */

/** The format version that this module reads; of files with a base the next one. */
export const VERSION = 1;

const BASED = 2;
const COMMON = "opq";
const INDEX = "model.opq.safetensors.index.json";
const LARGEST_HEADER = 1e8;
const LARGEST_INDEX = 2 ** 30;
const MAX_EXPANSION = 10_000;
const SMALL = 2 ** 26;
const LARGEST_CODE = 32767;
let LARGE = 2 ** 19; // codes of a tensor that is cut into chunks
let CHUNK = 2 ** 22; // codes of a chunk, about

/** Limits as the fuzzer of the Python package sets them; for tests only. */
export function narrowed(small, large, chunk) {
  limits.small = small;
  LARGE = large;
  CHUNK = chunk;
}
const limits = { small: SMALL };

// --- errors -----------------------------------------------------------------------------------

const REMEDIES = {
  foreign: "Pass a file written by opq (NAME.opq.safetensors).",
  newer: "Use a newer opq.js.",
  truncated: "Fetch or write the file again.",
  corrupt: "Fetch or write the file again.",
  "too-large": "If you trust the file, raise the limit with {maxExpansion}.",
  missing: "Check the address.",
  network: "Try again.",
  mismatch: "model.tensors() lists names and kinds.",
  closed: "Read before model.close(), or open the file again.",
  base: "Pass the network that the file was compressed against as {base}.",
};

/** The one error of this module. `code` says which sort, `tensor` which tensor it is about, if one. */
export class OpqError extends Error {
  constructor(code, fact, { got, wanted, remedy = REMEDIES[code], tensor, cause } = {}) {
    const found = [];
    if (got !== undefined) found.push(`got ${got}`);
    if (wanted !== undefined) found.push(`wanted ${wanted}`);
    const about = tensor === undefined ? "" : `tensor ${JSON.stringify(tensor)}: `;
    super(`${about}${fact}${found.length ? `: ${found.join(", ")}` : ""}. ${remedy}`, cause && { cause });
    Object.assign(this, { name: "OpqError", code, fact, got, wanted, remedy, tensor });
  }
}

const corrupt = (fact, details) => new OpqError("corrupt", fact, details);

/** An error with the tensor's name; out of memory is an error of the file, which asked for it. */
function named(error, tensor) {
  if (error instanceof RangeError) return new OpqError("too-large", error.message, { tensor, cause: error });
  if (!(error instanceof OpqError) || error.tensor !== undefined || error.code === "closed") return error;
  return new OpqError(error.code, error.fact, { ...error, tensor, cause: error });
}

// --- element types ----------------------------------------------------------------------------

/** Of the small floating-point types: bits of the fraction, exponent of the smallest normal number, largest number. */
const FORMATS = {
  F16: { fraction: 10, least: -14, largest: 65504, sign: 0x8000, infinity: 0x7c00, nan: 0x7e00 },
  BF16: { fraction: 7, least: -126, largest: (2 - 2 ** -7) * 2 ** 127, sign: 0x8000, infinity: 0x7f80, nan: 0x7fc0 },
  F8_E4M3: { fraction: 3, least: -6, largest: 448, sign: 0x80, nan: 0x7f },
  F8_E4M3FNUZ: { fraction: 3, least: -7, largest: 240, sign: 0x80, nan: 0x80, unsigned: true },
  F8_E5M2: { fraction: 2, least: -14, largest: 57344, sign: 0x80, infinity: 0x7c, nan: 0x7f },
  F8_E5M2FNUZ: { fraction: 2, least: -15, largest: 57344, sign: 0x80, nan: 0x80, unsigned: true },
};

/** Numbers that the file gives to the types, and the arrays that hold their elements. */
const TYPES = {
  BOOL: Uint8Array, U8: Uint8Array, I8: Int8Array, U16: Uint16Array, I16: Int16Array, F16: Uint16Array,
  BF16: Uint16Array, U32: Uint32Array, I32: Int32Array, F32: Float32Array, U64: BigUint64Array, I64: BigInt64Array,
  F64: Float64Array, C64: Float32Array, F8_E4M3: Uint8Array, F8_E4M3FNUZ: Uint8Array, F8_E5M2: Uint8Array,
  F8_E5M2FNUZ: Uint8Array, F8_E8M0: Uint8Array,
};
const DTYPES = Object.keys(TYPES);
const CODED = new Set(["F32", "F64", ...Object.keys(FORMATS)]);
const WHOLE = {
  U8: [0, 255], I8: [-128, 127], I16: [-32768, 32767], I32: [-(2 ** 31), 2 ** 31 - 1], I64: [-(2 ** 63), 2 ** 63],
};

const width = (dtype) => (dtype === "C64" ? 8 : TYPES[dtype].BYTES_PER_ELEMENT);

const float = new Float32Array(1);
const floatBits = new Uint32Array(float.buffer);

/** The bits of a number in a small type: rounded to float32 first, as torch does, then to nearest, ties to even. */
function bitsOf(value, { fraction, least, sign, infinity, nan, unsigned }) {
  float[0] = value;
  const negative = floatBits[0] >>> 31;
  if (value !== value) return nan;
  const magnitude = Math.abs(float[0]);
  let bits = infinity;
  if (magnitude !== Infinity) {
    const exponent = Math.max(((floatBits[0] >>> 23) & 255) - 127, least);
    const scaled = magnitude * 2 ** (fraction - exponent);
    let whole = Math.floor(scaled);
    const rest = scaled - whole;
    if (rest > 0.5 || (rest === 0.5 && whole & 1)) whole++;
    bits = (exponent - least) * 2 ** fraction + whole;
    if (infinity !== undefined) bits = Math.min(bits, infinity);
  }
  return negative && (bits || !unsigned) ? bits | sign : bits;
}

/** The inverse of `bitsOf`. */
function numberOf(bits, { fraction, least, sign, infinity, nan, unsigned }) {
  const magnitude = bits & (sign - 1);
  if (unsigned ? bits === nan : infinity === undefined && magnitude === nan) return NaN;
  if (infinity !== undefined && magnitude >= infinity) return magnitude > infinity ? NaN : bits & sign ? -Infinity : Infinity;
  const exponent = magnitude >>> fraction;
  const rest = magnitude & ((1 << fraction) - 1);
  const value = exponent
    ? (rest + (1 << fraction)) * 2 ** (exponent - 1 + least - fraction)
    : rest * 2 ** (least - fraction);
  return bits & sign ? -value : value;
}

/** Doubles rounded to an element type; beyond its largest number, that number. */
function rounded(values, dtype) {
  const format = FORMATS[dtype];
  const largest = format ? format.largest : dtype === "F32" ? (2 - 2 ** -23) * 2 ** 127 : Number.MAX_VALUE;
  const out = new TYPES[dtype](values.length);
  for (let i = 0; i < values.length; i++) {
    const value = Math.min(Math.max(values[i], -largest), largest);
    out[i] = format ? bitsOf(value, format) : value;
  }
  return out;
}

/** Elements as float32 or as the bits of float16, rounded as torch's `.float()` and `.half()` do. */
function converted(data, dtype, as) {
  if (as === undefined || (as === "float16" && dtype === "F16") || (as === "float32" && dtype === "F32")) return data;
  if (dtype === "C64") throw new OpqError("mismatch", `complex numbers are no ${as}`);
  let floats = data;
  if (dtype !== "F32") {
    const format = FORMATS[dtype];
    const seen = format && Float32Array.from({ length: 2 * format.sign }, (_, bits) => numberOf(bits, format));
    floats = new Float32Array(data.length);
    for (let i = 0; i < data.length; i++) {
      if (format) floats[i] = seen[data[i]];
      else if (dtype === "F8_E8M0") floats[i] = data[i] === 255 ? NaN : 2 ** (data[i] - 127);
      else floats[i] = typeof data[i] === "bigint" ? singly(data[i]) : data[i];
    }
  }
  return as === "float32" ? floats : Uint16Array.from(floats, (value) => bitsOf(value, FORMATS.F16));
}

/** A 64-bit integer as a double that rounds to float32 as the integer does: what is cut off stays as the lowest bit. */
function singly(value) {
  const size = value < 0n ? -value : value;
  const near = size < 2n ** 53n ? Number(size) : Number((size >> 11n) | (size & 0x7ffn ? 1n : 0n)) * 2048;
  return value < 0n ? -near : near;
}

// --- CRC-32 -----------------------------------------------------------------------------------

const crcTables = (() => {
  const tables = Array.from({ length: 8 }, () => new Int32Array(256));
  for (let n = 0; n < 256; n++) {
    let c = n;
    for (let k = 0; k < 8; k++) c = c & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
    tables[0][n] = c;
  }
  for (let n = 0; n < 256; n++) {
    for (let k = 1; k < 8; k++) tables[k][n] = (tables[k - 1][n] >>> 8) ^ tables[0][tables[k - 1][n] & 255];
  }
  return tables;
})();

/** The CRC-32 of bytes, as zlib computes it, eight at a time. */
function crc32(bytes) {
  const [t0, t1, t2, t3, t4, t5, t6, t7] = crcTables;
  let c = -1;
  let i = 0;
  for (const stop = bytes.length - 7; i < stop; i += 8) {
    c ^= bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24);
    c = t7[c & 255] ^ t6[(c >>> 8) & 255] ^ t5[(c >>> 16) & 255] ^ t4[c >>> 24]
      ^ t3[bytes[i + 4]] ^ t2[bytes[i + 5]] ^ t1[bytes[i + 6]] ^ t0[bytes[i + 7]];
  }
  for (; i < bytes.length; i++) c = t0[(c ^ bytes[i]) & 255] ^ (c >>> 8);
  return ~c >>> 0;
}

// --- SHA-256 ----------------------------------------------------------------------------------

const [shaStart, shaRounds] = (() => {
  const primes = [];
  for (let n = 2; primes.length < 64; n++) if (primes.every((p) => n % p)) primes.push(n);
  const fractions = (power) => Int32Array.from(primes, (p) => (p ** power % 1) * 2 ** 32);
  return [fractions(1 / 2).subarray(0, 8), fractions(1 / 3)];
})();

/** The SHA-256 of pieces, one after the other. */
class Sha256 {
  constructor() {
    this.state = shaStart.slice();
    this.words = new Int32Array(64);
    this.block = new Uint8Array(64);
    this.size = 0;
  }

  add(bytes) {
    let at = 0;
    const held = this.size % 64;
    this.size += bytes.length;
    if (held) {
      at = Math.min(64 - held, bytes.length);
      this.block.set(bytes.subarray(0, at), held);
      if (held + at < 64) return;
      this.mix(this.block, 0);
    }
    for (; at + 64 <= bytes.length; at += 64) this.mix(bytes, at);
    this.block.set(bytes.subarray(at));
  }

  mix(bytes, at) {
    const { state, words: w } = this;
    for (let i = 0; i < 16; i++, at += 4) w[i] = (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3];
    for (let i = 16; i < 64; i++) {
      const [x, y] = [w[i - 15], w[i - 2]];
      const before = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const behind = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[i] = (w[i - 16] + before + w[i - 7] + behind) | 0;
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const turned = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const one = (h + turned + ((e & f) ^ (~e & g)) + shaRounds[i] + w[i]) | 0;
      const other = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      h = g;
      g = f;
      f = e;
      e = (d + one) | 0;
      d = c;
      const two = (other + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      c = b;
      b = a;
      a = (one + two) | 0;
    }
    [a, b, c, d, e, f, g, h].forEach((value, i) => (state[i] += value));
  }

  /** The digest in hexadecimal; nothing can be added any more. */
  hex() {
    const bits = 8 * this.size;
    const end = new Uint8Array(((119 - (this.size % 64)) % 64) + 9);
    end[0] = 128;
    const view = new DataView(end.buffer);
    view.setUint32(end.length - 8, Math.floor(bits / 2 ** 32));
    view.setUint32(end.length - 4, bits);
    this.add(end);
    return Array.from(this.state, (word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
  }
}

// --- the stack --------------------------------------------------------------------------------

const TOTAL = 2 ** 24;
const PARTS = 2 ** -24;

/** Integer frequencies >= 1 that add up to 2^24, in proportion to weights below 2^39. */
function shares(weights) {
  const spare = TOTAL - weights.length;
  let sum = 0;
  let most = 0;
  for (let s = 0; s < weights.length; s++) {
    sum += weights[s];
    if (weights[s] > weights[most]) most = s;
  }
  const found = new Int32Array(weights.length);
  let missing = TOTAL;
  for (let s = 0; s < weights.length; s++) {
    const weight = weights[s];
    // below 2^52 doubles divide exactly enough for the floor
    found[s] = 1 + (weight < 2 ** 28
      ? Math.floor((weight * spare) / sum)
      : Number((BigInt(weight) * BigInt(spare)) / BigInt(sum)));
    missing -= found[s];
  }
  found[most] += missing;
  return found;
}

/** Frequencies made ready for so many symbols: their sums, and for each 2^shift states the first symbol that may be meant. */
function ready(frequencies, amount = Infinity) {
  const starts = new Int32Array(frequencies.length + 1);
  for (let s = 0; s < frequencies.length; s++) starts[s + 1] = starts[s] + frequencies[s];
  const shift = amount < 8192 ? 17 : 14; // few symbols do not repay a long list
  const guess = new Uint8Array(TOTAL >> shift);
  for (let k = 0, s = 0; k < guess.length; k++) {
    while (starts[s + 1] <= k << shift) s++;
    guess[k] = s;
  }
  return { starts, guess, shift };
}

/** A stack of symbols: an asymmetric numeral system of 64-bit state `x = (top * 2^24 + middle) * 2^24 + low`. */
class Stack {
  /** `most`: the symbols that may be taken; what is foreseen well costs nothing, and could go on for ever. */
  constructor(bytes, most = Infinity) {
    this.most = most;
    if (bytes.length && !bytes[bytes.length - 1]) throw corrupt("a coded stream ends in a zero byte");
    const padded = new Uint8Array((bytes.length + 3) & ~3);
    padded.set(bytes);
    this.words = new Uint32Array(padded.buffer);
    this.left = this.words.length;
    this.top = this.middle = this.low = 0;
    this.refill();
    this.refill();
  }

  /** Takes a word where the state is below 2^32. */
  refill() {
    if (this.top || this.middle > 255 || !this.left) return;
    const state = this.middle * TOTAL + this.low;
    const word = this.words[--this.left];
    this.top = Math.floor(state / 65536);
    this.middle = ((state & 0xffff) << 8) | (word >>> 24);
    this.low = word & 0xffffff;
  }

  /** The state after a symbol of this frequency, whose range begins at `start`. */
  advance(frequency, start) {
    const lower = frequency * this.middle + (this.low - start);
    const upper = frequency * this.top + Math.floor(lower * PARTS);
    this.low = lower & 0xffffff;
    this.middle = upper & 0xffffff;
    this.top = Math.floor(upper * PARTS);
    this.refill();
  }

  one() {
    if (--this.most < 0) throw corrupt("a coded stream goes on for longer than its bytes can mean");
  }

  /** One symbol. */
  take(frequencies) {
    this.one();
    let s = 0;
    let start = 0;
    while (start + frequencies[s] <= this.low) start += frequencies[s++];
    this.advance(frequencies[s], start);
    return s;
  }

  /** Many symbols into `out`, each plus `offset`. */
  many({ starts, guess, shift }, out, from, to, offset) {
    let { top, middle, low, left } = this;
    const { words } = this;
    for (let i = from; i < to; i++) {
      let s = guess[low >>> shift];
      while (starts[s + 1] <= low) s++;
      out[i] = s + offset;
      const start = starts[s];
      const frequency = starts[s + 1] - start;
      const lower = frequency * middle + (low - start);
      const carry = Math.floor(lower * PARTS);
      low = lower & 0xffffff;
      if (top) {
        const upper = frequency * top + carry;
        middle = upper & 0xffffff;
        top = Math.floor(upper * PARTS);
      } else {
        middle = carry;
      }
      if (top === 0 && middle < 256 && left) {
        const word = words[--left];
        top = middle << 8 | low >>> 16;
        middle = ((low & 0xffff) << 8) | (word >>> 24);
        low = word & 0xffffff;
      }
    }
    Object.assign(this, { top, middle, low, left });
  }

  /** One of `n` equally likely symbols. */
  uniform(n) {
    this.one();
    const each = Math.floor(TOTAL / n);
    const s = Math.min(Math.floor(this.low / each), n - 1);
    this.advance(s === n - 1 ? TOTAL - s * each : each, s * each);
    return s;
  }

  /** A number below `2^length`, in symbols of at most 16 bits. */
  number(length) {
    let value = 0;
    for (let shift = 0; shift < length; shift += 16) value += this.uniform(1 << Math.min(16, length - shift)) * 2 ** shift;
    return value;
  }

  /** A number of so many bits, of which the first is not stored. */
  ofLength(length) {
    return length ? 2 ** (length - 1) + this.number(length - 1) : 0;
  }

  uint() {
    return this.ofLength(this.uniform(41));
  }

  sint() {
    return signed(this.uint());
  }

  float(bits) {
    if (bits < 64) {
      floatBits[0] = this.number(bits) * 2 ** (32 - bits);
      return float[0];
    }
    const low = this.number(32);
    return new Float64Array(Uint32Array.of(low, this.number(32)).buffer)[0];
  }

  /** Finite numbers that share a width. */
  floats(amount) {
    const bits = [16, 24, 32, 64][this.uniform(4)];
    const values = Array.from({ length: amount }, () => this.float(bits));
    if (!values.every(Number.isFinite)) throw corrupt("a number in the index is not finite");
    return values;
  }

  finish() {
    if (this.top || this.middle || this.low || this.left) throw corrupt("a coded stream is longer than its symbols");
  }
}

/** 0, 1, 2, 3, 4, ... as 0, -1, 1, -2, 2, ... */
const signed = (value) => (value % 2 ? -(value + 1) / 2 : value / 2);

const bitLength = (value) => 32 - Math.clz32(value);

/** A model that learns from the symbols it has given. */
class Adaptive {
  constructor(weights) {
    this.weights = [...weights];
  }

  take(stack) {
    const symbol = stack.take(shares(this.weights));
    this.weights[symbol] += 24;
    return symbol;
  }

  /** A number by its length in bits, which adapts, and those bits. */
  number(stack) {
    return stack.ofLength(this.take(stack));
  }
}

const ones = (amount, value = 1) => new Array(amount).fill(value);

/** A text: bytes, and copies of what stands earlier in it. */
function text(stack, longest) {
  const size = stack.uint();
  if (size > longest) throw corrupt("a text is longer than the file can hold", { got: size, wanted: `at most ${longest}` });
  const common = "einortasgblwhmcdukvpfyxqzj._0123456789\n";
  const weights = Array.from({ length: 256 }, (_, byte) => {
    const rank = common.indexOf(String.fromCharCode(byte));
    return rank >= 16 ? 12 : rank >= 0 ? 24 : byte >= 32 && byte < 127 ? 2 : 1;
  });
  const kinds = Array.from({ length: 6 }, (_, k) => new Adaptive(k ? [24, 16, 30, 8, 6, 6] : [40, 20, 10, 8, 6, 6]));
  const bytes = new Adaptive(weights);
  const lengths = new Adaptive([8, 14, 24, 40, 60, 40, 8, 2, ...ones(17)]);
  const distances = new Adaptive([1, 1, 2, 4, 10, 20, 30, 30, 20, 20, 16, 10, 8, 6, 4, 2, 2, ...ones(8)]);
  const data = new Uint8Array(size);
  let last = [0, 0, 0, 0];
  let kind = 0;
  for (let at = 0; at < size; ) {
    kind = kinds[kind].take(stack);
    if (!kind) {
      data[at++] = bytes.take(stack);
      continue;
    }
    const length = lengths.number(stack);
    const distance = kind === 1 ? distances.number(stack) : last[kind - 2];
    if (!(distance > 0 && distance <= at && length > 0 && length <= size - at)) {
      throw corrupt("a text copies from outside of itself", { got: `${length} bytes from ${distance} back` });
    }
    for (let k = 0; k < length; k++, at++) data[at] = data[at - distance];
    last = [distance, ...last.filter((other) => other !== distance)].slice(0, 4);
  }
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(data);
  } catch (cause) {
    throw corrupt("a text is not UTF-8", { cause });
  }
}

// --- frequency tables -------------------------------------------------------------------------

/** How often a difference has 0, 1, 2, ... bits, by the number of bits of the prediction. */
const LENGTHS = [
  [140, 26, 7, 4, 4, 4, 5, 4, 2],
  [60, 96, 30, 10, 4],
  [60, 54, 54, 22, 8, 2],
  [46, 48, 58, 34, 12, 2],
  [32, 28, 48, 36, 36, 20, 2],
  [24, 14, 30, 24, 26, 24, 60, 2],
  [6, 8, 20, 30, 30, 20, 40, 70, 2],
  [4, 4, 10, 20, 20, 20, 24, 40, 90, 2],
  [2, 2, 2, 4, 8, 8, 24, 24, 50, 90, 2],
  [2, 2, 2, 4, 8, 8, 8, 8, 30, 60, 60, 30, 20, 10, 4, 2, 2],
].map((weights) => shares([...weights, ...ones(19 - weights.length)]));

/** The frequencies of the symbols `first, first + 1, ...`, read as the roots of their weights. */
function table(stack, first, size) {
  const end = first + size - 1;
  const roots = new Array(size).fill(0);
  const mean = (magnitude) => {
    const up = magnitude >= Math.max(first, 0) && magnitude <= end;
    const down = magnitude > 0 && -magnitude >= first && -magnitude <= end;
    if (up && down) return (roots[magnitude - first] + roots[-magnitude - first] + 1) >> 1;
    return up ? roots[magnitude - first] : down ? roots[-magnitude - first] : 0;
  };
  let some = false;
  for (let magnitude = Math.max(0, first, -end), last = mean(magnitude - 1), before = mean(magnitude - 2); magnitude <= Math.max(-first, end); magnitude++) {
    for (const symbol of magnitude ? [magnitude, -magnitude] : [0]) {
      if (symbol < first || symbol > end) continue;
      const mirrored = symbol < 0 && magnitude <= end && magnitude >= first;
      const predicted = mirrored ? roots[magnitude - first] : before > last ? Math.floor((last * last) / before) : last;
      const code = stack.ofLength(stack.take(LENGTHS[Math.min(bitLength(predicted), 9)]));
      const root = code < 2 * predicted ? predicted + signed(code) : code;
      if (root > 2 ** 17) throw corrupt("a frequency is too large", { got: root, wanted: "at most 131072" });
      roots[symbol - first] = root;
      some ||= root > 0;
    }
    before = last;
    last = mean(magnitude);
  }
  if (!some) throw corrupt("a frequency table is empty");
  return shares(roots.map((root) => root * root));
}

const LAST = 111;

/** The smallest magnitude that a symbol stands for. */
function base(symbol) {
  const beyond = symbol - 32;
  return beyond < 0 ? symbol : (8 + (beyond & 7)) << ((beyond >> 3) + 2);
}

const geometrics = [];

/** The two-sided geometric frequencies of the symbols -111 to 111, in fractions of 2^-36. */
function geometric(scale) {
  if (geometrics[scale]) return geometrics[scale];
  const one = 1n << 36n;
  const rho = one - ((one >> BigInt(scale >> 1)) * (scale & 1 ? 5n : 7n)) / 10n;
  const squares = [rho];
  const power = (exponent) => {
    let result = one;
    for (let k = 0; exponent >> k; k++) {
      squares[k] ??= (squares[k - 1] * squares[k - 1]) >> 36n;
      if ((exponent >> k) & 1) result = (result * squares[k]) >> 36n;
    }
    return result;
  };
  const tails = Array.from({ length: LAST + 2 }, (_, s) => power(base(s)));
  const masses = Array.from({ length: LAST + 1 }, (_, s) => Number(tails[s] - tails[s + 1]));
  return (geometrics[scale] = ready(shares([...masses.slice(1).reverse(), ...masses])));
}

// --- classes of rows, columns and kernel positions ----------------------------------------------

const MOST_CLASSES = 46;

/** A shape as three axes: leading ones go, then rows, columns, the product of the rest. */
function threeAxes(shape) {
  let first = 0;
  while (shape[first] === 1) first++;
  return [shape[first] ?? 1, shape[first + 1] ?? 1, product(shape.slice(first + 2))];
}

const product = (numbers) => numbers.reduce((all, n) => all * n, 1);

/** The classes of all weights; null where there is one for all. */
function takeClasses(stack, axes) {
  const number = stack.uniform(MOST_CLASSES + 1);
  if (!number) return null;
  const first = stack.uniform(MOST_CLASSES + 1);
  if (first + number > MOST_CLASSES) {
    throw corrupt("more classes than there can be", { got: first + number, wanted: `at most ${MOST_CLASSES}` });
  }
  const [rows, columns, kernel] = axes.map((length) => takeAxis(stack, length));
  const across = new Int16Array(columns.length * kernel.length);
  for (let j = 0; j < across.length; j++) across[j] = columns[Math.floor(j / kernel.length)] + kernel[j % kernel.length];
  return { first, number, rows, columns: sorted(across) };
}

function takeAxis(stack, length) {
  const axis = new Int16Array(length);
  const size = length > 1 ? stack.uniform(16) + 1 : 1;
  if (size === 1) return axis;
  if (!stack.uniform(2)) {
    stack.many(ready(table(stack, 0, size), length), axis, 0, length, 0);
    return axis;
  }
  if (length > 65536) throw corrupt("classes one after the other on a long axis", { got: length, wanted: "at most 65536" });
  const tables = Array.from({ length: size }, () => table(stack, 0, size));
  for (let i = 0, k = 0; i < length; i++) axis[i] = k = stack.take(tables[k]);
  return axis;
}

/** The indices of each class that occurs, in order. */
function sorted(classes) {
  const counts = new Int32Array(32);
  for (const k of classes) counts[k]++;
  const found = Array.from(counts, (count) => new Int32Array(count));
  counts.fill(0);
  classes.forEach((k, i) => (found[k][counts[k]++] = i));
  return found.map((indices, k) => ({ k, indices })).filter(({ indices }) => indices.length);
}

/** The rectangles of each class in some rows, each of row indices and column indices. */
function rectangles({ first, number, rows, columns }, start, stop) {
  const found = Array.from({ length: number }, () => []);
  for (const down of sorted(rows.subarray(start, stop))) {
    for (const across of columns) {
      const k = Math.min(Math.max(down.k + across.k, first) - first, number - 1);
      found[k].push([down.indices, across.indices]);
    }
  }
  return found;
}

/** Puts the weights of a class where they belong. */
function scatter(part, from, blocks, width, out) {
  for (const [down, across] of blocks) {
    for (let i = 0; i < down.length; i++) {
      const row = down[i] * width;
      for (let j = 0; j < across.length; j++) out[row + across[j]] = part[from++];
    }
  }
}

const amountOf = (blocks) => blocks.reduce((sum, [down, across]) => sum + down.length * across.length, 0);

// --- pages: the standalone format of pcodec, as far as opq writes it ----------------------------

/** Decodes signed integers of 8 or 16 bits into `out` between two places. */
function page(data, bits, out, from, to) {
  const padded = new Uint8Array(data.length + 1024); // a batch of 256 may read as far beyond before it is noticed
  padded.set(data);
  const view = new DataView(padded.buffer);
  const end = 8 * data.length;
  let at = 0;
  const bad = (what) => corrupt("coded integers are damaged", { got: what });
  const skip = (n) => {
    at += n;
    if (at > end) throw bad("an early end");
  };
  const read = (n) => {
    const value = (view.getUint32(at >>> 3, true) >>> (at & 7)) & ((1 << n) - 1);
    skip(n);
    return value;
  };
  const whole = () => {
    if (read(-at & 7)) throw bad("bits behind the last");
  };
  if (data.length < 4 || view.getUint32(0) !== 0x70636f21) throw bad("no magic header");
  skip(32);
  const version = read(8);
  if (version !== 3) throw bad(`version ${version}`);
  const type = bits === 8 ? 11 : 8;
  const uniform = read(8);
  if (uniform && uniform !== type) throw bad(`type ${uniform}`);
  skip(1 + read(6)); // the number of integers, known already
  whole();
  const format = read(8);
  if (format !== 3 && format !== 4) throw bad(`format ${format}`);
  if (format === 4) read(8);
  for (let found = read(8); found; found = read(8)) {
    if (found !== type) throw bad(`type ${found}`);
    const amount = read(24) + 1;
    if (amount > to - from) throw bad("too many integers");
    if (read(8)) throw bad("a mode that opq does not write");
    const bins = takeBins(read, bits, bad);
    whole();
    const states = [read(bins.log), read(bins.log), read(bins.log), read(bins.log)];
    whole();
    skip(takeBatches(view, at, end, bins, states, out, from, from + amount) - at);
    from += amount;
    whole();
  }
  if (from !== to) throw bad("too few integers");
}

const offsetBits = new Uint8Array(256);

/** Integers in batches of 256: first all their bins, by four states that take turns, then all offsets in the bins. */
function takeBatches(view, at, end, bins, states, out, from, stop) {
  const { nodes, values, behind } = bins;
  const spare = 32 - bins.bits;
  let [s0, s1, s2, s3] = states;
  while (from < stop && at <= end) {
    const to = Math.min(from + 256, stop);
    for (let i = from; i < to; i++) {
      const node = nodes[s0];
      const count = (node >>> 16) & 15;
      out[i] = values[s0];
      offsetBits[i & 255] = node >>> 20;
      s0 = s1;
      s1 = s2;
      s2 = s3;
      s3 = (node & 0xffff) + ((view.getUint32(at >>> 3, true) >>> (at & 7)) & ((1 << count) - 1));
      at += count;
    }
    if (behind) at = takeOffsets(view, at, spare, out, from, to);
    from = to;
  }
  return at;
}

function takeOffsets(view, at, spare, out, from, to) {
  for (let i = from; i < to; i++) {
    const count = offsetBits[i & 255];
    if (!count) continue;
    const value = out[i] + ((view.getUint32(at >>> 3, true) >>> (at & 7)) & ((1 << count) - 1));
    out[i] = (value << spare) >> spare;
    at += count;
  }
  return at;
}

/**
 * The states of the tabled numeral system: for each the value that it stands for, and in one integer the base of the
 * next state, how many bits are added to it, and how many bits are added to the value.
 */
function takeBins(read, bits, bad) {
  const log = read(4);
  const size = 1 << log;
  const number = read(15);
  if (log > 14 || number > size || !number || (number === 1 && log)) throw bad(`${number} bins of 2^${log}`);
  const weights = new Int32Array(number);
  const lowers = new Int32Array(number);
  const widths = new Int32Array(number);
  let sum = 0;
  for (let k = 0; k < number; k++) {
    sum += weights[k] = read(log) + 1;
    lowers[k] = read(bits) - (1 << (bits - 1));
    widths[k] = read(bits === 8 ? 4 : 5);
    if (widths[k] > bits) throw bad("offsets beyond the type");
  }
  if (sum !== size) throw bad("weights that do not add up");
  const bins = new Uint16Array(size);
  const stride = Math.floor((3 * size) / 5) | 1;
  for (let k = 0, step = 0; k < number; k++) {
    for (let w = 0; w < weights[k]; w++) bins[(stride * step++) & (size - 1)] = k;
  }
  const nodes = new Int32Array(size);
  const values = new Int16Array(size);
  const next = weights.slice();
  for (let state = 0; state < size; state++) {
    const k = bins[state];
    const x = next[k]++;
    const count = Math.clz32(x) - Math.clz32(size);
    nodes[state] = ((x << count) - size) | (count << 16) | (widths[k] << 20);
    values[state] = lowers[k];
  }
  return { nodes, values, log, bits, behind: widths.some(Boolean) };
}

// --- codes ------------------------------------------------------------------------------------

/** What stands before the symbols of a tensor. */
function takeCoding(stack, axes) {
  const kind = ["constant", "tables", "geometric", "pages"][stack.uniform(4)];
  if (kind === "pages") {
    const bits = stack.uniform(2) ? 16 : 8;
    return { kind, bits, classes: takeClasses(stack, axes) };
  }
  if (kind === "tables") {
    const low = stack.uniform(256) - 128;
    const size = stack.uniform(256) + 1;
    if (low < -LAST || low + size - 1 > LAST || size < 2) {
      throw corrupt("a range of symbols that no codes have", { got: `${low} to ${low + size - 1}` });
    }
    const classes = takeClasses(stack, axes);
    const number = classes ? classes.number : 1;
    const models = Array.from({ length: number }, () => ready(table(stack, low, size), product(axes) / number));
    return { kind, low, behind: low <= -32 || low + size > 32, classes, models };
  }
  const offset = checked(stack.sint());
  if (kind === "constant") return { kind, offset };
  return { kind, offset, low: -LAST, behind: true, classes: null, models: [geometric(stack.uniform(28))] };
}

function checked(code) {
  if (Math.abs(code) > LARGEST_CODE) throw corrupt("a code beyond 16 bits", { got: code });
  return code;
}

/** The codes of some rows from a stack, which must be empty then. */
function takeSymbols(stack, coding, out, rows) {
  const { low, behind, classes, models } = coding;
  if (!classes) {
    stack.many(models[0], out, 0, out.length, low);
  } else {
    const parts = new Int16Array(out.length);
    const width = out.length / (rows[1] - rows[0]);
    rectangles(classes, ...rows).reduce((from, blocks, k) => {
      const to = from + amountOf(blocks);
      stack.many(models[k], parts, from, to, low);
      scatter(parts, from, blocks, width, out);
      return to;
    }, 0);
  }
  if (behind) {
    for (let i = 0; i < out.length; i++) {
      const symbol = Math.abs(out[i]);
      if (symbol < 32) continue;
      const magnitude = base(symbol) + stack.uniform(1 << (2 + ((symbol - 32) >> 3)));
      out[i] = out[i] < 0 ? -magnitude : magnitude;
    }
  }
  stack.finish();
}

/** The codes of a chunk of a large tensor. */
function takeChunk(coding, data, out, rows) {
  if (coding.kind === "constant") {
    if (data.length) throw corrupt("equal codes have bytes of their own", { got: data.length, wanted: 0 });
    out.fill(coding.offset);
  } else if (coding.kind === "pages") {
    takePages(coding, data, out, rows);
  } else {
    takeSymbols(new Stack(data), coding, out, rows);
  }
}

function takePages({ bits, classes }, data, out, rows) {
  const parts = classes ? new Int16Array(out.length) : out;
  const blocks = classes && rectangles(classes, ...rows);
  let from = 0;
  for (const amount of classes ? blocks.map(amountOf) : [out.length]) {
    if (!amount) continue;
    const stop = 4 + uint32(data, 0);
    if (!(data.length >= stop)) throw corrupt("a chunk ends inside a page", { got: `${data.length} bytes`, wanted: stop });
    page(data.subarray(4, stop), bits, parts, from, from + amount);
    data = data.subarray(stop);
    from += amount;
  }
  if (data.length) throw corrupt("a chunk goes on after its pages", { got: `${data.length} bytes`, wanted: 0 });
  if (classes) {
    const width = out.length / (rows[1] - rows[0]);
    blocks.reduce((at, some) => {
      scatter(parts, at, some, width, out);
      return at + amountOf(some);
    }, 0);
  }
  if (bits === 16 && out.includes(-32768)) checked(-32768);
}

/** A number of four bytes; NaN where there are fewer. */
const uint32 = (bytes, at) =>
  (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16)) + (at + 4 > bytes.length ? NaN : bytes[at + 3] * TOTAL);

const isLarge = (shape) => product(shape) >= LARGE;

/** Codes in a row. */
const widthOf = (shape) => product(shape) / threeAxes(shape)[0];

/** The row ranges of the chunks. */
function chunksOf(shape) {
  const [rows, columns, rest] = threeAxes(shape);
  const step = Math.max(1, Math.floor(CHUNK / (columns * rest)));
  return Array.from({ length: Math.ceil(rows / step) }, (_, k) => [k * step, Math.min((k + 1) * step, rows)]);
}

/** The parts of a large tensor's payload: what stands in front, and each chunk. */
function streamsOf(payload, number) {
  if (payload.length < 4 * (number - 1)) {
    throw corrupt("a coded tensor ends inside its lengths", { got: `${payload.length} bytes` });
  }
  let at = 4 * (number - 1);
  const streams = [];
  for (let k = 0; k < number; k++) {
    const stop = k < number - 1 ? at + uint32(payload, 4 * k) : payload.length;
    if (stop > payload.length) {
      throw corrupt("a coded tensor is shorter than its chunks", { got: `${payload.length} bytes` });
    }
    streams.push(payload.subarray(at, stop));
    at = stop;
  }
  return streams;
}

/** The coding of a large tensor, from its first part. */
function largeCoding(head, shape) {
  const stack = new Stack(head);
  const coding = takeCoding(stack, threeAxes(shape));
  stack.finish();
  if (coding.kind === "geometric") throw corrupt("a large tensor by a geometric distribution");
  return coding;
}

/** The codes of a tensor that is not large. */
function smallCodes(payload, shape) {
  const out = new Int16Array(product(shape));
  if (!out.length) {
    if (payload.length) throw corrupt("a tensor without elements has bytes", { got: payload.length, wanted: 0 });
    return out;
  }
  const axes = threeAxes(shape);
  const stack = new Stack(payload);
  const coding = takeCoding(stack, axes);
  if (coding.kind === "pages") throw corrupt("a small tensor in pages");
  if (coding.kind === "constant") {
    stack.finish();
    return out.fill(coding.offset);
  }
  takeSymbols(stack, coding, out, [0, axes[0]]);
  if (coding.offset) for (let i = 0; i < out.length; i++) out[i] = checked(out[i] + coding.offset);
  return out;
}

/** The codes `n` on a trellis whose paths `k` the file holds, in place. */
function onTrellis(k, shape) {
  const rows = shape.length ? shape[0] : 1;
  const columns = k.length / rows;
  const states = new Uint8Array(k.length && columns);
  for (let t = 0, i = 0; i < k.length; t++) {
    if (t % 128 === 0) states.fill(0);
    for (let j = 0; j < columns; j++, i++) {
      const path = k[i];
      if (path > 16383 || path < -16383) throw corrupt("a path beyond 16 bits", { got: path });
      const shifted = states[j] & 1;
      states[j] = (states[j] >> 1) ^ (shifted * 0o41) ^ ((path & 1) * 0o12);
      k[i] = 2 * path + shifted;
    }
  }
  return k;
}

// --- payloads ---------------------------------------------------------------------------------

const KINDS = [
  "grid", "table", "product", "fine", "log", "raw", "share", "scalar", "trellis", "grid-rows", "trellis-rows",
  "trellis-turned", "grid-turned-rows", "trellis-turned-rows", "grid-columns", "trellis-columns",
];
const STEPPED = new Set(KINDS.filter((kind) => /^(grid|trellis)/.test(kind)));
const COMPRESSED = new Set([...STEPPED, "table", "product"]);
const isMatrix = (kind) => /-turned|-columns/.test(kind);

/** The codebook in front of the codes: its numbers, how many each entry has, and the rest. */
function takeBook(payload) {
  if (payload.length < 5) throw corrupt("a codebook is cut off", { got: `${payload.length} bytes`, wanted: "at least 5" });
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length);
  const [each, number, length] = [payload[0], view.getUint16(1, true), view.getUint16(3, true)];
  const end = 5 + each * number * length;
  if ((each !== 2 && each !== 4) || !number || !length || end > payload.length) {
    throw corrupt("a codebook of impossible size", { got: `${number} x ${length} of ${each} bytes` });
  }
  const values = Float64Array.from({ length: number * length }, (_, i) =>
    each === 4 ? view.getFloat32(5 + 4 * i, true) : numberOf(view.getUint16(5 + 2 * i, true), FORMATS.F16));
  if (!values.every(Number.isFinite)) throw corrupt("a codebook holds a number that is not finite");
  return { values, length, coded: payload.subarray(end) };
}

const QUARTERS = [1, 1.189207115002721, 1.4142135623730951, 1.681792830507429];

/** The factors of so many rows or columns, from the exponents at the start of a payload, and the rest of it. */
function takeFactors(payload, number, of) {
  const end = 4 + (payload.length < 4 ? 0 : new DataView(payload.buffer, payload.byteOffset).getUint32(0, true));
  if (payload.length < end) throw corrupt(`exponents of ${of}s are cut off`, { got: `${payload.length} bytes`, wanted: end });
  const coded = payload.subarray(4, end);
  const exponents = run({ kind: "grid", as: "codes", shape: [number], size: number, length: 1, coded });
  const factors = Float64Array.from(exponents, (e) => {
    if (Math.abs(e) > 400) throw corrupt(`a ${of} scaled too far`, { got: e, wanted: "exponents within 400" });
    return QUARTERS[e & 3] * 2 ** (e >> 2);
  });
  return { factors, coded: payload.subarray(end) };
}

/** The step of each row. */
function takeSteps(payload, rows, step) {
  const { factors, coded } = takeFactors(payload, rows, "row");
  const steps = factors.map((factor) => {
    const found = Math.fround(step * factor);
    if (!(found > 0 && found < Infinity)) throw corrupt("the step of a row is out of range", { got: found });
    return found;
  });
  return { steps, coded };
}

/** How many elements there are before the axes of the inputs, along these, and behind them, and the rest of a payload. */
function takeTurn(payload, shape) {
  const [front, inputs] = payload;
  if (!(inputs >= 1 && front + inputs <= shape.length)) {
    throw corrupt("axes of the inputs that a tensor has not", { got: `${front}, ${inputs}`, wanted: `axes of ${shape}` });
  }
  const parts = [shape.slice(0, front), shape.slice(front, front + inputs), shape.slice(front + inputs)];
  return { turn: parts.map(product), coded: payload.subarray(2) };
}

/** The elements of a matrix (before times behind, inputs) in the order of the tensor, (before, inputs, behind). */
function turnedBack(matrix, [before, inputs, behind]) {
  if (behind === 1) return matrix;
  const out = new matrix.constructor(matrix.length);
  for (let a = 0, i = 0; a < before; a++) {
    for (let b = 0; b < inputs; b++) {
      for (let c = 0; c < behind; c++) out[i++] = matrix[(a * behind + c) * inputs + b];
    }
  }
  return out;
}

/**
 * What decoding a payload takes, as a value that can be sent to a worker: `kind`, `dtype`, the `shape` of the codes,
 * the `number` of the index (step, or codes an octave), the codebook or the `steps` of rows and the `factors` of
 * columns, the `size` of the tensor, how it was turned, and `as`.
 */
function recipe(tensor, payload, as) {
  const { kind, dtype, shape, number } = tensor;
  if (isMatrix(kind)) {
    const { turn, coded } = takeTurn(payload, shape);
    const across = kind.endsWith("-columns") ? takeFactors(coded, turn[1], "column") : { coded };
    const inner = kind.replace("-turned", "").replace("-columns", "-rows");
    const matrix = { ...tensor, kind: inner, shape: [turn[0] * turn[2], turn[1]] };
    return { ...recipe(matrix, across.coded, as), turn, factors: across.factors };
  }
  const size = product(shape);
  const task = { kind, dtype, shape, number, size, as, length: 1, coded: payload };
  if (kind.endsWith("-rows")) return { ...task, kind: kind.slice(0, -5), ...takeSteps(payload, shape[0], number) };
  if (kind !== "table" && kind !== "product") return task;
  const book = takeBook(payload);
  if (kind === "table" && book.length !== 1) {
    throw corrupt("a codebook of impossible size", { got: `entries of ${book.length}`, wanted: 1 });
  }
  return { ...task, ...book, shape: kind === "product" ? [Math.ceil(size / book.length)] : shape };
}

/** Runs a recipe: on all of a payload, or on one chunk (`head`, `coded`, `rows`) of a large tensor. */
function run(task) {
  const { kind, shape, coded, head, rows, length } = task;
  if (rows) {
    const codes = new Int16Array(widthOf(shape) * (rows[1] - rows[0]));
    takeChunk(largeCoding(head, shape), coded, codes, rows);
    return dense({ ...task, first: rows[0] * widthOf(shape) }, codes, emptyOf(task, codes.length), 0);
  }
  if (!isLarge(shape)) {
    const codes = smallCodes(coded, shape);
    return dense(task, kind === "trellis" ? onTrellis(codes, shape) : codes, emptyOf(task, codes.length), 0);
  }
  const parts = chunksOf(shape);
  const [front, ...streams] = streamsOf(coded, parts.length + 1);
  const coding = largeCoding(front, shape);
  const each = widthOf(shape);
  const whole = kind === "trellis"; // paths go on from chunk to chunk
  const codes = new Int16Array(whole ? product(shape) : each * parts[0][1]);
  const out = emptyOf(task, product(shape));
  parts.forEach(([start, stop], k) => {
    const from = start * each;
    const some = whole ? codes.subarray(from, stop * each) : codes.subarray(0, stop * each - from);
    takeChunk(coding, streams[k], some, [start, stop]);
    if (!whole) dense(task, some, out, from * length);
  });
  return whole ? dense(task, onTrellis(codes, shape), out, 0) : out;
}

/** An array for the elements that so many codes give. */
function emptyOf({ as, dtype, size, length }, codes) {
  if (as === "codes") return new Int16Array(codes);
  return new (as === "float32" ? Float32Array : as === "float16" ? Uint16Array : TYPES[dtype])(Math.min(size, codes * length));
}

/** Puts the weights that codes stand for into `out` from a place on; what the last vector has too much is dropped. */
function dense({ kind, dtype, number, values, length, as, size, steps, factors, first = 0 }, codes, out, from) {
  if (as === "codes") {
    out.set(codes, from / length);
    return out;
  }
  const [least, most] = extent(codes);
  const rounding = (numbers) => converted(rounded(numbers, dtype), dtype, as);
  if (values) {
    const entries = values.length / length;
    if (codes.length && (least < 0 || most >= entries)) {
      throw corrupt("an index beyond the codebook", { got: least < 0 ? least : most, wanted: `0 to ${entries - 1}` });
    }
    gather(rounding(values), codes, 0, length, out, from);
    return out;
  }
  if (steps) { // `first` is the place in the tensor of a chunk that is decoded by itself
    const each = size / steps.length;
    const weights = Float64Array.from(codes, (code, i) => code * steps[Math.floor((first + from + i) / each)]);
    for (let i = 0, j = (first + from) % each; factors && i < weights.length; i++, j = j + 1 < each ? j + 1 : 0) {
      weights[i] *= factors[j];
    }
    out.set(rounding(weights), from);
    return out;
  }
  const value = kind === "log" ? (code) => exp2(code / number) : (code) => code * number;
  if (most - least >= codes.length) out.set(rounding(Float64Array.from(codes, value)), from);
  else gather(rounding(Float64Array.from({ length: most - least + 1 }, (_, k) => value(k + least))), codes, least, 1, out, from);
  return out;
}

/** The smallest and the largest code, or 0. */
function extent(codes) {
  let least = 0;
  let most = 0;
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i];
    if (code < least) least = code;
    if (code > most) most = code;
  }
  return [least, most];
}

function gather(book, codes, least, length, out, from) {
  if (length === 1) {
    for (let i = 0; i < codes.length; i++) out[from + i] = book[codes[i] - least];
    return;
  }
  for (let i = 0; i < codes.length; i++) {
    const entry = codes[i] * length;
    const most = Math.min(length, out.length - from);
    for (let j = 0; j < most; j++) out[from++] = book[entry + j];
  }
}

/** Powers of two, exactly rounded at whole and half exponents, which are all that opq writes. */
function exp2(x) {
  const whole = Math.floor(x);
  const power = x === whole ? 1 : x - whole === 0.5 ? Math.SQRT2 : 2 ** (x - whole);
  return whole > -1022 ? power * 2 ** whole : power * 2 ** -1000 * 2 ** (whole + 1000);
}

/** The elements of a tensor that is kept bit by bit. */
function rawArray(payload, { dtype, shape }) {
  if (payload.length !== product(shape) * width(dtype)) {
    throw corrupt("a kept tensor has the wrong length", { got: `${payload.length} bytes` });
  }
  if (dtype === "BOOL" && payload.some((value) => value > 1)) throw corrupt("a truth value that is neither 0 nor 1");
  const bytes = payload.slice();
  return new TYPES[dtype](bytes.buffer, 0, bytes.length / TYPES[dtype].BYTES_PER_ELEMENT);
}

// --- the index --------------------------------------------------------------------------------

const COLUMNS = { step: 0, rounding: 0.5, threshold: 0, sensitivity: 1, rate: 0, density: 1, distortion: 0 };
const MOST_AXES = 32;

const unescaped = (line) => line.split("\\\\").map((part) => part.replaceAll("\\n", "\n")).join("\\");

/** The plan, and of every tensor what the file says of it. */
function takeIndex(bytes) {
  const stack = new Stack(bytes, Math.min(2 ** 16 + 32 * bytes.length, 2 ** 22));
  const number = stack.uint();
  if (number > Math.min(64 + 2 * bytes.length, 2 ** 20)) throw corrupt("more tensors than the index can name", { got: number });
  const strings = text(stack, Math.min(2 ** 20 + 64 * bytes.length, 2 ** 24 - 1)).split("\n").map(unescaped);
  if (strings.length < 1 + number) throw corrupt("fewer names than tensors", { got: strings.length, wanted: 1 + number });
  if (strings.length > 1 + 2 * number) throw corrupt("more reasons than tensors", { got: strings.length, wanted: 1 + 2 * number });
  const names = strings.slice(1, 1 + number);
  if (new Set(names).size < number) throw corrupt("the index names a tensor twice");
  const reasons = strings.slice(1 + number);
  const budgetKind = ["bits", "ratio", "size", null][stack.uniform(4)];
  let budget = null;
  if (budgetKind) {
    const [value] = stack.floats(1);
    if (!(value >= 1e-30 && value <= 1e30)) throw corrupt("the index holds a plan that cannot be", { got: `${budgetKind}=${value}` });
    budget = { kind: budgetKind, value };
  }
  const [multiplier] = stack.floats(1);
  const [residual] = stack.floats(1);
  const plan = { method: strings[0], budget, multiplier, residual, predictedBytes: stack.uint() };
  const tensors = takeTensors(stack, names, reasons);
  const fine = tensors.filter((tensor) => tensor.kind === "fine");
  stack.floats(fine.length).forEach((step, k) => (fine[k].number = step));
  for (const name of Object.keys(COLUMNS)) takeColumn(stack, name, tensors);
  stack.finish();
  for (const tensor of tensors) {
    if (!STEPPED.has(tensor.kind)) continue;
    if (!(tensor.step > 0)) throw corrupt("a bad step", { got: tensor.step, wanted: "a positive number", tensor: tensor.name });
    tensor.number = tensor.step;
  }
  return { plan, tensors };
}

function takeTensors(stack, names, reasons) {
  const kinds = Array.from({ length: 16 }, () => new Adaptive(ones(16, 8)));
  const dtypes = new Adaptive(ones(32, 4));
  const ranks = new Adaptive(ones(MOST_AXES + 1, 4));
  const same = new Adaptive([1, 1]);
  const own = new Adaptive([2, 1]);
  const wide = new Adaptive(ones(41, 4));
  const small = new Adaptive(ones(25, 4));
  let last = 0;
  let shape = [];
  return names.map((name) => {
    last = kinds[last].take(stack);
    const kind = known(KINDS, last, "kind of tensor");
    const dtype = known(DTYPES, dtypes.take(stack), "element type");
    const reason = listed(reasons, small.number(stack), "reason");
    if (!same.take(stack)) shape = Array.from({ length: ranks.take(stack) }, () => wide.number(stack));
    const action = COMPRESSED.has(kind) ? "compress" : kind === "share" ? "share" : "keep";
    const tensor = { name, shape, dtype, kind, action, reason, length: 0, number: 0, ...COLUMNS };
    if (kind === "share") tensor.like = listed(names, small.number(stack), "shared tensor");
    else if (kind === "scalar") tensor.number = stack.sint();
    else {
      if (kind === "log") tensor.number = small.number(stack);
      tensor.length = wide.number(stack);
      if (own.take(stack)) tensor.checksum = stack.number(32);
    }
    return tensor;
  });
}

function takeColumn(stack, name, tensors) {
  const held = stack.uniform(4);
  if (held === 2) return;
  const everywhere = stack.uniform(2);
  const chosen = tensors.filter((tensor) => everywhere || tensor.action === "compress");
  if (held === 0) stack.floats(chosen.length).forEach((value, k) => (chosen[k][name] = value));
  else if (held === 1) {
    for (const tensor of chosen) {
      tensor[name] = tensor.rounding * tensor.step;
      if (!Number.isFinite(tensor[name])) throw corrupt(`the ${name} is not finite`, { tensor: tensor.name });
    }
  } else throw corrupt(`the column ${name} is held in no known way`, { got: held });
}

function known(list, number, what) {
  if (number >= list.length) throw new OpqError("newer", `an unknown ${what}`, { got: number, wanted: `below ${list.length}` });
  return list[number];
}

function listed(list, number, what) {
  if (number >= list.length) throw corrupt(`the number of a ${what} is too large`, { got: number, wanted: `below ${list.length}` });
  return list[number];
}

// --- JSON: objects are maps, in which no name may stand twice -----------------------------------

class BadJson extends Error {}

/** Numbers that are not integers in plain digits are NaN. */
function parseJson(source) {
  let at = 0;
  const fail = (what) => {
    throw new BadJson(`${what} at ${at}`);
  };
  const token = /[ \t\n\r]*(?:([{}[\]:,])|("(?:[^"\\\u0000-\u001f]|\\.)*")|(-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?)|(true|false|null))/y;
  const next = () => {
    token.lastIndex = at;
    const found = token.exec(source);
    if (!found) fail("no token");
    at = token.lastIndex;
    return found;
  };
  const string = (found) => {
    if (found[2] === undefined) fail("no name");
    try {
      return JSON.parse(found[2]);
    } catch {
      return fail("a bad string");
    }
  };
  const value = (found, depth) => {
    if (depth > 500) fail("too deep");
    if (found[2] !== undefined) return string(found);
    if (found[3] !== undefined) return found[4] || found[5] ? NaN : Number(found[3]);
    if (found[6]) return found[6] === "null" ? null : found[6] === "true";
    const closing = { "{": "}", "[": "]" }[found[1]] ?? fail("no value");
    const map = new Map();
    let item = next();
    let twice = false;
    while (item[1] !== closing) {
      let name = map.size;
      if (closing === "}") {
        name = string(item);
        if (next()[1] !== ":") fail("no colon");
        item = next();
      }
      twice ||= map.has(name);
      map.set(name, value(item, depth + 1));
      item = next();
      if (item[1] === ",") {
        item = next();
        if (item[1] === closing) fail("a comma too many");
      } else if (item[1] !== closing) fail("no comma");
    }
    if (twice) throw corrupt("a name stands twice in the header");
    return closing === "}" ? map : [...map.values()];
  };
  const found = value(next(), 0);
  if (/[^ \t\n\r]/.test(source.slice(at))) fail("more");
  return found;
}

const utf8 = (bytes) => new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);

/** Raises an error unless metadata give a version that can be read, of a file with a base also the next one. */
function checkVersion(metadata, label, newest = VERSION) {
  const version = metadata instanceof Map ? metadata.get(COMMON) : undefined;
  if (metadata instanceof Map && metadata.has("opq_update")) {
    throw new OpqError("foreign", `${label} is an update, not a network`, { remedy: "Make the network of it and of the old one first: opq apply." });
  }
  if (version === undefined || version === null) throw new OpqError("foreign", `${label} was not written by opq`);
  if (typeof version !== "string" || !/^[0-9]{1,8}$/.test(version)) throw corrupt(`${label} has no version`, { got: JSON.stringify(version) });
  if (Number(version) > newest) {
    throw new OpqError("newer", `${label} is of a newer format`, { got: version, wanted: `at most ${newest}` });
  }
  if (Number(version) < 1) throw corrupt(`${label} has no version`, { got: version, wanted: "at least 1" });
}

// --- where the bytes are ------------------------------------------------------------------------

/** Bytes in memory. */
class Memory {
  constructor(bytes) {
    this.bytes = bytes;
    this.size = bytes.length;
  }

  async read(start, stop) {
    return this.bytes.subarray(start, stop);
  }
}

/** A Blob or File, read piece by piece. */
class OfBlob {
  constructor(blob, { signal, received }) {
    Object.assign(this, { blob, size: blob.size, signal, received });
  }

  async read(start, stop) {
    this.signal?.throwIfAborted();
    const bytes = new Uint8Array(await this.blob.slice(start, stop).arrayBuffer());
    this.received(bytes.length);
    return bytes;
  }
}

/** Pieces put together. */
function joined(pieces) {
  if (pieces.length === 1) return pieces[0];
  const out = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  pieces.reduce((at, piece) => (out.set(piece, at), at + piece.length), 0);
  return out;
}

/** Bytes that come one after the other; `read` gives what is next and forgets it. */
class Flow {
  constructor(stream, { signal, received }) {
    this.reader = stream.getReader();
    this.rest = new Uint8Array(0);
    this.signal = signal;
    this.received = received;
    this.stop = () => this.reader.cancel(signal.reason).catch(() => {});
    signal?.addEventListener("abort", this.stop);
  }

  async read(amount) {
    const pieces = [];
    let held = 0;
    while (held < amount) {
      if (!this.rest.length) {
        const { done, value } = await this.reader.read().catch((error) => {
          this.signal?.throwIfAborted();
          throw new OpqError("network", "the connection broke", { cause: error });
        });
        this.signal?.throwIfAborted();
        if (done) break;
        if (!(value instanceof Uint8Array)) throw new OpqError("foreign", "a stream of something else than bytes");
        this.rest = value;
        this.received(value.length);
        continue;
      }
      const piece = this.rest.subarray(0, amount - held);
      this.rest = this.rest.subarray(piece.length);
      pieces.push(piece);
      held += piece.length;
    }
    return joined(pieces);
  }

  async skip(amount) {
    while (amount > 0) {
      const found = await this.read(Math.min(amount, 1 << 16));
      if (!found.length) break;
      amount -= found.length;
    }
    return this;
  }

  close() {
    this.signal?.removeEventListener("abort", this.stop);
    return this.reader.cancel().catch(() => {});
  }
}

/** A stream whose bytes are held, because what was read may be asked for again. */
class Held {
  constructor(flow) {
    this.flow = flow;
    this.pieces = [];
    this.held = 0;
    this.turn = Promise.resolve();
  }

  async read(start, stop) {
    const more = this.turn.then(async () => {
      while (this.held < stop) {
        const piece = await this.flow.read(Math.min(stop - this.held, 1 << 18));
        if (!piece.length) break;
        this.pieces.push(piece);
        this.held += piece.length;
      }
    });
    this.turn = more.catch(() => {});
    await more;
    let at = 0;
    const found = [];
    for (const piece of this.pieces) {
      const part = piece.subarray(Math.max(start - at, 0), Math.max(stop - at, 0));
      if (part.length) found.push(part);
      at += piece.length;
    }
    return joined(found);
  }

  close() {
    return this.flow.close();
  }
}

/** A server that gives ranges. */
class Ranged {
  constructor(url, first, size, options) {
    Object.assign(this, { url, first, size, options });
  }

  async read(start, stop) {
    if (stop <= this.first.length) return this.first.subarray(start, stop);
    if (start >= this.size) return new Uint8Array(0);
    const flow = await this.flowing(start, stop);
    try {
      return await flow.read(stop - start);
    } finally {
      flow.close();
    }
  }

  /** A range as it comes. */
  async flowing(start, stop) {
    const answer = await fetched(this.url, `bytes=${start}-${stop - 1}`, this.options);
    if (answer.status === 416 || !answer.body) return new Flow(new Blob([]).stream(), this.options);
    const flow = new Flow(answer.body, this.options);
    return answer.status === 206 ? flow : flow.skip(start);
  }
}

async function fetched(url, range, { signal, fetch, headers }) {
  let answer;
  try {
    answer = await fetch(url, { signal, headers: range ? { ...headers, Range: range } : headers });
  } catch (cause) {
    signal?.throwIfAborted();
    throw new OpqError("network", `cannot fetch ${url}`, { got: cause.message, cause });
  }
  if (!answer.ok && answer.status !== 416) {
    await answer.body?.cancel();
    throw new OpqError("missing", `cannot fetch ${url}`, { got: `status ${answer.status}` });
  }
  return answer;
}

const FIRST = 1 << 16;

/** What is behind an address: with ranges where the server has them, else the whole as it comes. */
async function ofUrl(url, options) {
  const answer = await fetched(url, options.whole ? undefined : `bytes=0-${FIRST - 1}`, options);
  if (answer.status !== 206 || !answer.body) {
    return answer.status === 416 || !answer.body ? new Memory(new Uint8Array(0)) : new Held(new Flow(answer.body, options));
  }
  const size = /^bytes 0-\d+\/(\d+)$/.exec(answer.headers.get("content-range") ?? "")?.[1];
  const flow = new Flow(answer.body, options);
  const first = await flow.read(FIRST);
  flow.close();
  return new Ranged(url, first, size ? Number(size) : first.length < FIRST ? first.length : undefined, options);
}

/** A file on disk, where there is one. */
async function ofFile(url, options) {
  try {
    return new OfBlob(await builtin("node:fs").openAsBlob(url), options);
  } catch (cause) {
    throw new OpqError("missing", `cannot open ${url}`, { got: cause.message, cause });
  }
}

async function sourceOf(source, options) {
  options.signal?.throwIfAborted();
  if (source instanceof URL) return source.protocol === "file:" && builtin("node:fs") ? ofFile(source, options) : ofUrl(source.href, options);
  if (source instanceof ArrayBuffer) return new Memory(new Uint8Array(source));
  if (ArrayBuffer.isView(source)) return new Memory(new Uint8Array(source.buffer, source.byteOffset, source.byteLength));
  if (source instanceof Blob) return new OfBlob(source, options);
  if (typeof source?.body?.getReader === "function") return new Held(new Flow(source.body, options));
  if (typeof source?.getReader === "function") return new Held(new Flow(source, options));
  throw new OpqError("missing", "nothing that can be opened", {
    got: typeof source, remedy: "Pass an address, a Blob or File, bytes, a ReadableStream or a Response.",
  });
}

/** An address relative to the page, or in Node to the folder. */
function addressOf(source) {
  if (typeof source !== "string") return source;
  try {
    const { process } = globalThis;
    const here = globalThis.location?.href ?? (process ? `file://${process.cwd()}/` : undefined);
    return new URL(source, here);
  } catch (cause) {
    throw new OpqError("missing", "no address", { got: JSON.stringify(source), cause });
  }
}

// --- workers ------------------------------------------------------------------------------------

const WORKER = "opq-decoder";
const builtin = (name) => globalThis.process?.getBuiltinModule?.(name);
const threads = builtin("node:worker_threads");

let importing;

/** A worker that runs recipes, the same way in a page and in Node. */
function newWorker() {
  if (!globalThis.Worker && threads) {
    const worker = new threads.Worker(new URL(import.meta.url), { workerData: WORKER, execArgv: [] });
    const listen = (then, fail) => worker.on("message", then).on("error", fail);
    return { worker, listen, idle: () => worker.unref(), busy: () => worker.ref() };
  }
  let worker;
  try {
    worker = new Worker(new URL("./opq.js", import.meta.url), { type: "module", name: WORKER });
  } catch {
    // a module from another origin: one of this origin imports it
    const script = new Blob([`import ${JSON.stringify(import.meta.url)};`], { type: "text/javascript" });
    importing ??= URL.createObjectURL(script);
    worker = new Worker(importing, { type: "module", name: WORKER });
  }
  const listen = (then, fail) => {
    worker.onmessage = (event) => then(event.data);
    worker.onerror = (event) => (event.preventDefault?.(), fail());
  };
  return { worker, listen, idle() {}, busy() {} };
}

/** Workers that all models share; they end after a second without work. */
const pool = {
  workers: [],
  broken: false,

  /** The result of a recipe; decoded here where no worker can be had. */
  async run(task, most) {
    let chosen = this.workers.find((one) => !one.jobs.length);
    if (!chosen && this.workers.length < most && !this.broken) chosen = this.start();
    chosen ??= this.workers.reduce((a, b) => (b.jobs.length < (a?.jobs.length ?? Infinity) ? b : a), undefined);
    if (!chosen) return run(task);
    clearTimeout(this.timer);
    chosen.busy();
    const { data, error } = await new Promise((resolve) => {
      chosen.jobs.push({ resolve, task });
      chosen.worker.postMessage(task);
    });
    if (!this.workers.some((one) => one.jobs.length)) {
      this.timer = setTimeout(() => this.end(), 1000);
      this.timer.unref?.();
    }
    if (error) throw error.code ? new OpqError(error.code, error.fact, error) : new Error(error.fact);
    return data;
  },

  start() {
    try {
      const one = { jobs: [], ...newWorker() };
      one.listen(
        (answer) => {
          one.jobs.shift()?.resolve(answer);
          if (!one.jobs.length) one.idle();
        },
        () => {
          this.broken = true;
          this.workers = this.workers.filter((other) => other !== one);
          one.worker.terminate();
          for (const { resolve, task } of one.jobs) resolve(answered(task));
        },
      );
      this.workers.push(one);
      return one;
    } catch {
      this.broken = true;
      return undefined;
    }
  },

  end() {
    for (const one of this.workers.splice(0)) one.worker.terminate();
  },
};

/** What a worker answers: the array, or the error as a value. */
function answered(task) {
  try {
    return { data: run(task) };
  } catch (failure) {
    const { code, fact, got, wanted } = named(failure);
    return { error: { code, fact: fact ?? String(failure), got, wanted } };
  }
}

if (typeof WorkerGlobalScope !== "undefined" && globalThis.name === WORKER) {
  globalThis.onmessage = ({ data: task }) => {
    const answer = answered(task);
    globalThis.postMessage(answer, answer.data ? [answer.data.buffer] : []);
  };
} else if (threads && !threads.isMainThread && threads.workerData === WORKER) {
  threads.parentPort.on("message", (task) => {
    const answer = answered(task);
    threads.parentPort.postMessage(answer, answer.data ? [answer.data.buffer] : []);
  });
}

function workersWanted(wanted) {
  if (wanted !== undefined) return wanted;
  if (!globalThis.Worker && !threads) return 0;
  const cores = globalThis.navigator?.hardwareConcurrency ?? builtin("node:os")?.availableParallelism() ?? 2;
  return Math.min(cores - 1, 4);
}

/** A recipe run by workers where it is large, chunk by chunk where chunks do not hang together. */
async function decoded(task, workers) {
  const { shape, coded, kind } = task;
  if (!workers || product(shape) < 2 ** 18) return run(task);
  const parts = isLarge(shape) ? chunksOf(shape) : [];
  if (parts.length < 2) return pool.run({ ...task, coded: coded.slice() }, workers);
  const [head, ...streams] = streamsOf(coded, parts.length + 1);
  const whole = kind === "trellis";
  const made = { ...task, as: whole ? "codes" : task.as };
  const out = emptyOf(made, product(shape));
  const each = widthOf(shape) * (made.as === "codes" ? 1 : task.length);
  await Promise.all(parts.map(async (rows, k) => {
    const found = await pool.run({ ...made, coded: streams[k].slice(), head: head.slice(), rows }, workers);
    out.set(found.subarray(0, out.length - rows[0] * each), rows[0] * each);
  }));
  return whole ? dense(task, onTrellis(out, shape), emptyOf(task, out.length), 0) : out;
}

// --- a file ---------------------------------------------------------------------------------------

/** An open file. */
class Model {
  #source;
  #options;
  #tensors;
  #base;
  #closed = false;

  constructor(source, options, { plan, tensors, size, base }, added) {
    this.#source = source;
    this.#options = options;
    this.#tensors = new Map(tensors.map((tensor) => [tensor.name, tensor]));
    this.#base = added;
    this.plan = plan;
    this.size = size;
    this.base = base;
  }

  /** All tensors, in the source's order. */
  tensors() {
    return [...this.#tensors.values()].map(described);
  }

  /** One tensor. */
  async tensor(name, { as, signal } = {}) {
    const tensor = this.#planned(name);
    const own = tensor.like === undefined ? tensor : this.#tensors.get(tensor.like);
    const read = (start, stop) => this.#source.read(start, stop);
    const found = this.#payload(own, read).then((payload) => this.#decode(own, payload, as, name));
    return { ...(await until(signal ?? this.#options.signal, found)), name };
  }

  /** All tensors in the file's order, each as soon as it can be had. */
  async *stream({ as, signal = this.#options.signal } = {}) {
    const listed = [...this.#tensors.values()].filter((tensor) => tensor.like === undefined);
    const own = listed.filter((tensor) => tensor.checksum !== undefined).sort((a, b) => a.start - b.start);
    const order = [...own, ...listed.filter((tensor) => tensor.checksum === undefined)];
    const shared = new Map();
    for (const { name, like } of this.#tensors.values()) {
      if (like !== undefined) shared.set(like, [...(shared.get(like) ?? []), name]);
    }
    const sizes = order.map((tensor) => product(tensor.shape) * width(tensor.dtype));
    const room = Math.max(SMALL, ...sizes);
    const waiting = []; // being decoded, in order
    let [next, held, coming] = [0, 0, null];
    let flow;
    const read = async (start, stop) => {
      if (!this.#source.flowing || stop <= this.#source.first.length) return this.#source.read(start, stop);
      if (!flow) {
        flow = await this.#source.flowing(start, own.at(-1).stop);
        flow.at = start;
      }
      await flow.skip(start - flow.at);
      flow.at = stop;
      return flow.read(stop - start);
    };
    try {
      while (next < order.length || waiting.length) {
        signal?.throwIfAborted();
        if (!coming && next < order.length && (!waiting.length || held + sizes[next] <= room)) {
          coming = this.#payload(order[next], read).then((payload) => ({ payload }));
          coming.catch(() => {});
        }
        const { payload, tensor } = await until(signal, Promise.race([waiting[0], coming].filter(Boolean)));
        if (payload) {
          const own = order[next];
          const found = this.#decode(own, payload, as === "codes" && !hasCodes(own) ? undefined : as, own.name);
          waiting.push(found.then((tensor) => ({ tensor })));
          waiting.at(-1).catch(() => {});
          held += sizes[next++];
          coming = null;
          continue;
        }
        waiting.shift();
        held -= sizes[next - waiting.length - 1];
        yield tensor;
        for (const name of shared.get(tensor.name) ?? []) yield { ...tensor, name, like: tensor.name };
      }
    } finally {
      flow?.close();
    }
  }

  /** Releases what the model holds; nothing can be read any more. */
  close() {
    this.#closed = true;
    this.#source.close?.();
    this.#source = null;
  }

  #planned(name) {
    const tensor = this.#tensors.get(name);
    if (tensor) return tensor;
    throw new OpqError("mismatch", `no tensor ${JSON.stringify(name)}`, { wanted: `one of ${this.#tensors.size} names`, tensor: name });
  }

  async #payload(tensor, read) {
    if (this.#closed) throw new OpqError("closed", "the file was closed");
    if (tensor.payload) return tensor.payload;
    const payload = await read(tensor.start, tensor.stop);
    if (payload.length < tensor.stop - tensor.start) {
      throw new OpqError("truncated", "the file ends early", { tensor: tensor.name });
    }
    if (crc32(payload) !== tensor.checksum) throw corrupt("wrong checksum", { remedy: "Fetch the file again.", tensor: tensor.name });
    return payload;
  }

  async #decode(tensor, payload, as, name) {
    const { kind, dtype, shape } = tensor;
    try {
      if (as !== undefined && !Object.hasOwn(NAMES, as)) {
        throw new OpqError("mismatch", "no such form", { got: as, wanted: Object.keys(NAMES).join(", "), remedy: "Correct {as}." });
      }
      if (kind === "raw" || kind === "scalar") {
        if (as === "codes") throw new OpqError("mismatch", "the tensor has no codes", { got: kind });
        const Kind = TYPES[dtype];
        const data = kind === "raw"
          ? rawArray(payload, tensor)
          : Kind.of(dtype === "I64" ? BigInt(tensor.number) : tensor.number);
        return { name, shape, dtype: NAMES[as] ?? dtype, data: converted(data, dtype, as) };
      }
      const relative = this.base && as !== "codes" && RELATIVE.has(kind);
      if (relative && !this.#base) {
        throw new OpqError("base", "the file holds differences to another network", { got: "no base", wanted: inWords(this.base) });
      }
      const added = relative && this.#base.like(tensor);
      const task = recipe(tensor, payload, added ? "codes" : as);
      const found = await decoded(task, workersWanted(this.#options.workers));
      const held = task.turn ? turnedBack(found, task.turn) : found;
      const data = added ? onBase(await added(), held, tensor, as) : held;
      return { name, shape: as === "codes" && !task.turn ? task.shape : shape, dtype: NAMES[as] ?? dtype, data };
    } catch (error) {
      throw named(error, name);
    }
  }
}

/** A promise, unless the signal says first that nobody waits for it. */
function until(signal, promise) {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal.reason);
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", stop));
    signal.addEventListener("abort", stop);
    if (signal.aborted) stop();
  });
}

const NAMES = { float32: "F32", float16: "F16", codes: "I16" };
const hasCodes = ({ kind }) => kind !== "raw" && kind !== "scalar";

/** What is told of a tensor. */
function described({ payload, checksum, start, stop, length, number, ...told }) {
  const size = product(told.shape);
  const step = told.kind === "fine" ? number : told.step;
  return { ...told, shape: [...told.shape], step, bytes: length, bits: size ? (8 * length) / size : 0 };
}

/** The header of a safetensors file, and where the bytes of its entries begin. */
async function takeHeader(source, label) {
  const truncated = (fact, got, wanted) => new OpqError("truncated", `${label} ${fact}`, { got: `${got} bytes`, wanted });
  const front = await source.read(0, 9);
  if (front.length < 8) throw truncated("has no header", front.length, "at least 8");
  const length = uint32(front, 0) + uint32(front, 4) * 2 ** 32;
  if (length > LARGEST_HEADER || length < 2 || (front.length > 8 && front[8] !== 123)) {
    throw new OpqError("foreign", `${label} is not a safetensors file`);
  }
  const bytes = await source.read(8, 8 + length);
  if (bytes.length < length) throw truncated("ends in its header", 8 + bytes.length, 8 + length);
  try {
    const header = parseJson(utf8(bytes));
    const metadata = header.get("__metadata__");
    header.delete("__metadata__");
    return { header, metadata, begin: 8 + length, truncated };
  } catch (cause) {
    if (cause instanceof OpqError) throw cause;
    throw new OpqError("foreign", `${label} has no JSON header`, { got: cause.message, cause });
  }
}

/** The entries of a header, which lie one behind the other, and where the last one ends. */
function takeEntries({ header, begin }, label) {
  const entries = new Map();
  for (const [name, fields] of header) entries.set(name, takeEntry(name, fields, begin));
  let end = begin;
  for (const [name, entry] of [...entries].sort(([, a], [, b]) => a.start - b.start || a.stop - b.stop)) {
    if (entry.start !== end) throw corrupt(`${label}: entries overlap or leave a gap`, { got: JSON.stringify(name) });
    end = entry.stop;
  }
  return { entries, end };
}

const goesOn = (label, end) => corrupt(`${label} goes on after its end`, { wanted: `${end} bytes` });

/** The entries of an opq file, the bytes of the common one, and the base that the file names. */
async function takeFile(source, label, sized) {
  const { size } = source;
  const header = await takeHeader(source, label);
  const { metadata, truncated } = header;
  const based = metadata instanceof Map && metadata.get(COMMON) === `${BASED}` && metadata.has("opq_base");
  checkVersion(metadata, label, based ? BASED : VERSION);
  const base = based ? takeBaseName(metadata.get("opq_base")) : null;
  const { entries, end } = takeEntries(header, label);
  sized(end);
  if (size !== undefined && size < end) throw truncated("is cut off", size, end);
  if (size > end) throw goesOn(label, end);
  const place = entries.get(COMMON);
  if (size === undefined && (!place || place.stop === end)) {
    const start = place ? place.start : end;
    const behind = await source.read(start, end + 1);
    if (behind.length < end - start) throw truncated("is cut off", start + behind.length, end);
    if (behind.length > end - start) throw goesOn(label, end);
    source.last = behind;
  }
  if (!place) throw corrupt(`${label} has no index`, { wanted: `an entry ${JSON.stringify(COMMON)}` });
  const common = source.last ?? (await source.read(place.start, place.stop));
  if (common.length < place.stop - place.start) throw truncated("is cut off", place.start + common.length, end);
  return { entries, common, end, base };
}

/** How a file names its base. */
function takeBaseName(text) {
  const found = /^([0-9a-f]{64}) (0|[1-9][0-9]{0,17})$/.exec(text);
  if (typeof text !== "string" || !found) throw corrupt("the file does not name its base", { got: JSON.stringify(text) });
  return { digest: found[1], size: Number(found[2]) };
}

function takeEntry(name, fields, base) {
  const wrong = () => corrupt(`the header describes ${JSON.stringify(name)} wrongly`);
  if (!(fields instanceof Map) || fields.size !== 3) throw wrong();
  const [dtype, shape, offsets] = ["dtype", "shape", "data_offsets"].map((field) => fields.get(field));
  if (!Array.isArray(shape) || !Array.isArray(offsets) || offsets.length !== 2) throw wrong();
  if (![...shape, ...offsets].every((n) => Number.isSafeInteger(n) && n >= 0)) throw wrong();
  if (!DTYPES.includes(dtype) || offsets[1] - offsets[0] !== product(shape) * width(dtype)) throw wrong();
  return { dtype, shape, start: base + offsets[0], stop: base + offsets[1] };
}

/** What index and header say of the tensors agrees, and their payloads fill the file. */
function layOut(tensors, entries, common, at) {
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  const own = new Set(entries.keys());
  own.delete(COMMON);
  for (const tensor of tensors) {
    consistent(tensor, byName);
    if (tensor.checksum === undefined) {
      tensor.payload = common.subarray(at, (at += tensor.length));
      continue;
    }
    const { name, dtype, shape, kind, length } = tensor;
    const wanted = kind === "raw" ? [dtype, ...shape] : ["U8", length];
    const entry = entries.get(name);
    if (!entry || name === COMMON || [entry.dtype, ...entry.shape].join() !== wanted.join()) {
      throw corrupt("no entry like the index says", { wanted: wanted.join(" "), tensor: name });
    }
    tensor.start = entry.start;
    tensor.stop = entry.stop;
    own.delete(name);
  }
  if (at !== common.length) throw corrupt("the payloads do not fill their entry", { got: at, wanted: common.length });
  if (own.size) throw corrupt("entries that the index does not name", { got: JSON.stringify([...own].slice(0, 5)) });
}

function consistent(tensor, byName) {
  const { name, kind, dtype, shape, number, length } = tensor;
  const wrong = (fact, got) => corrupt(fact, { got, tensor: name });
  if (kind === "share") {
    const other = byName.get(tensor.like);
    if (other.like !== undefined || other.dtype !== dtype || other.shape.join() !== shape.join()) {
      throw wrong("shares what is not like it", JSON.stringify(other.name));
    }
  } else if (kind === "scalar") {
    const [least, most] = WHOLE[dtype] ?? [1, 0];
    if (product(shape) !== 1 || !(number >= least && number <= most)) throw wrong("no scalar of its type", number);
  } else if (kind === "raw") {
    if (length !== product(shape) * width(dtype)) throw wrong("the wrong length", length);
  } else if (!CODED.has(dtype)) throw wrong("codes of a type that has none", dtype);
  else if (kind.endsWith("-rows") && !shape.length) throw wrong("steps by row of a tensor without rows", "no axes");
  else if (isMatrix(kind) && !shape.length) throw wrong("a turned tensor without axes", "no axes");
  else if (kind === "log" && !(number >= 1)) throw wrong("no codes an octave", number);
}

function limit(tensors, size, maxExpansion) {
  let dense = 0;
  for (const { shape, dtype } of tensors) {
    const widest = product(shape.map((n) => Math.max(n, 1)));
    if (widest >= 2 ** 58) throw corrupt("a shape that no tensor has", { got: `${widest} elements` });
    dense += product(shape) * width(dtype); // shared ones too: who writes or copies them takes as much
  }
  const allowed = Math.max(maxExpansion * size, limits.small);
  if (dense > allowed) {
    throw new OpqError("too-large", "the file decodes to more than it may", { got: `${dense} bytes`, wanted: `at most ${allowed}` });
  }
}

async function openFile(source, options) {
  let loaded = 0;
  let total;
  const received = (bytes) => options.progress?.({ loaded: (loaded += bytes), total });
  const bytes = await sourceOf(source, { ...options, received });
  try {
    const { entries, common, end, base } = await takeFile(bytes, options.label, (end) => (total = end));
    const { dtype, start, stop } = entries.get(COMMON);
    if (dtype !== "U8" || stop - start < 8) throw corrupt("the index is too short", { got: `${stop - start} bytes`, wanted: "at least 8" });
    if (crc32(common.subarray(4)) !== uint32(common, 0)) throw corrupt("the index has a wrong checksum", { remedy: "Fetch the file again." });
    const length = uint32(common, 4);
    if (length > common.length - 8) throw corrupt("the index is longer than its entry", { got: length, wanted: `at most ${common.length - 8}` });
    const { plan, tensors } = takeIndex(common.subarray(8, 8 + length));
    layOut(tensors, entries, common, 8 + length);
    limit(tensors, end, options.maxExpansion);
    const added = base && options.base ? await openBase(options, base) : null;
    return new Model(bytes, options, { plan, tensors, size: end, base }, added);
  } catch (error) {
    bytes.close?.();
    throw named(error);
  }
}

// --- a base: the network that a file's weights are differences to ---------------------------------

const RELATIVE = new Set(["grid", "fine", "trellis"]);
const inWords = ({ digest, size }) => `${size} bytes of tensors, SHA-256 ${digest}`;

/** The tensors of a safetensors file of any writer, whose bytes are at hand. */
class Plain {
  #bytes;
  #entries;

  constructor(bytes, entries) {
    this.#bytes = bytes;
    this.#entries = entries;
  }

  tensors() {
    return [...this.#entries].map(([name, { dtype, shape }]) => ({ name, dtype, shape }));
  }

  async tensor(name) {
    const { dtype, shape, start, stop } = this.#entries.get(name);
    return { name, dtype, shape, data: rawArray(this.#bytes.subarray(start, stop), { dtype, shape }) };
  }
}

/** What `base` of the options is: an open model, or what can be opened, read whole, since it is needed twice. */
async function opened(options) {
  const { base } = options;
  if (typeof base?.tensors === "function") return base;
  const inner = { ...options, base: undefined, progress: undefined, whole: true, received() {} };
  const from = addressOf(base);
  if (Array.isArray(base) || /(\.index\.json|[/])$/.test(from?.pathname)) return open(base, inner);
  return ofAnyWriter(from, inner, "the base");
}

/** A safetensors file of any writer, read whole. */
async function ofAnyWriter(from, options, otherwise) {
  const source = await sourceOf(from, options);
  const bytes = await source.read(0, Infinity);
  const label = from instanceof URL ? from.href : (from.name ?? otherwise);
  const header = await takeHeader(new Memory(bytes), label);
  if (header.metadata instanceof Map && header.metadata.has(COMMON)) return open(bytes, options);
  const { entries, end } = takeEntries(header, label);
  if (end > bytes.length) throw header.truncated("is cut off", bytes.length, end);
  if (end < bytes.length) throw goesOn(label, end);
  return new Plain(bytes, entries);
}

/** Shards of any writer, as one network. */
class Shards {
  #of = new Map();

  constructor(shards) {
    for (const shard of shards) for (const tensor of shard.tensors()) this.#of.set(tensor.name, { shard, tensor });
  }

  tensors() {
    return Array.from(this.#of.values(), ({ tensor }) => tensor);
  }

  tensor(name) {
    return this.#of.get(name).shard.tensor(name);
  }
}

/** The base that a file names; what is another network is an error. */
async function openBase(options, wanted) {
  const model = await opened(options);
  const tensors = new Map(model.tensors().map((tensor) => [tensor.name, tensor]));
  const sorting = (name) => Array.from(name, (c) => c.codePointAt(0).toString(16).padStart(6, "0")).join("");
  const names = [...tensors.keys()].map((name) => [sorting(name), name]).sort(([a], [b]) => (a < b ? -1 : 1));
  const digest = new Sha256();
  let size = 0;
  for (const [, name] of names) {
    options.signal?.throwIfAborted();
    const { dtype, shape, data } = await model.tensor(name);
    digest.add(new TextEncoder().encode(`${name}\0${dtype}\0${shape.join(" ")}\0`));
    digest.add(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    size += data.byteLength;
  }
  const found = { digest: digest.hex(), size };
  if (inWords(found) !== inWords(wanted)) {
    throw new OpqError("base", `another network than the base of ${options.label}`, { got: inWords(found), wanted: inWords(wanted) });
  }
  /** What gives the tensor that another one is added to, if there is one. */
  const like = ({ name, shape }) => {
    const { dtype, shape: own } = tensors.get(name) ?? {};
    return /^B?F/.test(dtype) && own.join() === shape.join() && (() => model.tensor(name));
  };
  return { like };
}

/** The sums of what stands in a base and codes times step, in float64 and from there as every weight. */
function onBase(base, codes, { dtype, number }, as) {
  const out = emptyOf({ as, dtype, size: codes.length, length: 1 }, codes.length);
  const piece = 2 ** 18;
  for (let from = 0; from < codes.length; from += piece) {
    const some = base.data.subarray(from, from + piece);
    const sums = Float64Array.from(base.dtype === "F64" ? some : converted(some, base.dtype, "float32"));
    for (let i = 0; i < sums.length; i++) sums[i] += codes[from + i] * number;
    out.set(converted(rounded(sums, dtype), dtype, as), from);
  }
  return out;
}

// --- a folder of shards ---------------------------------------------------------------------------

/** The shards that an index names, read like one file. */
class Folder {
  #shards;
  #where;

  constructor(shards, where, size) {
    this.#shards = shards;
    this.#where = where;
    this.plan = [...shards.values()][0].plan;
    this.size = size;
    this.base = null;
  }

  tensors() {
    const all = new Map([...this.#shards.values()].flatMap((shard) => shard.tensors()).map((t) => [t.name, t]));
    return [...this.#where.keys()].map((name) => all.get(name));
  }

  async tensor(name, options) {
    const shard = this.#shards.get(this.#where.get(name));
    if (!shard) throw new OpqError("mismatch", `no tensor ${JSON.stringify(name)}`, { wanted: `one of ${this.#where.size} names`, tensor: name });
    return shard.tensor(name, options);
  }

  async *stream(options) {
    for (const shard of this.#shards.values()) yield* shard.stream(options);
  }

  close() {
    for (const shard of this.#shards.values()) shard.close();
  }
}

/** The index of a folder: which file holds each tensor; and whether it is of another writer, where it may be. */
function takeWhere(bytes, label, ofAny) {
  let content;
  try {
    content = parseJson(utf8(bytes));
  } catch (cause) {
    if (cause instanceof OpqError) throw cause;
    throw corrupt(`${label} is not JSON`, { got: cause.message, cause });
  }
  const metadata = content instanceof Map ? content.get("metadata") : undefined;
  const foreign = ofAny && content instanceof Map && !(metadata instanceof Map && metadata.has(COMMON));
  if (!foreign) checkVersion(metadata, label);
  const where = content.get("weight_map");
  if (!(where instanceof Map) || !where.size || ![...where.values()].every((file) => typeof file === "string")) {
    throw corrupt(`${label} is no index`, { wanted: 'a "weight_map" of tensor names to file names' });
  }
  for (const file of where.values()) {
    if (!/^(?![.])(?:[^\p{C}\p{Z}/\\:]| )+$/u.test(file)) {
      throw corrupt(`${label} names a file outside its folder`, { got: JSON.stringify(file), wanted: "bare file names" });
    }
  }
  return { where, foreign };
}

async function openFolder(index, shardOf, options) {
  const label = options.label;
  const bytes = await index.read(0, LARGEST_INDEX + 1);
  index.close?.();
  if (bytes.length > LARGEST_INDEX) throw corrupt(`${label} is too large for an index`, { wanted: `at most ${LARGEST_INDEX} bytes` });
  const { where, foreign } = takeWhere(bytes, label, options.whole);
  if (foreign) {
    const files = [...new Set(where.values())];
    return new Shards(await Promise.all(files.map((file) => ofAnyWriter(shardOf(file), options, file))));
  }
  const shards = new Map();
  const loaded = new Map();
  try {
    for (const file of new Set(where.values())) {
      const progress = (now) => {
        loaded.set(file, now);
        const sum = (field) => [...loaded.values()].reduce((all, one) => all + one[field], 0);
        options.progress?.({ loaded: sum("loaded"), total: shards.size === new Set(where.values()).size ? sum("total") : undefined });
      };
      shards.set(file, await openFile(shardOf(file), { ...options, progress, label: file }));
    }
    const found = new Set();
    for (const [file, shard] of shards) {
      for (const { name } of shard.tensors()) {
        if (where.get(name) !== file) throw corrupt(`${file} holds a tensor that the index does not place there`, { tensor: name });
        found.add(name);
      }
    }
    for (const [name, file] of where) {
      if (!found.has(name)) throw corrupt(`the index names a tensor in ${file}, which does not hold it`, { tensor: name });
    }
    const plans = new Set([...shards.values()].map((shard) => JSON.stringify(shard.plan)));
    if (plans.size > 1) throw corrupt("the shards are not of one plan", { got: `${plans.size} plans`, wanted: 1 });
    return new Folder(shards, where, [...shards.values()].reduce((sum, shard) => sum + shard.size, bytes.length));
  } catch (error) {
    for (const shard of shards.values()) shard.close();
    throw error;
  }
}

/**
 * Opens a file, or a folder of shards.
 *
 * `source`: an address (a folder's by its `...index.json`, or ending in `/`), a Blob or File, the Files of a folder in an
 * array, an ArrayBuffer or bytes, a ReadableStream of bytes, or a Response. A file of differences needs the network that
 * it was compressed against as `base`: an open model, such a source, or that of an ordinary safetensors file.
 */
export async function open(source, options = {}) {
  const all = { maxExpansion: MAX_EXPANSION, fetch: (...call) => globalThis.fetch(...call), ...options };
  if (Array.isArray(source)) {
    const files = new Map(source.map((file) => [file.name, file]));
    const index = source.find((file) => file.name?.endsWith(".index.json"));
    if (!index) throw new OpqError("missing", `these files hold no ${INDEX}`);
    return openFolder(new OfBlob(index, { received() {} }), (name) => files.get(name) ?? missing(name), { ...all, label: index.name });
  }
  let from = addressOf(source);
  if (!(from instanceof URL)) return openFile(from, { ...all, label: source?.name ?? "the file" });
  if (from.pathname.endsWith("/")) from = new URL(INDEX, from);
  if (!from.pathname.endsWith(".index.json")) return openFile(from, { ...all, label: from.href });
  const index = await sourceOf(from, { ...all, received() {} });
  return openFolder(index, (name) => new URL(encodeURIComponent(name), from), { ...all, label: from.href });
}

function missing(name) {
  throw new OpqError("missing", `the file ${name} is not there`);
}

export default { open, OpqError, VERSION };
