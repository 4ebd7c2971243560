// The client's side of the negotiation: asks for as much as it wants and takes what the server has.

import { readU64, writeU64 } from "../src/base/bytes.ts";
import { BlockError } from "../src/base/errors.ts";
import { KiB, MiB } from "../src/base/units.ts";
import type { ClientWire } from "./client-wire.ts";
import {
  encodeOption,
  encodeString32,
  HandshakeFlags,
  Info,
  NBD_MAGIC,
  OPTION_MAGIC,
  OPTION_REPLY_BYTES,
  OPTION_REPLY_MAGIC,
  Opt,
  PAYLOAD_BYTES_MAX,
  Rep,
  Style,
} from "./protocol.ts";

/** Data of one option reply that a client takes. */
const REPLY_BYTES_MAX = 64 * KiB;
/** Replies to one option. */
const REPLIES_MAX = 100_000;

/** What a server says of an export. */
export interface ExportDetails {
  readonly size: number;
  /** Transmission flags. */
  readonly flags: number;
  readonly name: string | undefined;
  readonly description: string | undefined;
  readonly blockSize: { readonly minimum: number; readonly preferred: number; readonly maximum: number };
}

interface OptionReply {
  readonly type: number;
  readonly data: Buffer;
}

/** Reads the greeting and answers it. @throws BlockError EINVAL when the server is none of fixed newstyle. */
export async function greet(wire: ClientWire): Promise<void> {
  const greeting = await wire.read(18);
  const magics = [...NBD_MAGIC, ...OPTION_MAGIC];
  if (magics.some((half, index) => greeting.readUInt32BE(index * 4) !== half)) {
    throw new BlockError("EINVAL", `${wire.where} does not speak NBD newstyle`);
  }
  const flags = greeting.readUInt16BE(16);
  if ((flags & HandshakeFlags.FIXED_NEWSTYLE) === 0) {
    throw new BlockError("EINVAL", `the NBD server at ${wire.where} is too old: no fixed newstyle`);
  }
  const answer = Buffer.alloc(4);
  answer.writeUInt32BE(flags & (HandshakeFlags.FIXED_NEWSTYLE | HandshakeFlags.NO_ZEROES));
  wire.send(answer);
}

/** Agrees on the best style up to `wanted` that the server has. */
export async function agreeOnStyle(wire: ClientWire, wanted: Style): Promise<Style> {
  if (wanted >= Style.EXTENDED && (await accepted(wire, Opt.EXTENDED_HEADERS))) return Style.EXTENDED;
  if (wanted >= Style.STRUCTURED && (await accepted(wire, Opt.STRUCTURED_REPLY))) return Style.STRUCTURED;
  return Style.SIMPLE;
}

/** Selects meta contexts; the result maps those that the server has to their ids. */
export async function selectMetaContexts(
  wire: ClientWire,
  exportName: string,
  contexts: readonly string[],
): Promise<Map<string, number>> {
  const ids = new Map<string, number>();
  const replies = await ask(wire, Opt.SET_META_CONTEXT, metaQuery(exportName, contexts));
  for (const reply of replies) {
    if (reply.type === Rep.META_CONTEXT) ids.set(reply.data.toString("utf8", 4), reply.data.readUInt32BE(0));
  }
  return failure(replies) === undefined ? ids : new Map();
}

/** Meta contexts that the export has and that match the queries; without queries all of them. */
export async function listMetaContexts(
  wire: ClientWire,
  exportName: string,
  queries: readonly string[] = [],
): Promise<string[]> {
  const replies = await ask(wire, Opt.LIST_META_CONTEXT, metaQuery(exportName, queries));
  throwFailure(wire, exportName, replies);
  return replies
    .filter((reply) => reply.type === Rep.META_CONTEXT)
    .map((reply) => reply.data.toString("utf8", 4));
}

/** INFO or GO. @throws BlockError EINVAL with the server's words when it refuses. */
export async function exportDetails(
  wire: ClientWire,
  option: typeof Opt.INFO | typeof Opt.GO,
  exportName: string,
): Promise<ExportDetails> {
  const asked = Buffer.alloc(8);
  [3, Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE].forEach((value, index) => {
    asked.writeUInt16BE(value, index * 2);
  });
  const replies = await ask(wire, option, Buffer.concat([encodeString32(exportName), asked]));
  throwFailure(wire, exportName, replies);
  return decodeDetails(wire, replies);
}

/** EXPORT_NAME, for servers without GO. */
export async function enterByName(wire: ClientWire, exportName: string): Promise<ExportDetails> {
  wire.send(encodeOption(Opt.EXPORT_NAME, Buffer.from(exportName)));
  const reply = await wire.read(10);
  return {
    size: readU64(reply, 0),
    flags: reply.readUInt16BE(8),
    name: undefined,
    description: undefined,
    blockSize: defaultBlockSize,
  };
}

/** The exports that the server tells of. */
export async function listExports(wire: ClientWire): Promise<{ name: string; description: string }[]> {
  const replies = await ask(wire, Opt.LIST);
  throwFailure(wire, "", replies);
  return replies
    .filter((reply) => reply.type === Rep.SERVER)
    .map(({ data }) => {
      const nameEnd = 4 + data.readUInt32BE(0);
      return { name: data.toString("utf8", 4, nameEnd), description: data.toString("utf8", nameEnd) };
    });
}

/** Ends a negotiation that wants no export. */
export async function abort(wire: ClientWire): Promise<void> {
  wire.send(encodeOption(Opt.ABORT));
  await wire.end();
}

const defaultBlockSize = { minimum: 1, preferred: 4 * KiB, maximum: 32 * MiB };

function decodeDetails(wire: ClientWire, replies: readonly OptionReply[]): ExportDetails {
  let size: number | undefined;
  let flags = 0;
  let name: string | undefined;
  let description: string | undefined;
  let blockSize: ExportDetails["blockSize"] = defaultBlockSize;
  for (const { type, data } of replies) {
    if (type !== Rep.INFO || data.length < 2) continue;
    const info = data.readUInt16BE(0);
    if (info === Info.EXPORT) {
      size = readU64(data, 2);
      flags = data.readUInt16BE(10);
    } else if (info === Info.NAME) name = data.toString("utf8", 2);
    else if (info === Info.DESCRIPTION) description = data.toString("utf8", 2);
    else if (info === Info.BLOCK_SIZE) {
      const maximum = Math.min(data.readUInt32BE(10), PAYLOAD_BYTES_MAX);
      blockSize = { minimum: data.readUInt32BE(2), preferred: data.readUInt32BE(6), maximum };
    }
  }
  if (size === undefined) throw new BlockError("EINVAL", `the NBD server at ${wire.where} told no size`);
  return { size, flags, name, description, blockSize };
}

function metaQuery(exportName: string, queries: readonly string[]): Buffer {
  const count = Buffer.alloc(4);
  count.writeUInt32BE(queries.length);
  return Buffer.concat([encodeString32(exportName), count, ...queries.map(encodeString32)]);
}

async function accepted(wire: ClientWire, option: number): Promise<boolean> {
  return failure(await ask(wire, option)) === undefined;
}

/** Sends an option and reads its replies up to the one that ends them: ACK or an error. */
async function ask(wire: ClientWire, option: number, data?: Buffer): Promise<OptionReply[]> {
  wire.send(encodeOption(option, data));
  const replies: OptionReply[] = [];
  while (replies.length < REPLIES_MAX) {
    const header = await wire.read(OPTION_REPLY_BYTES);
    const magicOk =
      header.readUInt32BE(0) === OPTION_REPLY_MAGIC[0] && header.readUInt32BE(4) === OPTION_REPLY_MAGIC[1];
    const bytes = header.readUInt32BE(16);
    if (!magicOk || header.readUInt32BE(8) !== option || bytes > REPLY_BYTES_MAX) break;
    const type = header.readUInt32BE(12);
    replies.push({ type, data: await wire.read(bytes) });
    if (type === Rep.ACK || type >= Rep.ERR_UNSUP) return replies;
  }
  throw new BlockError("EINVAL", `the NBD server at ${wire.where} answered option ${option} with nonsense`);
}

function failure(replies: readonly OptionReply[]): OptionReply | undefined {
  const last = replies.at(-1);
  return last !== undefined && last.type >= Rep.ERR_UNSUP ? last : undefined;
}

/** An option that the server refused. */
export class OptionRefused extends BlockError {
  /** NBD_REP_ERR_... */
  readonly reply: number;

  constructor(reply: number, message: string) {
    super("EINVAL", message);
    this.reply = reply;
  }
}

function throwFailure(wire: ClientWire, exportName: string, replies: readonly OptionReply[]): void {
  const refusal = failure(replies);
  if (refusal === undefined) return;
  const words = refusal.data.toString("utf8") || `error ${refusal.type - (Rep.ERR_UNSUP - 1)}`;
  throw new OptionRefused(refusal.type, `${wire.where} refused NBD export '${exportName}': ${words}`);
}

/** An 8-byte big-endian number. */
export function u64Bytes(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  writeU64(bytes, value, 0);
  return bytes;
}
