// Reads both sides of a conversation and says what the server did wrong: a reply that nobody asked for, one
// that does not fit its request, one that is missing. It knows nothing of the server but the protocol.

import { decodeRequest, PAYLOAD_BYTES_MAX, RequestHeader, requestBytes, Style } from "../protocol.ts";
import { payloadBytesOf } from "../request-check.ts";

const GREETING = Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), Buffer.from([0, 3])]);
const OPTION_MAGIC = Buffer.from("IHAVEOPT");
const [EXPORT_NAME, ABORT, GO, STRUCTURED, EXTENDED] = [1, 2, 7, 8, 11];
const ACK = 1;
const [READ, WRITE, DISC, BLOCK_STATUS] = [0, 1, 2, 7];
const NO_ZEROES = 2;
/** Error numbers of the protocol. */
const ERRNOS = new Set([1, 5, 12, 22, 28, 75, 95, 108]);

/** A request that was sent whole and not answered yet. */
interface Asked {
  readonly type: number;
  readonly bytes: number;
  readonly offset: string;
  /** Bytes of data and holes that chunks have told. */
  told: number;
}

export interface Conversation {
  /** All that the client sent, and all that it got. */
  readonly sent: Buffer;
  readonly got: Buffer;
  /** The client sent to the end and read everything until the server closed. */
  readonly whole: boolean;
}

/** What is wrong with it; undefined when nothing is. */
export function judge(conversation: Conversation): string | undefined {
  try {
    new Judge(conversation).run();
    return undefined;
  } catch (error) {
    if (error instanceof Ambiguous) return undefined;
    if (error instanceof Wrong) return error.message;
    throw error;
  }
}

class Wrong extends Error {}
/** Two requests of one cookie: what a reply belongs to cannot be told. */
class Ambiguous extends Error {}

class Judge {
  readonly #sent: Buffer;
  readonly #got: Buffer;
  readonly #whole: boolean;
  #sentAt = 4;
  #gotAt = 0;
  #style: Style = Style.SIMPLE;
  readonly #asked = new Map<string, Asked>();

  constructor({ sent, got, whole }: Conversation) {
    this.#sent = sent;
    this.#got = got;
    this.#whole = whole;
  }

  run(): void {
    const { got } = this.#take(Math.min(GREETING.length, this.#got.length));
    if (!GREETING.subarray(0, got.length).equals(got)) throw new Wrong("not the greeting");
    if (this.#negotiation()) this.#transmission();
    else if (this.#left > 0) throw new Wrong(`${this.#left} bytes after the end of the handshake`);
  }

  get #left(): number {
    return this.#got.length - this.#gotAt;
  }

  #take(bytes: number): { got: Buffer } {
    const got = this.#got.subarray(this.#gotAt, this.#gotAt + bytes);
    this.#gotAt += got.length;
    return { got };
  }

  // --- handshake -------------------------------------------------------------------------------------------

  /** Whether the client is let in. */
  #negotiation(): boolean {
    while (this.#left > 0) {
      if (this.#sent.length < this.#sentAt + 16) throw new Wrong("a reply to no option");
      if (!this.#sent.subarray(this.#sentAt, this.#sentAt + 8).equals(OPTION_MAGIC)) {
        throw new Wrong("a reply to an option without its magic");
      }
      const option = this.#sent.readUInt32BE(this.#sentAt + 8);
      const dataBytes = this.#sent.readUInt32BE(this.#sentAt + 12);
      this.#sentAt += 16 + dataBytes;
      if (this.#sentAt > this.#sent.length) throw new Wrong("a reply to an option that has not come whole");
      if (option === EXPORT_NAME) return this.#exportName();
      const type = this.#optionReplies(option);
      if (type === undefined) return false;
      if (type !== ACK) continue;
      if (option === GO) return true;
      if (option === ABORT) return false;
      if (option === STRUCTURED) this.#style = Style.STRUCTURED;
      if (option === EXTENDED) this.#style = Style.EXTENDED;
    }
    return false;
  }

  #exportName(): boolean {
    const bytes = (this.#sent.readUInt32BE(0) & NO_ZEROES) !== 0 ? 10 : 134;
    const { got } = this.#take(bytes);
    if (got.length < bytes && this.#whole) throw new Wrong("half a reply to EXPORT_NAME");
    if (!got.subarray(10).every((byte) => byte === 0)) throw new Wrong("the 124 zeroes are none");
    return got.length === bytes;
  }

  /** Reads the replies of one option up to the last; its type. */
  #optionReplies(option: number): number | undefined {
    for (;;) {
      const { got: head } = this.#take(20);
      if (head.length < 20) return this.#cut("an option reply");
      if (head.readBigUInt64BE(0) !== 0x3e889045565a9n) throw new Wrong("an option reply without its magic");
      if (head.readUInt32BE(8) !== option) throw new Wrong(`a reply to option ${head.readUInt32BE(8)}`);
      const type = head.readUInt32BE(12);
      const bytes = head.readUInt32BE(16);
      if (this.#take(bytes).got.length < bytes) return this.#cut("an option reply");
      if (type === ACK || type >= 0x8000_0000) return type;
      if (type < 2 || type > 4) throw new Wrong(`an option reply of type ${type}`);
    }
  }

  #cut(what: string): undefined {
    if (this.#whole) throw new Wrong(`${what} ends in the middle`);
    return undefined;
  }

  // --- transmission ----------------------------------------------------------------------------------------

  #transmission(): void {
    this.#readRequests();
    while (this.#left > 0) {
      const more = this.#style === Style.EXTENDED ? this.#chunk(32) : this.#reply();
      if (!more) {
        this.#cut("a reply");
        return;
      }
    }
    if (this.#whole && this.#asked.size > 0) {
      const [cookie, { type, bytes }] = [...this.#asked][0]!;
      throw new Wrong(`no answer to command ${type} of ${bytes} bytes (cookie ${cookie})`);
    }
  }

  #readRequests(): void {
    const header = new RequestHeader();
    const headerBytes = requestBytes(this.#style);
    let at = this.#sentAt;
    while (at + headerBytes <= this.#sent.length) {
      decodeRequest(this.#sent, at, this.#style, header);
      if (!header.magicOk || header.type === DISC) return;
      const cookie = this.#sent.toString("hex", at + 8, at + 16);
      const offset = this.#sent.toString("hex", at + 16, at + 24);
      const payloadBytes = payloadBytesOf(header, this.#style);
      at += headerBytes + payloadBytes;
      const isLast = payloadBytes > PAYLOAD_BYTES_MAX;
      if (!isLast && at > this.#sent.length) return;
      if (this.#asked.has(cookie)) throw new Ambiguous();
      this.#asked.set(cookie, { type: header.type, bytes: header.bytes, offset, told: 0 });
      if (isLast) return;
    }
  }

  #of(cookie: string): Asked {
    const asked = this.#asked.get(cookie);
    if (asked === undefined) throw new Wrong(`a reply to a request that was not made (cookie ${cookie})`);
    return asked;
  }

  #reply(): boolean {
    if (this.#left < 4) return false;
    const magic = this.#got.readUInt32BE(this.#gotAt);
    if (magic === 0x668e33ef && this.#style === Style.STRUCTURED) return this.#chunk(20);
    if (magic !== 0x67446698) throw new Wrong(`a reply that begins with ${magic.toString(16)}`);
    const { got: head } = this.#take(16);
    if (head.length < 16) return false;
    const error = head.readUInt32BE(4);
    const cookie = head.toString("hex", 8, 16);
    const { type, bytes } = this.#of(cookie);
    this.#asked.delete(cookie);
    if (error !== 0) {
      if (!ERRNOS.has(error)) throw new Wrong(`error ${error}`);
      return true;
    }
    if (type === BLOCK_STATUS) throw new Wrong("a simple reply to BLOCK_STATUS");
    if (type !== READ) return true;
    if (this.#style !== Style.SIMPLE) throw new Wrong("a simple reply to a structured READ");
    return this.#take(bytes).got.length === bytes;
  }

  #chunk(headBytes: number): boolean {
    const { got: head } = this.#take(headBytes);
    if (head.length < headBytes) return false;
    const extended = headBytes === 32;
    if (head.readUInt32BE(0) !== (extended ? 0x6e8a278c : 0x668e33ef))
      throw new Wrong("a chunk without magic");
    const done = (head.readUInt16BE(4) & 1) !== 0;
    const type = head.readUInt16BE(6);
    const cookie = head.toString("hex", 8, 16);
    const asked = this.#of(cookie);
    if (extended && head.toString("hex", 16, 24) !== asked.offset) throw new Wrong("the offset is another");
    const payloadBytes = extended ? Number(head.readBigUInt64BE(24)) : head.readUInt32BE(16);
    if (payloadBytes > PAYLOAD_BYTES_MAX + 8) throw new Wrong(`a chunk of ${payloadBytes} bytes`);
    const { got: payload } = this.#take(payloadBytes);
    if (payload.length < payloadBytes) return false;
    const failed = this.#payload(type, payload, asked);
    if (!done) return true;
    this.#asked.delete(cookie);
    if (!failed && asked.type === READ && asked.told !== asked.bytes) {
      throw new Wrong(`a READ of ${asked.bytes} bytes got ${asked.told}`);
    }
    return true;
  }

  /** Whether it tells an error. */
  #payload(type: number, payload: Buffer, asked: Asked): boolean {
    if (type === 0x8001) {
      if (!ERRNOS.has(payload.readUInt32BE(0))) throw new Wrong(`error ${payload.readUInt32BE(0)}`);
      if (payload.readUInt16BE(4) !== payload.length - 6) throw new Wrong("an error text of another length");
      return true;
    }
    if (type === 1 || type === 2) {
      if (asked.type !== READ) throw new Wrong("data for what is no READ");
      asked.told += type === 1 ? payload.length - 8 : payload.readUInt32BE(8);
    } else if (type === 5 || type === 6) {
      if (asked.type !== BLOCK_STATUS) throw new Wrong("a status for what is no BLOCK_STATUS");
    } else if (type !== 0) throw new Wrong(`a chunk of type ${type}`);
    else if (asked.type === WRITE && payload.length > 0) throw new Wrong("a NONE chunk with a payload");
    return false;
  }
}
