import { expect, it } from "vitest";
import {
  attributesOf,
  decodeAttributes,
  decodeMessages,
  encodeRequest,
  errnoOfMessage,
  nestedAttribute,
  stringAttribute,
  u32Attribute,
  u64Attribute,
} from "./netlink-message.ts";

/** Bytes as they stand in a dump. */
const bytes = (text: string) => Buffer.from(text.replace(/\s+|#.*$/gm, ""), "hex");

it("encodes a request as linux/netlink.h and linux/genetlink.h lay it out", () => {
  const request = encodeRequest({
    type: 0x10,
    command: 3,
    version: 1,
    sequence: 0x01020304,
    attributes: [stringAttribute(2, "nbd")],
  });
  expect(request).toEqual(
    bytes(`
      1c000000   # nlmsg_len: 28
      1000       # nlmsg_type: GENL_ID_CTRL
      0500       # nlmsg_flags: NLM_F_REQUEST | NLM_F_ACK
      04030201   # nlmsg_seq
      00000000   # nlmsg_pid: the kernel gives one
      03 01 0000 # CTRL_CMD_GETFAMILY, version, reserved
      0800 0200  # nla_len with its header and without padding, CTRL_ATTR_FAMILY_NAME
      6e626400   # "nbd"
    `),
  );
});

it("pads attributes to four bytes and says their length without that", () => {
  expect(stringAttribute(10, "abcd")).toEqual(bytes("0900 0a00 61626364 00 000000"));
  expect(u32Attribute(1, 5)).toEqual(bytes("0800 0100 05000000"));
  expect(u64Attribute(2, 2 ** 40 + 1)).toEqual(bytes("0c00 0200 01000000 00010000"));
  expect(nestedAttribute(7, [u32Attribute(1, 9)])).toEqual(bytes("0c00 0780 0800 0100 09000000"));
});

it("decodes what one receive call brought", () => {
  const reply = bytes("1c000000 1d00 0000 07000000 00000000 01010000 0800 0100 02000000");
  const acknowledged = bytes(
    "24000000 0200 0001 07000000 00000000 00000000 1c0000001d000500 0700000000000000",
  );
  const [first, second] = decodeMessages(Buffer.concat([reply, acknowledged]));
  expect(first).toMatchObject({ type: 0x1d, sequence: 7 });
  expect(attributesOf(first!)).toEqual(new Map([[1, bytes("02000000")]]));
  expect(second).toMatchObject({ type: 2, sequence: 7 });
  expect(errnoOfMessage(second!)).toBe(0);
  const refused = bytes("24000000 0200 0000 08000000 00000000 f0ffffff 1c0000001d000500 0700000000000000");
  expect(errnoOfMessage(decodeMessages(refused)[0]!)).toBe(16);
});

it("takes the flags off an attribute's type", () => {
  expect(decodeAttributes(bytes("0800 0180 05000000 0500 0240 07000000"))).toEqual([
    [1, bytes("05000000")],
    [2, bytes("07")],
  ]);
});

it("believes no length", () => {
  expect(() => decodeMessages(bytes("20000000 1000 0000 00000000 00000000"))).toThrow(/cut off/);
  expect(() => decodeMessages(bytes("0f000000 1000 0000 00000000 00000000"))).toThrow(/cut off/);
  expect(() => decodeMessages(bytes("1000"))).toThrow(/cut off/);
  expect(decodeAttributes(bytes("0000 0100 05000000"))).toEqual([]);
  expect(decodeAttributes(bytes("0900 0100 05000000"))).toEqual([]);
  expect(decodeAttributes(bytes("0800 01"))).toEqual([]);
});
