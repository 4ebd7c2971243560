// Messages of generic netlink, as bytes (linux/netlink.h, linux/genetlink.h). Numbers are in the order of the
// host, which is little-endian wherever koffi is used (load-koffi.ts).
//
//   nlmsghdr     0 length u32 | 4 type u16 | 6 flags u16 | 8 sequence u32 | 12 port u32
//   genlmsghdr  16 command u8 | 17 version u8 | 18 reserved u16
//   attribute    0 length u16 with these four bytes, without padding | 2 type u16 | 4 value, padded to 4
//   bytes NLMSG_ERROR 16 -errno i32 (0: done) | 20 the header of the request
//
// Decoding takes bytes of the kernel, but trusts no length in them: what does not fit ends the walk.

import { BlockError } from "../base/errors.ts";

const HEADER_BYTES = 16;
const GENERIC_HEADER_BYTES = 4;
const ATTRIBUTE_BYTES = 4;
const ALIGNMENT = 4;
const TWO_32 = 0x1_0000_0000;

/** nlmsghdr.type */
export const MessageType = { ERROR: 2, DONE: 3, GENERIC_CONTROL: 0x10 } as const;
const NLM_F_REQUEST = 1;
const NLM_F_ACK = 4;
const NLA_F_NESTED = 0x8000;
/** Without the bits that say how a value is stored. */
const NLA_TYPE_MASK = 0x3fff;

export interface GenericRequest {
  /** Of the family. */
  readonly type: number;
  readonly command: number;
  readonly version: number;
  readonly sequence: number;
  readonly attributes: readonly Buffer[];
}

/** A message of the kernel. */
export interface Message {
  readonly type: number;
  readonly sequence: number;
  /** What follows the nlmsghdr. */
  readonly payload: Buffer;
}

/** A request that asks for an acknowledgement. */
export function encodeRequest(request: GenericRequest): Buffer {
  const attributes = Buffer.concat(request.attributes);
  const bytes = Buffer.alloc(HEADER_BYTES + GENERIC_HEADER_BYTES + attributes.length);
  bytes.writeUInt32LE(bytes.length, 0);
  bytes.writeUInt16LE(request.type, 4);
  bytes.writeUInt16LE(NLM_F_REQUEST | NLM_F_ACK, 6);
  bytes.writeUInt32LE(request.sequence, 8);
  bytes.writeUInt8(request.command, 16);
  bytes.writeUInt8(request.version, 17);
  attributes.copy(bytes, HEADER_BYTES + GENERIC_HEADER_BYTES);
  return bytes;
}

/** One attribute with its padding. */
export function attribute(type: number, value: Buffer): Buffer {
  const bytes = Buffer.alloc(aligned(ATTRIBUTE_BYTES + value.length));
  bytes.writeUInt16LE(ATTRIBUTE_BYTES + value.length, 0);
  bytes.writeUInt16LE(type, 2);
  value.copy(bytes, ATTRIBUTE_BYTES);
  return bytes;
}

export function u32Attribute(type: number, value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value, 0);
  return attribute(type, bytes);
}

/** A number below 2**53 as 64 bits. */
export function u64Attribute(type: number, value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeUInt32LE(value % TWO_32, 0);
  bytes.writeUInt32LE(Math.floor(value / TWO_32), 4);
  return attribute(type, bytes);
}

/** Text with the zero byte that ends it. */
export function stringAttribute(type: number, text: string): Buffer {
  return attribute(type, Buffer.from(`${text}\0`));
}

/** Attributes in an attribute. */
export function nestedAttribute(type: number, attributes: readonly Buffer[]): Buffer {
  return attribute(type | NLA_F_NESTED, Buffer.concat(attributes));
}

/** The messages that one receive call brought. @throws BlockError EIO when one is cut off */
export function decodeMessages(bytes: Buffer): Message[] {
  const messages: Message[] = [];
  for (let at = 0; at < bytes.length; ) {
    const length = at + HEADER_BYTES <= bytes.length ? bytes.readUInt32LE(at) : 0;
    if (length < HEADER_BYTES || at + length > bytes.length) {
      throw new BlockError("EIO", "the kernel sent a netlink message that is cut off");
    }
    messages.push({
      type: bytes.readUInt16LE(at + 4),
      sequence: bytes.readUInt32LE(at + 8),
      payload: bytes.subarray(at + HEADER_BYTES, at + length),
    });
    at += aligned(length);
  }
  return messages;
}

/** The errno in an NLMSG_ERROR; 0 is an acknowledgement. */
export function errnoOfMessage(message: Message): number {
  return message.payload.length < 4 ? 0 : 0 - message.payload.readInt32LE(0);
}

/** Attributes of a generic message, by type; of several of one type the last. */
export function attributesOf(message: Message): Map<number, Buffer> {
  return new Map(decodeAttributes(message.payload.subarray(GENERIC_HEADER_BYTES)));
}

/** Attributes one after the other: type without flags, and value. */
export function decodeAttributes(bytes: Buffer): [type: number, value: Buffer][] {
  const found: [number, Buffer][] = [];
  for (let at = 0; at + ATTRIBUTE_BYTES <= bytes.length; ) {
    const length = bytes.readUInt16LE(at);
    if (length < ATTRIBUTE_BYTES || at + length > bytes.length) break;
    const type = bytes.readUInt16LE(at + 2) & NLA_TYPE_MASK;
    found.push([type, bytes.subarray(at + ATTRIBUTE_BYTES, at + length)]);
    at += aligned(length);
  }
  return found;
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / ALIGNMENT) * ALIGNMENT;
}
