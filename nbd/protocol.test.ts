import { describe, expect, it } from "vitest";
import {
  boundedUtf8,
  decodeReply,
  decodeRequest,
  encodeChunk,
  encodeRequest,
  encodeSimpleReply,
  ReplyHeader,
  RequestHeader,
  replyBytes,
  Style,
} from "./protocol.ts";
import {
  compact,
  concat,
  extended,
  extendedChunk,
  simpleReply,
  structuredChunk,
  u32,
} from "./testing/peer.ts";

function decoded(bytes: Buffer, style: Style): RequestHeader {
  const header = new RequestHeader();
  decodeRequest(bytes, 0, style, header);
  return header;
}

describe("request headers", () => {
  it("are decoded and encoded as the protocol lays them out", () => {
    const fields = { flags: 5, type: 6, cookie: 0x1234_5678_9abcn, offset: 0x0001_0000_0002n };
    const common = {
      magicOk: true,
      flags: 5,
      type: 6,
      cookieHigh: 0x1234,
      cookieLow: 0x56789abc,
      offset: 0x100000002,
    };
    expect(decoded(compact({ ...fields, length: 0xfffffffe }), Style.SIMPLE)).toMatchObject({
      ...common,
      bytes: 0xfffffffe,
    });
    expect(decoded(extended({ ...fields, length: 2n ** 52n }), Style.EXTENDED)).toMatchObject({
      ...common,
      bytes: 2 ** 52,
    });
    const bytes = Buffer.alloc(32);
    const request = { flags: 5, type: 6, cookie: 0x123456789abc, offset: 0x100000002, bytes: 77 };
    expect(encodeRequest(bytes, 0, Style.STRUCTURED, request)).toBe(28);
    expect(bytes.subarray(0, 28)).toEqual(compact({ ...fields, length: 77 }));
    expect(encodeRequest(bytes, 0, Style.EXTENDED, request)).toBe(32);
    expect(bytes).toEqual(extended({ ...fields, length: 77 }));
  });

  it("turn what no disk can have into Infinity, and know the other style's magic for wrong", () => {
    const huge = decoded(extended({ type: 0, offset: 2n ** 64n - 1n, length: 2n ** 53n }), Style.EXTENDED);
    expect([huge.offset, huge.bytes]).toEqual([Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY]);
    expect(decoded(concat(compact({ type: 0 }), u32(0)), Style.EXTENDED).magicOk).toBe(false);
    expect(decoded(extended({ type: 0 }), Style.STRUCTURED).magicOk).toBe(false);
  });
});

describe("reply headers", () => {
  const request = decoded(extended({ type: 0, cookie: 2n ** 64n - 2n, offset: 2n ** 63n }), Style.EXTENDED);

  it("echo cookie and offset bit for bit", () => {
    const bytes = Buffer.alloc(32);
    encodeSimpleReply(bytes, 0, 28, request);
    expect(bytes.subarray(0, 16)).toEqual(simpleReply(2n ** 64n - 2n, 28));
    const fields = { done: false, type: 0x8001, cookie: 2n ** 64n - 2n, offset: 2n ** 63n };
    expect(encodeChunk(bytes, 0, Style.STRUCTURED, request, 0x8001, false, 0)).toBe(20);
    expect(bytes.subarray(0, 20)).toEqual(structuredChunk(fields));
    expect(encodeChunk(bytes, 0, Style.EXTENDED, request, 0x8001, false, 0)).toBe(32);
    expect(bytes).toEqual(extendedChunk(fields));
  });

  it("are decoded again by the client's side, each style knowing its own magics only", () => {
    const header = new ReplyHeader();
    decodeReply(extendedChunk({ type: 6, cookie: 9, payload: Buffer.alloc(24) }), 0, header);
    expect(header).toMatchObject({ done: true, chunk: 6, cookie: 9, payloadBytes: 24, error: 0 });
    decodeReply(simpleReply(9, 5), 0, header);
    expect(header).toMatchObject({ done: true, cookie: 9, error: 5, payloadBytes: 0 });
    const magics = [0x67446698, 0x668e33ef, 0x6e8a278c, 0];
    const table = [Style.SIMPLE, Style.STRUCTURED, Style.EXTENDED].map((style) =>
      magics.map((m) => replyBytes(m, style)),
    );
    expect(table).toEqual([
      [16, undefined, undefined, undefined],
      [16, 20, undefined, undefined],
      [undefined, undefined, 32, undefined],
    ]);
  });
});

describe("strings", () => {
  it("are cut between characters and hold no NUL", () => {
    expect(boundedUtf8("a\0b", 10).toString()).toBe("a b");
    expect(boundedUtf8("héé", 4).toString()).toBe("hé");
    expect(boundedUtf8("\u{1f4be}\u{1f4be}", 7).toString()).toBe("\u{1f4be}");
    expect(boundedUtf8("x".repeat(5000)).length).toBe(4096);
    expect(boundedUtf8("\ud800", 9).toString()).toBe("\ufffd");
  });
});
