// Texts as the token ids that BERT was trained on: lower case, no accents, words in pieces of a vocabulary.

const LONGEST = 100; // letters of a word that is looked up
const isPunctuation = (c) => /[!-/:-@[-`{-~]|\p{P}/u.test(c);
const isIdeograph = (c) =>
  /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/u.test(c);

/** Words and marks of punctuation. */
export function words(text) {
  const found = [""];
  const cleaned = Array.from(text, (c) => (/[\t\n\r]|\p{White_Space}/u.test(c) ? " " : /[\0\ufffd]|\p{C}/u.test(c) ? "" : c));
  const spaced = cleaned.map((c) => (isIdeograph(c) ? ` ${c} ` : c)).join("");
  for (const letter of spaced.normalize("NFD").replace(/\p{Mn}/gu, "")) {
    for (const c of letter.toLowerCase()) {
      if (c === " ") found.push("");
      else if (isPunctuation(c)) found.push(c, "");
      else found.push(found.pop() + c);
    }
  }
  return found.filter(Boolean);
}

export class Tokenizer {
  /** `vocabulary`: the text of a vocab.txt, one piece a line. */
  constructor(vocabulary) {
    this.ids = new Map(vocabulary.trimEnd().split(/\r?\n/).map((piece, id) => [piece, id]));
  }

  /** The ids of a text, at most so many. */
  encode(text, most = 128) {
    const ids = words(text).flatMap((word) => this.pieces(word)).slice(0, most - 2);
    return [this.ids.get("[CLS]"), ...ids, this.ids.get("[SEP]")];
  }

  /** The longest pieces of a word, from its beginning; one id for unknown if there are none. */
  pieces(word) {
    const letters = Array.from(word);
    const found = [];
    for (let at = 0; at < letters.length; ) {
      let end = letters.length > LONGEST ? at : letters.length;
      const piece = () => (at ? "##" : "") + letters.slice(at, end).join("");
      while (end > at && !this.ids.has(piece())) end--;
      if (end === at) return [this.ids.get("[UNK]")];
      found.push(this.ids.get(piece()));
      at = end;
    }
    return found;
  }
}
