// Splits bytes into JSON tokens, in QEMU's dialect and with its way of recovering from garbage.
//
//   1. Bytes may arrive in any pieces; a token is handed on when its last byte is certain. A number or a word
//      is certain only when the byte after it has arrived.
//   2. A byte that no token can have gives one ERROR token (what was gathered, with that byte). Then
//      everything is skipped up to a structural character or a control character, so that a monitor finds its
//      feet again.
//   3. Strings are not looked into: the parser decodes them.
//   4. What pieces hold of a token before its last is kept outside the heap: a token without an end costs its
//      bytes once, not again with every collection that is late.
//
// The text of a token is its bytes as latin1: one character per byte.

import { TokenBytes } from "./token-bytes.ts";

export type TokenKind =
  | "{"
  | "}"
  | "["
  | "]"
  | ","
  | ":"
  | "string"
  | "integer"
  | "float"
  | "keyword"
  | "error";

/** Takes the tokens in order. */
export type TokenSink = (kind: TokenKind, text: string) => void;

const State = {
  START: 0,
  RECOVERY: 1,
  DOUBLE_QUOTED: 2,
  DOUBLE_QUOTED_ESCAPE: 3,
  SINGLE_QUOTED: 4,
  SINGLE_QUOTED_ESCAPE: 5,
  SIGN: 6,
  ZERO: 7,
  DIGITS: 8,
  POINT: 9,
  FRACTION: 10,
  EXPONENT: 11,
  EXPONENT_SIGN: 12,
  EXPONENT_DIGITS: 13,
  KEYWORD: 14,
} as const;
type State = (typeof State)[keyof typeof State];

const TAB = 0x09;
const BACKSLASH = 0x5c;

/**
 * What a byte does: lead to another state, complete a token, or (not being part of it) end the token before
 * it.
 */
type Step = State | TokenKind | "ends before";

export class JsonLexer {
  readonly #sink: TokenSink;
  #state: State = State.START;
  /** What earlier pieces held of the token that is being gathered. */
  readonly #earlier: TokenBytes;
  /** Where it begins, or goes on, in the piece that is being read. */
  #from = 0;

  /** `bytesMax` of a token may lie in pieces before its last. */
  constructor(sink: TokenSink, bytesMax: number) {
    this.#sink = sink;
    this.#earlier = new TokenBytes(bytesMax);
  }

  /** Bytes of the token that is being gathered, between pieces. */
  get pendingBytes(): number {
    return this.#earlier.length;
  }

  /** @throws RangeError where a token exceeds `bytesMax` */
  feed(bytes: Buffer): void {
    const text = bytes.toString("latin1");
    this.#from = 0;
    for (let at = 0; at < text.length; ) at = this.#advance(text, at);
    if (this.#state === State.START || this.#state === State.RECOVERY) return;
    this.#earlier.add(bytes.subarray(this.#from));
  }

  /** Says that nothing follows: a number or a word that waited for its end is complete, a string is not. */
  end(): void {
    const kind = kindEndingIn(this.#state);
    if (kind !== undefined) this.#emit(kind, "");
    else if (this.pendingBytes > 0) this.#fail("");
    this.reset();
  }

  /** Drops the token that is being gathered. */
  reset(): void {
    this.#earlier.drop();
    this.#state = State.START;
  }

  /** Deals with the byte at `at`, or with a run of a string; gives where to go on. */
  #advance(text: string, at: number): number {
    const run = plainRun(this.#state, text, at);
    if (run > at) return run;
    const byte = text.charCodeAt(at);
    if (this.#state === State.RECOVERY) {
      if (endsRecovery(byte)) this.#state = State.START;
      else return at + 1;
    }
    if (this.#state === State.START) this.#from = at;
    const step = next(this.#state, byte);
    if (step === "ends before") {
      this.#emit(kindEndingIn(this.#state)!, text.slice(this.#from, at));
      return at;
    }
    if (step === "error") this.#fail(text.slice(this.#from, at + 1));
    else if (typeof step === "string") this.#emit(step, text.slice(this.#from, at + 1));
    else this.#state = step;
    return at + 1;
  }

  #emit(kind: TokenKind, ending: string): void {
    const text = this.#earlier.take(ending);
    this.#state = State.START;
    this.#sink(kind, text);
  }

  #fail(ending: string): void {
    const text = this.#earlier.take(ending);
    this.#state = State.RECOVERY;
    this.#sink("error", text);
  }
}

function next(state: State, byte: number): Step {
  switch (state) {
    case State.DOUBLE_QUOTED:
      return inString(byte, 0x22, state, State.DOUBLE_QUOTED_ESCAPE);
    case State.SINGLE_QUOTED:
      return inString(byte, 0x27, state, State.SINGLE_QUOTED_ESCAPE);
    case State.DOUBLE_QUOTED_ESCAPE:
      return isPlain(byte) ? State.DOUBLE_QUOTED : "error";
    case State.SINGLE_QUOTED_ESCAPE:
      return isPlain(byte) ? State.SINGLE_QUOTED : "error";
    case State.KEYWORD:
      return isLowerCase(byte) ? State.KEYWORD : "ends before";
    case State.START:
    case State.RECOVERY:
      return atStart(byte);
    default:
      return inNumber(state, byte);
  }
}

function atStart(byte: number): Step {
  if (byte === 0x20 || byte === 0x09 || byte === 0x0a || byte === 0x0d) return State.START;
  if (isLowerCase(byte)) return State.KEYWORD;
  if (byte === 0x30) return State.ZERO;
  if (isDigit(byte)) return State.DIGITS;
  const character = String.fromCharCode(byte);
  switch (character) {
    case '"':
      return State.DOUBLE_QUOTED;
    case "'":
      return State.SINGLE_QUOTED;
    case "-":
      return State.SIGN;
    case "{":
    case "}":
    case "[":
    case "]":
    case ",":
    case ":":
      return character;
    default:
      return "error";
  }
}

function inString(byte: number, quote: number, state: State, escaped: State): Step {
  if (byte === quote) return "string";
  if (byte === BACKSLASH) return escaped;
  return isPlain(byte) ? state : "error";
}

function inNumber(state: State, byte: number): Step {
  const digit = isDigit(byte);
  const point = byte === 0x2e;
  const exponent = byte === 0x65 || byte === 0x45;
  switch (state) {
    case State.SIGN:
      return byte === 0x30 ? State.ZERO : digit ? State.DIGITS : "error";
    case State.ZERO:
      return digit ? "error" : point ? State.POINT : "ends before";
    case State.DIGITS:
      return digit ? state : point ? State.POINT : exponent ? State.EXPONENT : "ends before";
    case State.POINT:
      return digit ? State.FRACTION : "error";
    case State.FRACTION:
      return digit ? state : exponent ? State.EXPONENT : "ends before";
    case State.EXPONENT:
      if (byte === 0x2b || byte === 0x2d) return State.EXPONENT_SIGN;
      return digit ? State.EXPONENT_DIGITS : "error";
    case State.EXPONENT_SIGN:
      return digit ? State.EXPONENT_DIGITS : "error";
    default:
      return digit ? State.EXPONENT_DIGITS : "ends before";
  }
}

/** What the token is if it ends in this state; undefined where it may not. */
function kindEndingIn(state: State): TokenKind | undefined {
  if (state === State.KEYWORD) return "keyword";
  if (state === State.ZERO || state === State.DIGITS) return "integer";
  if (state === State.FRACTION || state === State.EXPONENT_DIGITS) return "float";
  return undefined;
}

/**
 * End of the run from `at` that a string takes as it is: nearly everything of a long string, so it is done at
 * once.
 */
function plainRun(state: State, text: string, at: number): number {
  if (state !== State.DOUBLE_QUOTED && state !== State.SINGLE_QUOTED) return at;
  const quote = state === State.DOUBLE_QUOTED ? 0x22 : 0x27;
  let end = at;
  for (; end < text.length; end++) {
    const byte = text.charCodeAt(end);
    if (byte === quote || byte === BACKSLASH || !isPlain(byte)) break;
  }
  return end;
}

function endsRecovery(byte: number): boolean {
  return (byte < 0x20 && byte !== TAB) || byte >= 0xfe || "{}[],:".includes(String.fromCharCode(byte));
}

/** Neither a control character nor a byte that no text has. */
function isPlain(byte: number): boolean {
  return byte >= 0x20 && byte <= 0xfd;
}

function isDigit(byte: number): boolean {
  return byte >= 0x30 && byte <= 0x39;
}

function isLowerCase(byte: number): boolean {
  return byte >= 0x61 && byte <= 0x7a;
}
