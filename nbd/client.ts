// A whole NBD client: every command, requests in flight side by side, in any of the three reply styles.

import { assert } from "../src/base/assert.ts";
import { readU64OrInfinity } from "../src/base/bytes.ts";
import { BlockError, type ErrorCode, NbdErrno } from "../src/base/errors.ts";
import {
  abort,
  agreeOnStyle,
  type ExportDetails,
  enterByName,
  exportDetails,
  greet,
  listExports,
  listMetaContexts,
  OptionRefused,
  selectMetaContexts,
  u64Bytes,
} from "./client-handshake.ts";
import { ClientWire, type ReplyConsumer } from "./client-wire.ts";
import type { ListenAddress } from "./listen.ts";
import { Chunk, Cmd, CmdFlags, encodeRequest, Opt, Rep, requestBytes, Style } from "./protocol.ts";
import { type ReplyEvents, ReplyParser, type ReplySlot } from "./reply-parser.ts";
import { type NbdTarget, parseNbdUri } from "./uri.ts";

export interface ClientOptions {
  /** The best style to ask for; the server may have less. Default: extended. */
  readonly style?: Style;
  /** Meta contexts to select, such as base:allocation. Default: none. */
  readonly contexts?: readonly string[];
}

export interface StatusExtent {
  readonly bytes: number;
  readonly flags: number;
}

/** Largest length of a request without payload in compact headers, at any alignment. */
const COMPACT_LENGTH_MAX = 2 ** 32 - 2 ** 16;

interface Slot extends ReplySlot {
  readonly isRead: boolean;
  readonly resolve: (extents: Map<number, StatusExtent[]> | undefined) => void;
  readonly reject: (error: BlockError) => void;
  extents: Map<number, StatusExtent[]> | undefined;
  error: BlockError | undefined;
}

export class NbdClient implements ReplyConsumer, ReplyEvents<Slot> {
  readonly details: ExportDetails;
  readonly style: Style;
  /** Selected meta contexts and their ids. */
  readonly contexts: ReadonlyMap<string, number>;
  readonly #wire: ClientWire;
  readonly #parser: ReplyParser<Slot>;
  readonly #slots = new Map<number, Slot>();
  #cookie = 1;
  #lost: BlockError | undefined;

  private constructor(
    wire: ClientWire,
    agreed: { details: ExportDetails; style: Style; contexts: ReadonlyMap<string, number> },
  ) {
    this.details = agreed.details;
    this.style = agreed.style;
    this.contexts = agreed.contexts;
    this.#wire = wire;
    this.#parser = new ReplyParser<Slot>(agreed.style, this);
    wire.handOver(this);
  }

  /**
   * Connects and enters an export.
   * @throws BlockError EIO when nobody answers, EINVAL when the server refuses or is no NBD server.
   */
  static async connect(target: NbdTarget | string, options: ClientOptions = {}): Promise<NbdClient> {
    const { address, exportName } = typeof target === "string" ? parseNbdUri(target) : target;
    return negotiate(address, async (wire) => {
      const style = await agreeOnStyle(wire, options.style ?? Style.EXTENDED);
      const wanted = style === Style.SIMPLE ? [] : (options.contexts ?? []);
      const contexts = wanted.length > 0 ? await selectMetaContexts(wire, exportName, wanted) : new Map();
      const details = await enter(wire, exportName, style);
      return new NbdClient(wire, { details, style, contexts });
    });
  }

  get size(): number {
    return this.details.size;
  }

  /** Requests without an answer. */
  get inFlight(): number {
    return this.#slots.size;
  }

  /** Reads [offset, offset+bytes) into a new buffer. @throws BlockError with the server's error. */
  async read(offset: number, bytes: number, options: { df?: boolean } = {}): Promise<Buffer> {
    const buffer = Buffer.allocUnsafe(bytes);
    await this.readInto({ offset, bytes, buffer, at: 0 }, options);
    return buffer;
  }

  /**
   * Reads into a buffer that is borrowed until the promise settles. Above the maximum payload: several
   * requests.
   */
  async readInto(
    to: { offset: number; bytes: number; buffer: Buffer; at: number },
    options: { df?: boolean } = {},
  ): Promise<void> {
    const flags = options.df ? CmdFlags.DF : 0;
    await this.#inPieces(to.offset, to.bytes, this.details.blockSize.maximum, (offset, bytes) => {
      const at = to.at + (offset - to.offset);
      return this.#request(Cmd.READ, flags, offset, bytes, { buffer: to.buffer, at });
    });
  }

  /** Writes `data`, borrowed until the promise settles. Above the maximum payload: several requests. */
  async write(offset: number, data: Buffer, options: { fua?: boolean } = {}): Promise<void> {
    const flags =
      (options.fua ? CmdFlags.FUA : 0) | (this.style === Style.EXTENDED ? CmdFlags.PAYLOAD_LEN : 0);
    await this.#inPieces(offset, data.length, this.details.blockSize.maximum, (from, bytes) => {
      const payload = data.subarray(from - offset, from - offset + bytes);
      return this.#request(Cmd.WRITE, flags, from, bytes, { payload });
    });
  }

  async writeZeroes(
    offset: number,
    bytes: number,
    options: { fua?: boolean; noHole?: boolean; fastZero?: boolean } = {},
  ): Promise<void> {
    const flags =
      (options.fua ? CmdFlags.FUA : 0) |
      (options.noHole ? CmdFlags.NO_HOLE : 0) |
      (options.fastZero ? CmdFlags.FAST_ZERO : 0);
    await this.#ranged(Cmd.WRITE_ZEROES, flags, offset, bytes);
  }

  async trim(offset: number, bytes: number, options: { fua?: boolean } = {}): Promise<void> {
    await this.#ranged(Cmd.TRIM, options.fua ? CmdFlags.FUA : 0, offset, bytes);
  }

  async cache(offset: number, bytes: number): Promise<void> {
    await this.#ranged(Cmd.CACHE, 0, offset, bytes);
  }

  async flush(): Promise<void> {
    await this.#request(Cmd.FLUSH, 0, 0, 0, {});
  }

  /**
   * Extents from `offset` on, by context; the server may stop early. `contexts` asks for some of the selected
   * ones and needs extended headers.
   */
  async blockStatus(
    offset: number,
    bytes: number,
    options: { reqOne?: boolean; contexts?: readonly string[] } = {},
  ): Promise<Map<string, StatusExtent[]>> {
    const flags = options.reqOne ? CmdFlags.REQ_ONE : 0;
    const length = Math.min(bytes, this.#lengthMax());
    const byId =
      options.contexts === undefined
        ? await this.#request(Cmd.BLOCK_STATUS, flags, offset, length, {})
        : await this.#filteredStatus(flags, offset, length, options.contexts);
    const result = new Map<string, StatusExtent[]>();
    for (const [name, id] of this.contexts) {
      const extents = byId?.get(id);
      if (extents !== undefined) result.set(name, extents);
    }
    return result;
  }

  /**
   * Sends any request, also one that is wrong, and waits for its reply: for tests and tools.
   * `bytes` is the length field; `buffer` receives a READ's data.
   */
  request(
    type: number,
    fields: { flags?: number; offset?: number; bytes?: number; payload?: Buffer; buffer?: Buffer },
  ): Promise<Map<number, StatusExtent[]> | undefined> {
    const { flags = 0, offset = 0, bytes = 0, payload, buffer } = fields;
    return this.#request(type, flags, offset, bytes, { payload, buffer, at: 0 });
  }

  /** Says goodbye after all requests made so far; done when the server has closed. */
  async disconnect(): Promise<void> {
    if (this.#lost === undefined) this.#send(Cmd.DISC, 0, 0, 0, 0, undefined);
    await this.#wire.end();
  }

  /** Closes at once; requests without an answer fail. */
  destroy(): void {
    this.#wire.destroy();
  }

  target(): Buffer | undefined {
    return this.#parser.target();
  }

  filled(bytes: number): void {
    this.#parser.filled(bytes);
  }

  consume(buffer: Buffer, at: number, end: number): void {
    if (this.#lost !== undefined) return;
    try {
      this.#parser.consume(buffer, at, end);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      this.lost(error);
      this.#wire.destroy();
    }
  }

  lost(error: BlockError): void {
    if (this.#lost !== undefined) return;
    this.#lost = error;
    const slots = [...this.#slots.values()];
    this.#slots.clear();
    for (const slot of slots) slot.reject(error);
  }

  slot(cookie: number): Slot | undefined {
    return this.#slots.get(cookie);
  }

  status(slot: Slot, chunk: number, data: Buffer): void {
    const extended = chunk === Chunk.BLOCK_STATUS_EXT;
    const extents: StatusExtent[] = [];
    const step = extended ? 16 : 8;
    for (let at = extended ? 8 : 4; at + step <= data.length; at += step) {
      extents.push(
        extended
          ? { bytes: readU64OrInfinity(data, at), flags: readU64OrInfinity(data, at + 8) }
          : { bytes: data.readUInt32BE(at), flags: data.readUInt32BE(at + 4) },
      );
    }
    slot.extents ??= new Map();
    slot.extents.set(data.readUInt32BE(0), extents);
  }

  error(slot: Slot, errno: number, message: string): void {
    const code = codeOf(errno);
    slot.error ??= new BlockError(code, message || `the NBD server answered ${code} (${errno})`);
  }

  done(slot: Slot, cookie: number): void {
    this.#slots.delete(cookie);
    if (slot.error === undefined && slot.isRead && slot.filledBytes < slot.bytes) {
      slot.error = new BlockError("EIO", "the NBD server left out a part of the data");
    }
    if (slot.error !== undefined) slot.reject(slot.error);
    else slot.resolve(slot.extents);
  }

  #ranged(type: number, flags: number, offset: number, bytes: number): Promise<void> {
    return this.#inPieces(offset, bytes, this.#lengthMax(), (from, length) =>
      this.#request(type, flags, from, length, {}),
    );
  }

  #lengthMax(): number {
    return this.style === Style.EXTENDED ? Number.MAX_SAFE_INTEGER : COMPACT_LENGTH_MAX;
  }

  async #inPieces(
    offset: number,
    bytes: number,
    bytesMax: number,
    operation: (offset: number, bytes: number) => Promise<unknown>,
  ): Promise<void> {
    for (let done = 0; ; done += bytesMax) {
      const piece = Math.min(bytesMax, bytes - done);
      await operation(offset + done, piece);
      if (done + piece >= bytes) return;
    }
  }

  #filteredStatus(
    flags: number,
    offset: number,
    bytes: number,
    contexts: readonly string[],
  ): Promise<Map<number, StatusExtent[]> | undefined> {
    assert(this.style === Style.EXTENDED, "filtering block status needs extended headers");
    const payload = Buffer.alloc(8 + 4 * contexts.length);
    u64Bytes(bytes).copy(payload);
    contexts.forEach((context, index) => {
      const id = this.contexts.get(context);
      assert(id !== undefined, `meta context ${context} was not selected`);
      payload.writeUInt32BE(id, 8 + 4 * index);
    });
    return this.#request(Cmd.BLOCK_STATUS, flags | CmdFlags.PAYLOAD_LEN, offset, payload.length, { payload });
  }

  #request(
    type: number,
    flags: number,
    offset: number,
    bytes: number,
    data: { buffer?: Buffer | undefined; at?: number; payload?: Buffer | undefined },
  ): Promise<Map<number, StatusExtent[]> | undefined> {
    return new Promise((resolve, reject) => {
      if (this.#lost !== undefined) {
        reject(this.#lost);
        return;
      }
      const cookie = this.#cookie++;
      this.#slots.set(cookie, {
        isRead: type === Cmd.READ,
        buffer: data.buffer,
        at: data.at ?? 0,
        offset,
        bytes,
        filledBytes: 0,
        resolve,
        reject,
        extents: undefined,
        error: undefined,
      });
      this.#send(type, flags, cookie, offset, bytes, data.payload);
    });
  }

  #send(
    type: number,
    flags: number,
    cookie: number,
    offset: number,
    bytes: number,
    payload: Buffer | undefined,
  ): void {
    const header = Buffer.allocUnsafe(requestBytes(this.style));
    encodeRequest(header, 0, this.style, { type, flags, cookie, offset, bytes });
    if (payload === undefined) this.#wire.send(header);
    else this.#wire.send(header, payload);
  }
}

/** The exports of a server. */
export function exportsOf(address: ListenAddress): Promise<{ name: string; description: string }[]> {
  return look(address, listExports);
}

/** What a server says of one export, without entering it. */
export function detailsOf({ address, exportName }: NbdTarget): Promise<ExportDetails> {
  return look(address, (wire) => exportDetails(wire, Opt.INFO, exportName));
}

/** The meta contexts of one export; `queries` as in the protocol, none for all. */
export function contextsOf(
  { address, exportName }: NbdTarget,
  queries: readonly string[] = [],
): Promise<string[]> {
  return look(address, async (wire) => {
    await agreeOnStyle(wire, Style.STRUCTURED);
    return listMetaContexts(wire, exportName, queries);
  });
}

function look<T>(address: ListenAddress, question: (wire: ClientWire) => Promise<T>): Promise<T> {
  return negotiate(address, async (wire) => {
    const answer = await question(wire);
    await abort(wire);
    return answer;
  });
}

export async function negotiate<T>(
  address: ListenAddress,
  talk: (wire: ClientWire) => Promise<T>,
): Promise<T> {
  const wire = await ClientWire.connect(address);
  try {
    await greet(wire);
    return await talk(wire);
  } catch (error) {
    wire.destroy();
    throw error;
  }
}

export async function enter(wire: ClientWire, exportName: string, style: Style): Promise<ExportDetails> {
  try {
    return await exportDetails(wire, Opt.GO, exportName);
  } catch (error) {
    const old = error instanceof OptionRefused && error.reply === Rep.ERR_UNSUP;
    if (!old || style === Style.EXTENDED) throw error;
    return enterByName(wire, exportName);
  }
}

function codeOf(errno: number): ErrorCode {
  for (const [code, value] of Object.entries(NbdErrno)) if (value === errno) return code as ErrorCode;
  return "EIO";
}
