// Makes a value of the tokens of one JSON text, with QEMU's words for what is wrong.

import { BlockError } from "../base/errors.ts";
import type { TokenKind } from "./json-lexer.ts";
import { emptyObject, JsonFloat, type JsonObject, type JsonValue } from "./json-value.ts";

export interface Token {
  readonly kind: TokenKind;
  readonly text: string;
}

/** The value of the tokens. @throws BlockError EINVAL "JSON parse error, ..." */
export function parseTokens(tokens: readonly Token[]): JsonValue {
  return new Parser(tokens).value();
}

/** The reference says no more of what is wrong. */
const PARSE_ERROR_MAX = 1023;

/** The error for `what` is wrong, with the bytes (as latin1) that show it: `what '...'`, cut. */
export function parseError(what: string, quoted?: string): BlockError {
  const quote = quoted === undefined ? "" : ` '${fromLatin1(quoted.slice(0, PARSE_ERROR_MAX))}'`;
  return new BlockError("EINVAL", `JSON parse error, ${(what + quote).slice(0, PARSE_ERROR_MAX)}`);
}

class Parser {
  readonly #tokens: readonly Token[];
  #at = 0;

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens;
  }

  value(): JsonValue {
    const token = this.#take();
    switch (token.kind) {
      case "{":
        return this.#object();
      case "[":
        return this.#array();
      case "string":
        return decodeString(token.text);
      case "integer":
        return decodeInteger(token.text);
      case "float":
        return new JsonFloat(token.text);
      case "keyword":
        return decodeKeyword(token.text);
      default:
        throw parseError("expecting value");
    }
  }

  #object(): JsonObject {
    const object = emptyObject();
    if (this.#peek().kind === "}") {
      this.#take();
      return object;
    }
    for (;;) {
      this.#member(object);
      const token = this.#take();
      if (token.kind === "}") return object;
      if (token.kind !== ",") throw parseError("expected separator in dict");
    }
  }

  #member(object: JsonObject): void {
    const key = this.value();
    if (typeof key !== "string") throw parseError("key is not a string in object");
    if (this.#take().kind !== ":") throw parseError("missing : in object pair");
    const value = this.value();
    if (key in object) throw parseError("duplicate key");
    object[key] = value;
  }

  #array(): JsonValue[] {
    const array: JsonValue[] = [];
    if (this.#peek().kind === "]") {
      this.#take();
      return array;
    }
    for (;;) {
      array.push(this.value());
      const token = this.#take();
      if (token.kind === "]") return array;
      if (token.kind !== ",") throw parseError("expected separator in list");
    }
  }

  #peek(): Token {
    const token = this.#tokens[this.#at];
    if (token === undefined) throw parseError("premature EOI");
    return token;
  }

  #take(): Token {
    const token = this.#peek();
    this.#at++;
    return token;
  }
}

function decodeKeyword(text: string): JsonValue {
  if (text === "true") return true;
  if (text === "false") return false;
  if (text === "null") return null;
  throw parseError("invalid keyword", text);
}

const INT64_MIN = -(2n ** 63n);
const UINT64_MAX = 2n ** 64n - 1n;

function decodeInteger(text: string): JsonValue {
  const value = Number(text);
  if (Number.isSafeInteger(value)) return value === 0 ? 0 : value;
  const exact = BigInt(text);
  return exact >= INT64_MIN && exact <= UINT64_MAX ? exact : new JsonFloat(text);
}

const ESCAPES: Readonly<Record<string, string>> = {
  '"': '"',
  "'": "'",
  "\\": "\\",
  "/": "/",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
};

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The string that a token with its quotes stands for. */
function decodeString(token: string): string {
  let result = "";
  let at = 1;
  const end = token.length - 1;
  while (at < end) {
    const backslash = token.indexOf("\\", at);
    const plainEnd = backslash < 0 ? end : backslash;
    result += decodeUtf8(token.slice(at, plainEnd));
    at = plainEnd;
    if (backslash < 0) break;
    const decoded = decodeEscape(token, at);
    result += decoded.text;
    at += decoded.length;
  }
  return result;
}

function decodeUtf8(latin1: string): string {
  try {
    return utf8.decode(Buffer.from(latin1, "latin1"));
  } catch {
    throw parseError("invalid UTF-8 sequence in string");
  }
}

function decodeEscape(token: string, at: number): { text: string; length: number } {
  const letter = token[at + 1]!;
  if (letter !== "u") {
    const text = ESCAPES[letter];
    if (text === undefined) throw parseError("invalid escape sequence in string");
    return { text, length: 2 };
  }
  const first = hexUnit(token, at + 2);
  if (first >= 0xd800 && first <= 0xdbff && token.startsWith("\\u", at + 6)) {
    const second = hexUnit(token, at + 8);
    if (second < 0xdc00 || second > 0xdfff) throw notUnicode(token.slice(at, at + 6));
    return { text: scalar(0x10000 + ((first & 0x3ff) << 10) + (second & 0x3ff), token, at, 12), length: 12 };
  }
  return { text: scalar(first, token, at, 6), length: 6 };
}

/** Four hexadecimal digits, or -1. */
function hexUnit(token: string, at: number): number {
  const digits = token.slice(at, at + 4);
  return /^[0-9A-Fa-f]{4}$/.test(digits) ? Number.parseInt(digits, 16) : -1;
}

function scalar(code: number, token: string, at: number, length: number): string {
  const surrogate = code >= 0xd800 && code <= 0xdfff;
  const nonCharacter = (code >= 0xfdd0 && code <= 0xfdef) || (code & 0xfffe) === 0xfffe;
  if (code < 0 || surrogate || nonCharacter) throw notUnicode(token.slice(at, at + length));
  return String.fromCodePoint(code);
}

function notUnicode(sequence: string): BlockError {
  return parseError(`${fromLatin1(sequence)} is not a valid Unicode character`);
}

function fromLatin1(bytes: string): string {
  return Buffer.from(bytes, "latin1").toString();
}
