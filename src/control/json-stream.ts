// Bytes of a monitor to complete JSON values.
//
//   1. A value is handed on when its last bracket has come; a number or word outside brackets when it is
//      complete.
//   2. What is wrong is handed on as an error in its place in the order; the next value is read as if nothing
//      was.
//   3. One text has limits (QEMU's): bytes of its tokens, number of tokens, depth. At a limit the text is
//      dropped and an error told.

import { BlockError } from "../base/errors.ts";
import { KiB, MiB } from "../base/units.ts";
import { JsonLexer, type TokenKind } from "./json-lexer.ts";
import { parseError, parseTokens, type Token } from "./json-parser.ts";
import type { JsonValue } from "./json-value.ts";

export const JSON_BYTES_MAX = 64 * MiB;
export const JSON_TOKENS_MAX = 2 * MiB;
export const JSON_DEPTH_MAX = 1024;
/** A token that never ends is noticed behind each piece of this size. */
const PIECE_BYTES = 64 * KiB;

/** Takes what arrives, in order: a value or what is wrong. */
export interface JsonSink {
  value(value: JsonValue): void;
  error(error: BlockError): void;
}

export class JsonStream {
  readonly #sink: JsonSink;
  readonly #lexer = new JsonLexer((kind, text) => this.#token(kind, text), JSON_BYTES_MAX + PIECE_BYTES);
  #tokens: Token[] = [];
  #bytes = 0;
  #braces = 0;
  #brackets = 0;

  constructor(sink: JsonSink) {
    this.#sink = sink;
  }

  feed(bytes: Buffer): void {
    for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
      this.#lexer.feed(bytes.subarray(at, at + PIECE_BYTES));
      if (this.#bytes + this.#lexer.pendingBytes <= JSON_BYTES_MAX) continue;
      this.#lexer.reset();
      this.#fail(exceeded("token size"));
    }
  }

  /** Says that no more follows; what is not complete is an error. */
  end(): void {
    this.#lexer.end();
    if (this.#tokens.length > 0) this.#complete();
  }

  #token(kind: TokenKind, text: string): void {
    const refusal = this.#count(kind, text);
    if (refusal !== undefined) {
      this.#fail(refusal);
      return;
    }
    this.#tokens.push({ kind, text });
    const open = this.#braces > 0 || this.#brackets > 0;
    // A closing bracket too many ends the text as well: the parser says what is wrong with it.
    if (!open || this.#braces < 0 || this.#brackets < 0) this.#complete();
  }

  /** Counts a token in; gives what is wrong with it or which limit it exceeds. */
  #count(kind: TokenKind, text: string): BlockError | undefined {
    if (kind === "error") return parseError("stray", text);
    if (kind === "{") this.#braces++;
    if (kind === "}") this.#braces--;
    if (kind === "[") this.#brackets++;
    if (kind === "]") this.#brackets--;
    this.#bytes += text.length;
    if (this.#bytes > JSON_BYTES_MAX) return exceeded("token size");
    if (this.#tokens.length >= JSON_TOKENS_MAX) return exceeded("token count");
    if (this.#braces + this.#brackets > JSON_DEPTH_MAX) return exceeded("nesting depth");
    return undefined;
  }

  #complete(): void {
    const tokens = this.#tokens;
    this.#reset();
    let value: JsonValue;
    try {
      value = parseTokens(tokens);
    } catch (error) {
      this.#sink.error(error as BlockError);
      return;
    }
    this.#sink.value(value);
  }

  #fail(error: BlockError): void {
    this.#reset();
    this.#sink.error(error);
  }

  #reset(): void {
    this.#tokens = [];
    this.#bytes = 0;
    this.#braces = 0;
    this.#brackets = 0;
  }
}

function exceeded(limit: string): BlockError {
  return new BlockError("EINVAL", `JSON ${limit} limit exceeded`);
}

/**
 * The one value that `text` is; nothing behind what is wrong is read. @throws BlockError EINVAL in QEMU's
 * words
 */
export function parseJson(text: string): JsonValue {
  let found: { readonly value: JsonValue } | undefined;
  const stream = new JsonStream({
    value: (value) => {
      if (found !== undefined) throw parseError("there is more than one value");
      found = { value };
    },
    error: (error) => {
      throw error;
    },
  });
  stream.feed(Buffer.from(text));
  stream.end();
  if (found === undefined) throw parseError("expecting value");
  return found.value;
}
