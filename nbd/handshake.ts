// The server's side of fixed newstyle negotiation: a state machine without I/O. Bytes in, replies out, an
// outcome.
//
//   FLAGS --> OPTION_HEADER --> OPTION_DATA --> (one option answered) --> OPTION_HEADER ...
//                          \--> SKIP (data of no use) ---^
//   and out of any of them: outcome "enter" (GO, EXPORT_NAME), "close", or "tls" (STARTTLS), behind which
//   `secured` goes on with OPTION_HEADER
//
//   1. `consume` answers one option at most, so that the caller can stop at a client that does not read.
//   2. Option data is kept up to OPTION_BYTES_MAX, in memory that grows with what really arrived; data beyond
//      that, and of unknown options, is skipped and then answered, so that the next option is parsed in step.
//   3. A failed SET_META_CONTEXT leaves nothing selected; a selection counts for the export that it named
//      only.
//   4. Nothing of the client's bytes is echoed in a message.
//   5. A server that wants TLS answers nothing but STARTTLS and ABORT before it has it, and STARTTLS forgets
//      what was agreed in the clear, where somebody between the two could have said it.

import { assert } from "../src/base/assert.ts";
import { writeU64 } from "../src/base/bytes.ts";
import { MiB } from "../src/base/units.ts";
import { contextsOf, type ExportDirectory, type NbdExport, transmissionFlags } from "./export.ts";
import { listContexts, readQueries, selectContexts } from "./meta-context.ts";
import { OptionError, OptionReader, protocolText } from "./option-reader.ts";
import {
  boundedUtf8,
  encodeOptionReply,
  encodeString32,
  HANDSHAKE_FLAGS_KNOWN,
  HandshakeFlags,
  Info,
  NBD_MAGIC,
  OPTION_HEADER_BYTES,
  OPTION_MAGIC,
  Opt,
  Rep,
  STRING_BYTES_MAX,
  Style,
} from "./protocol.ts";
import type { Agreement } from "./session.ts";

/** Data of one option that is kept: 200 queries of 4000 bytes fit. */
export const OPTION_BYTES_MAX = MiB;
/** Options of one handshake; a client that wants more is closed. */
export const OPTIONS_MAX = 10_000;

const CLIENT_FLAGS_BYTES = 4;
const EXPORT_NAME_ZEROES = 124;

export type Outcome =
  | { readonly kind: "close"; readonly reason: string }
  /** The ACK is among the replies; after it the connection is TLS or ends. */
  | { readonly kind: "tls" }
  | { readonly kind: "enter"; readonly offered: NbdExport; readonly agreement: Agreement };

const State = { FLAGS: 0, OPTION_HEADER: 1, OPTION_DATA: 2, SKIP: 3 } as const;
type State = (typeof State)[keyof typeof State];

/** Options whose data is looked at; that of the others is skipped. */
const READ_OPTIONS: ReadonlySet<number> = new Set([
  Opt.EXPORT_NAME,
  Opt.INFO,
  Opt.GO,
  Opt.LIST_META_CONTEXT,
  Opt.SET_META_CONTEXT,
]);

/** Known options that have no data. */
const PLAIN_OPTIONS: ReadonlySet<number> = new Set([Opt.LIST, Opt.STRUCTURED_REPLY, Opt.EXTENDED_HEADERS]);

/** magic u64 | magic u64 | handshake flags u16 */
export function encodeGreeting(): Buffer {
  const greeting = Buffer.alloc(18);
  [...NBD_MAGIC, ...OPTION_MAGIC].forEach((half, index) => {
    greeting.writeUInt32BE(half, index * 4);
  });
  greeting.writeUInt16BE(HandshakeFlags.FIXED_NEWSTYLE | HandshakeFlags.NO_ZEROES, 16);
  return greeting;
}

export class Handshake {
  /** Replies for the client in order; whoever sends them empties the list. */
  replies: Buffer[] = [];
  outcome: Outcome | undefined;
  readonly #exports: ExportDirectory;
  /** Undefined: this server has no TLS. */
  #tls: "wanted" | "there" | undefined;
  #state: State = State.FLAGS;
  /** Bytes of the part under way: flags, option header or option data. */
  #part = Buffer.alloc(OPTION_HEADER_BYTES);
  #partBytes = 0;
  #wanted = CLIENT_FLAGS_BYTES;
  #option = 0;
  #optionBytes = 0;
  #optionCount = 0;
  #fixedNewstyle = false;
  #noZeroes = false;
  #style: Style = Style.SIMPLE;
  #selection: { offered: NbdExport; contexts: readonly string[] } | undefined;

  /** With `wantsTls` a client gets nothing in the clear. */
  constructor(exports: ExportDirectory, wantsTls = false) {
    this.#exports = exports;
    this.#tls = wantsTls ? "wanted" : undefined;
    this.replies.push(encodeGreeting());
  }

  /** The outcome was "tls" and the connection is secure now: goes on as if nothing had been agreed. */
  secured(): void {
    assert(this.outcome?.kind === "tls", "TLS begins with STARTTLS");
    this.outcome = undefined;
    this.#tls = "there";
    this.#style = Style.SIMPLE;
    this.#selection = undefined;
  }

  /** Takes bytes [at, end) until one part is complete; returns where it stopped. */
  consume(buffer: Buffer, at: number, end: number): number {
    const taken = Math.min(end - at, this.#wanted - this.#partBytes);
    if (this.#state !== State.SKIP) this.#keep(buffer, at, taken);
    this.#partBytes += taken;
    if (this.#partBytes === this.#wanted) this.#partComplete();
    return at + taken;
  }

  #keep(buffer: Buffer, at: number, bytes: number): void {
    const needed = this.#partBytes + bytes;
    if (needed > this.#part.length) {
      const larger = Buffer.allocUnsafe(Math.min(OPTION_BYTES_MAX, Math.max(needed, this.#part.length * 2)));
      this.#part.copy(larger, 0, 0, this.#partBytes);
      this.#part = larger;
    }
    buffer.copy(this.#part, this.#partBytes, at, at + bytes);
  }

  #expect(state: State, bytes: number): void {
    this.#state = state;
    this.#wanted = bytes;
    this.#partBytes = 0;
  }

  #partComplete(): void {
    switch (this.#state) {
      case State.FLAGS:
        this.#clientFlags(this.#part.readUInt32BE(0));
        return;
      case State.OPTION_HEADER:
        this.#optionHeader();
        return;
      default:
        this.#optionComplete();
        return;
    }
  }

  #clientFlags(flags: number): void {
    if ((flags & ~HANDSHAKE_FLAGS_KNOWN) !== 0) {
      this.#close("client flags that are not known");
      return;
    }
    this.#fixedNewstyle = (flags & HandshakeFlags.FIXED_NEWSTYLE) !== 0;
    this.#noZeroes = (flags & HandshakeFlags.NO_ZEROES) !== 0;
    this.#expect(State.OPTION_HEADER, OPTION_HEADER_BYTES);
  }

  #optionHeader(): void {
    const part = this.#part;
    if (part.readUInt32BE(0) !== OPTION_MAGIC[0] || part.readUInt32BE(4) !== OPTION_MAGIC[1]) {
      this.#close("an option without the option magic");
      return;
    }
    this.#option = part.readUInt32BE(8);
    this.#optionBytes = part.readUInt32BE(12);
    if (++this.#optionCount > OPTIONS_MAX) {
      this.#close(`more than ${OPTIONS_MAX} options`);
      return;
    }
    if (!this.#fixedNewstyle && this.#option !== Opt.EXPORT_NAME) {
      this.#close("an option that needs fixed newstyle, without it");
      return;
    }
    const kept = READ_OPTIONS.has(this.#option) && this.#optionBytes <= this.#bytesMax();
    this.#expect(kept ? State.OPTION_DATA : State.SKIP, this.#optionBytes);
    if (this.#optionBytes === 0) this.#optionComplete();
  }

  #bytesMax(): number {
    return this.#option === Opt.EXPORT_NAME ? STRING_BYTES_MAX : OPTION_BYTES_MAX;
  }

  #optionComplete(): void {
    const data = this.#state === State.SKIP ? undefined : this.#part.subarray(0, this.#optionBytes);
    try {
      this.#answer(data);
    } catch (error) {
      if (!(error instanceof OptionError)) throw error;
      this.#error(Rep.ERR_INVALID, error.message);
    }
    if (this.#part.length > STRING_BYTES_MAX) this.#part = Buffer.alloc(OPTION_HEADER_BYTES);
    this.#expect(State.OPTION_HEADER, OPTION_HEADER_BYTES);
  }

  /** Answers the option; `data` is undefined when it was skipped. */
  #answer(data: Buffer | undefined): void {
    if (this.#option === Opt.ABORT) this.#abort();
    else if (this.#option === Opt.STARTTLS) this.#startTls();
    else if (this.#tls === "wanted") this.#refuseInTheClear();
    else if (READ_OPTIONS.has(this.#option)) this.#answerData(data);
    else if (!PLAIN_OPTIONS.has(this.#option)) this.#error(Rep.ERR_UNSUP, "this option is not known");
    else if (this.#optionBytes > 0) this.#error(Rep.ERR_INVALID, "this option has no data");
    else if (this.#option === Opt.LIST) this.#list();
    else this.#raiseStyle(this.#option === Opt.EXTENDED_HEADERS ? Style.EXTENDED : Style.STRUCTURED);
  }

  #answerData(data: Buffer | undefined): void {
    // Also a SET that fails, or is too long to be read, drops what was selected before.
    if (this.#option === Opt.SET_META_CONTEXT) this.#selection = undefined;
    if (this.#option === Opt.EXPORT_NAME) this.#exportName(data);
    else if (data === undefined) this.#tooBig();
    else if (this.#option === Opt.LIST_META_CONTEXT) this.#listContexts(new OptionReader(data));
    else if (this.#option === Opt.SET_META_CONTEXT) this.#setContexts(new OptionReader(data));
    else this.#info(new OptionReader(data));
  }

  #abort(): void {
    this.#reply(Rep.ACK);
    this.#close("the client aborted");
  }

  #startTls(): void {
    if (this.#tls === undefined) this.#error(Rep.ERR_UNSUP, "this server has no TLS");
    else if (this.#tls === "there") this.#error(Rep.ERR_INVALID, "TLS has been started already");
    else if (this.#optionBytes > 0) this.#error(Rep.ERR_INVALID, "this option has no data");
    else {
      this.#reply(Rep.ACK);
      this.outcome = { kind: "tls" };
    }
  }

  #refuseInTheClear(): void {
    if (this.#option === Opt.EXPORT_NAME) this.#close("EXPORT_NAME without TLS");
    else this.#error(Rep.ERR_TLS_REQD, "this server wants TLS: start it with STARTTLS");
  }

  // EXPORT_NAME has no error reply: the connection closes. Its reply: size u64 | flags u16 | 124 zeroes.
  #exportName(name: Buffer | undefined): void {
    if (name === undefined) {
      this.#close("an export name that is too long");
      return;
    }
    if (this.#style === Style.EXTENDED) {
      this.#close("EXPORT_NAME after extended headers");
      return;
    }
    const text = protocolText(name);
    const offered = text === undefined ? undefined : this.#exports.find(text);
    if (offered === undefined || this.#exports.closing) {
      this.#close("an export that is not offered");
      return;
    }
    const reply = Buffer.alloc(this.#noZeroes ? 10 : 10 + EXPORT_NAME_ZEROES);
    writeU64(reply, offered.backend.size, 0);
    reply.writeUInt16BE(transmissionFlags(offered.backend, this.#style), 8);
    this.replies.push(reply);
    this.#enter(offered);
  }

  #list(): void {
    for (const { name, backend } of this.#exports.list()) {
      this.#reply(Rep.SERVER, encodeString32(name), Buffer.from(backend.description ?? ""));
    }
    this.#reply(Rep.ACK);
  }

  #raiseStyle(style: Style): void {
    if (style < this.#style) {
      this.#error(Rep.ERR_EXT_HEADER_REQD, "extended headers are agreed on already");
      return;
    }
    if (style === this.#style) {
      this.#error(Rep.ERR_INVALID, "this is agreed on already");
      return;
    }
    this.#style = style;
    this.#reply(Rep.ACK);
  }

  // INFO, GO:  name length u32 | name | count u16 | { information type u16 } ...
  #info(reader: OptionReader): void {
    const name = reader.string32("export name");
    const asked = new Set<number>();
    for (let left = reader.u16("number of information requests"); left > 0; left--) {
      asked.add(reader.u16("information requests"));
    }
    reader.end();
    const offered = this.#find(name);
    if (offered === undefined) return;
    this.#sendInfo(offered, asked);
    this.#reply(Rep.ACK);
    if (this.#option === Opt.GO) this.#enter(offered);
  }

  #sendInfo({ name, backend }: NbdExport, asked: ReadonlySet<number>): void {
    const info = Buffer.alloc(12);
    info.writeUInt16BE(Info.EXPORT, 0);
    writeU64(info, backend.size, 2);
    info.writeUInt16BE(transmissionFlags(backend, this.#style), 10);
    this.#reply(Rep.INFO, info);
    if (asked.has(Info.NAME)) this.#reply(Rep.INFO, infoType(Info.NAME), Buffer.from(name));
    if (asked.has(Info.DESCRIPTION) && backend.description !== undefined) {
      this.#reply(Rep.INFO, infoType(Info.DESCRIPTION), Buffer.from(backend.description));
    }
    if (asked.has(Info.BLOCK_SIZE)) {
      const sizes = Buffer.alloc(12);
      sizes.writeUInt32BE(backend.blockSize.minimum, 0);
      sizes.writeUInt32BE(backend.blockSize.preferred, 4);
      sizes.writeUInt32BE(backend.blockSize.maximum, 8);
      this.#reply(Rep.INFO, infoType(Info.BLOCK_SIZE), sizes);
    }
  }

  #listContexts(reader: OptionReader): void {
    const { name, queries } = readQueries(reader);
    const offered = this.#find(name);
    if (offered === undefined) return;
    for (const context of listContexts(contextsOf(offered), queries)) this.#context(0, context);
    this.#reply(Rep.ACK);
  }

  #setContexts(reader: OptionReader): void {
    const { name, queries } = readQueries(reader);
    if (this.#style === Style.SIMPLE) throw new OptionError("meta contexts need structured replies");
    const offered = this.#find(name);
    if (offered === undefined) return;
    const contexts = selectContexts(contextsOf(offered), queries);
    this.#selection = { offered, contexts };
    contexts.forEach((context, id) => {
      this.#context(id, context);
    });
    this.#reply(Rep.ACK);
  }

  /** The export of that name; answers and gives undefined when there is none. */
  #find(name: Buffer): NbdExport | undefined {
    if (name.length > STRING_BYTES_MAX) throw new OptionError("the export name is too long");
    const text = protocolText(name);
    if (text === undefined) throw new OptionError("the export name is not UTF-8 text");
    const offered = this.#exports.find(text);
    if (this.#exports.closing) this.#error(Rep.ERR_SHUTDOWN, "the server is shutting down");
    else if (offered === undefined) this.#error(Rep.ERR_UNKNOWN, "no export of this name");
    else return offered;
    return undefined;
  }

  #context(id: number, context: string): void {
    const idBytes = Buffer.alloc(4);
    idBytes.writeUInt32BE(id);
    this.#reply(Rep.META_CONTEXT, idBytes, Buffer.from(context));
  }

  #enter(offered: NbdExport): void {
    const contexts = this.#selection?.offered === offered ? this.#selection.contexts : [];
    this.outcome = { kind: "enter", offered, agreement: { style: this.#style, contexts } };
  }

  #close(reason: string): void {
    this.outcome = { kind: "close", reason };
  }

  #tooBig(): void {
    this.#error(Rep.ERR_TOO_BIG, `option data above ${OPTION_BYTES_MAX} bytes`);
  }

  #reply(type: number, ...data: Buffer[]): void {
    this.replies.push(encodeOptionReply(this.#option, type, Buffer.concat(data)));
  }

  #error(type: number, message: string): void {
    this.#reply(type, boundedUtf8(message));
  }
}

function infoType(type: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(type);
  return bytes;
}
