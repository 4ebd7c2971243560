import { expect, it } from "vitest";
import { BlockError } from "../base/errors.ts";
import { connectAttributes, NbdNetlink } from "./nbd-netlink.ts";
import { encodeRequest, type Message, nestedAttribute, u32Attribute } from "./netlink-message.ts";
import { type NetlinkCalls, openNetlink, type Question } from "./netlink-socket.ts";

const bytes = (text: string) => Buffer.from(text.replace(/\s+|#.*$/gm, ""), "hex");

/** The kernel as a function; nbd is family 0x1d. */
function netlink(answer: (question: Question) => Buffer[]) {
  const asked: Buffer[] = [];
  const calls: NetlinkCalls = {
    ask(question) {
      if (question.type === 0x10) return [message(bytes("01020000 0600 0100 1d000000"))];
      asked.push(encodeRequest({ ...question, sequence: 7 }));
      return answer(question).map(message);
    },
    close() {},
  };
  return { nbd: NbdNetlink.find(calls)!, asked };
}

const message = (payload: Buffer): Message => ({ type: 0x1d, sequence: 7, payload });

it("connects with the attributes of linux/nbd-netlink.h", () => {
  const { nbd, asked } = netlink(() => [bytes("01010000 0800 0100 05000000")]);
  const index = nbd.connect({
    size: 2 ** 32,
    blockSize: 512,
    serverFlags: 0x12d,
    descriptors: [20, 21],
    timeoutSeconds: 30,
    deadSeconds: 600,
    backend: "nbd://a",
  });
  expect(index).toBe(5);
  expect(asked).toEqual([
    bytes(`
      78000000 1d00 0500 07000000 00000000  # 120 bytes, family, NLM_F_REQUEST | NLM_F_ACK
      01 01 0000                            # NBD_CMD_CONNECT, NBD_GENL_VERSION
      0c00 0200 00000000 01000000           # NBD_ATTR_SIZE_BYTES
      0c00 0300 00020000 00000000           # NBD_ATTR_BLOCK_SIZE_BYTES
      0c00 0500 2d010000 00000000           # NBD_ATTR_SERVER_FLAGS
      1c00 0780                             # NBD_ATTR_SOCKETS, nested
        0c00 0180 0800 0100 14000000        # NBD_SOCK_ITEM with NBD_SOCK_FD
        0c00 0180 0800 0100 15000000
      0c00 0400 1e000000 00000000           # NBD_ATTR_TIMEOUT
      0c00 0800 58020000 00000000           # NBD_ATTR_DEAD_CONN_TIMEOUT
      0c00 0a00 6e62643a2f2f6100            # NBD_ATTR_BACKEND_IDENTIFIER
    `),
  ]);
});

it("names a device only when the user does", () => {
  const plan = { size: 512, blockSize: 512, serverFlags: 1, descriptors: [3] };
  const index = u32Attribute(1, 3);
  expect(connectAttributes({ ...plan, index: 3 })[0]).toEqual(index);
  expect(connectAttributes(plan).some((one) => one.equals(index))).toBe(false);
});

it("disconnects and lists devices", () => {
  const item = (index: number, connected: number) =>
    nestedAttribute(1, [u32Attribute(1, index), bytes(`0500 0200 0${connected}000000`)]);
  const list = Buffer.concat([bytes("05010000"), nestedAttribute(9, [item(0, 1), item(1, 0)])]);
  const { nbd, asked } = netlink(({ command }) => (command === 5 ? [list] : []));
  nbd.disconnect(4);
  expect(nbd.status()).toEqual([
    { index: 0, connected: true },
    { index: 1, connected: false },
  ]);
  expect(asked).toEqual([
    bytes("1c000000 1d00 0500 07000000 00000000 02 01 0000 0800 0100 04000000"),
    bytes("14000000 1d00 0500 07000000 00000000 05 01 0000"),
  ]);
});

it("tells a kernel without nbd from one that refuses", () => {
  const refusing = (code: "ENOENT" | "EPERM"): NetlinkCalls => ({
    ask() {
      throw new BlockError(code, "no");
    },
    close() {},
  });
  expect(NbdNetlink.find(refusing("ENOENT"))).toBe(undefined);
  expect(() => NbdNetlink.find(refusing("EPERM"))).toThrow("no");
});

const real = openNetlink();

it.skipIf(typeof real === "string")("speaks to this kernel", () => {
  const socket = real as NetlinkCalls;
  const ask = (name: string) =>
    socket.ask({ type: 0x10, command: 3, version: 1, attributes: [family(name)] }, "cannot ask");
  const [reply] = ask("nlctrl");
  // CTRL_CMD_NEWFAMILY
  expect(reply!.payload[0]).toBe(1);
  expect(() => ask("no-such-family")).toThrow("cannot ask: No such file or directory");
  expect(ask("nlctrl")).toHaveLength(1);
  socket.close();
  expect(() => ask("nlctrl")).toThrow(/closed/);
});

function family(name: string): Buffer {
  const value = Buffer.from(`${name}\0`);
  const attribute = Buffer.alloc(4 + Math.ceil(value.length / 4) * 4);
  attribute.writeUInt16LE(4 + value.length, 0);
  attribute.writeUInt16LE(2, 2);
  value.copy(attribute, 4);
  return attribute;
}

it("goes without foreign calls where it is told to", () => {
  const before = process.env["STRATA_NO_FFI"];
  process.env["STRATA_NO_FFI"] = "1";
  try {
    expect(openNetlink()).toBe("STRATA_NO_FFI=1 is set");
  } finally {
    if (before === undefined) delete process.env["STRATA_NO_FFI"];
    else process.env["STRATA_NO_FFI"] = before;
  }
});
