// Conversations after the handshake, built and compared byte by byte.

import { afterEach, describe, expect, it } from "vitest";
import { NbdErrno } from "../src/base/errors.ts";
import { MemoryBackend, type MemoryBackendOptions, noSpace, type Pace } from "./memory-backend.ts";
import {
  cleanUp,
  compact,
  concat,
  entered,
  extended,
  extendedChunk,
  type Peer,
  simpleReply,
  startServer,
  structuredChunk,
  u16,
  u32,
  u64,
} from "./test-peer.ts";

afterEach(cleanUp);

const [READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS] = [0, 1, 2, 3, 4, 5, 6, 7];
const [FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN] = [1, 2, 4, 8, 16, 32];
const [NONE, OFFSET_DATA, OFFSET_HOLE, STATUS, STATUS_EXT, ERROR] = [0, 1, 2, 5, 6, 0x8001];
const { EPERM, EIO, EINVAL, ENOSPC, ENOTSUP } = NbdErrno;
const SIZE = 1 << 20;
const BASE = "base:allocation";
const DEPTH = "qemu:allocation-depth";

/** Both ways in which a backend may finish. */
const paces: [string, Pace][] = [
  ["at once", (operation) => operation()],
  ["later", (operation) => Promise.resolve().then(operation)],
];

async function serve(options: Partial<MemoryBackendOptions> = {}) {
  const backend = new MemoryBackend({ size: SIZE, ...options });
  const { server, path } = await startServer();
  server.addExport({ name: "", backend });
  return { server, path, backend };
}

function filled(bytes: number, value = 0xaa): Buffer {
  return Buffer.alloc(bytes, value);
}

/** Sends a request and expects exactly this answer. */
async function exchange(peer: Peer, request: Buffer, answer: Buffer): Promise<void> {
  peer.send(request);
  expect((await peer.read(answer.length)).toString("hex")).toBe(answer.toString("hex"));
}

/** Reads one chunk. */
async function chunk(peer: Peer, isExtended = false) {
  const head = await peer.read(isExtended ? 32 : 20);
  const bytes = isExtended ? Number(head.readBigUInt64BE(24)) : head.readUInt32BE(16);
  const payload = await peer.read(bytes);
  return {
    done: head.readUInt16BE(4) === 1,
    type: head.readUInt16BE(6),
    cookie: head.readBigUInt64BE(8),
    payload,
  };
}

/** Expects an error chunk with this errno and a message that is UTF-8; returns the message. */
async function errorChunk(peer: Peer, errno: number, isExtended = false): Promise<string> {
  const { done, type, payload } = await chunk(peer, isExtended);
  expect({ done, type, errno: payload.readUInt32BE(0) }).toEqual({ done: true, type: ERROR, errno });
  expect(payload.readUInt16BE(4)).toBe(payload.length - 6);
  return new TextDecoder("utf-8", { fatal: true }).decode(payload.subarray(6));
}

describe.each(paces)("simple replies, backend finishes %s", (_, pace) => {
  it("writes and reads at any offset", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path);
    const data = filled(1001, 0x5c);
    const write = compact({ type: WRITE, cookie: 5, offset: 511, length: 1001, payload: data });
    await exchange(peer, write, simpleReply(5));
    await exchange(
      peer,
      compact({ type: READ, offset: 510, length: 3 }),
      simpleReply(1, 0, Buffer.from([0, 0x5c, 0x5c])),
    );
    expect(backend.bytes.subarray(511, 1512)).toEqual(data);
    expect(backend.bytes[1512]).toBe(0);
  });

  it("reads and writes the largest payload and refuses more", async () => {
    const { path } = await serve({ pace, size: 40 << 20 });
    const peer = await entered(path);
    const data = filled(32 << 20);
    peer.send(compact({ type: WRITE, offset: 3, length: data.length, payload: data }));
    expect(await peer.read(16)).toEqual(simpleReply(1));
    peer.send(compact({ type: READ, offset: 3, length: data.length }));
    expect((await peer.read(16 + data.length)).equals(simpleReply(1, 0, data))).toBe(true);
    await exchange(peer, compact({ type: READ, length: data.length + 1 }), simpleReply(1, EINVAL));
    await exchange(peer, compact({ type: READ, length: 0xffffffff }), simpleReply(1, EINVAL));
    peer.send(compact({ type: WRITE, cookie: 9, length: data.length + 1 }));
    expect(await peer.rest()).toEqual(simpleReply(9, EINVAL));
  });

  it("answers requests past the end: READ, TRIM, CACHE EINVAL; WRITE, WRITE_ZEROES ENOSPC", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path);
    const past = [
      [SIZE - 1, 2],
      [SIZE, 1],
      [SIZE + 1, 0],
      [2n ** 64n - 1n, 2],
      [2n ** 63n, 512],
      [2n ** 53n, 1],
    ] as const;
    for (const [offset, length] of past) {
      for (const type of [READ, TRIM, CACHE]) {
        await exchange(peer, compact({ type, offset, length }), simpleReply(1, EINVAL));
      }
      await exchange(peer, compact({ type: WRITE_ZEROES, offset, length }), simpleReply(1, ENOSPC));
      const payload = filled(length);
      await exchange(peer, compact({ type: WRITE, offset, length, payload }), simpleReply(1, ENOSPC));
    }
    expect(backend.calls).toEqual({});
  });

  it("serves what touches the end exactly, and length 0 anywhere inside", async () => {
    const { path } = await serve({ pace });
    const peer = await entered(path);
    await exchange(
      peer,
      compact({ type: READ, offset: SIZE - 1, length: 1 }),
      simpleReply(1, 0, filled(1, 0)),
    );
    for (const type of [READ, WRITE, TRIM, CACHE, WRITE_ZEROES]) {
      await exchange(peer, compact({ type, offset: SIZE, length: 0 }), simpleReply(1));
    }
  });

  it("answers unknown commands and misplaced flags EINVAL and goes on", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path);
    for (const type of [8, 9, 255, 65535])
      await exchange(peer, compact({ type, length: 512 }), simpleReply(1, EINVAL));
    const wrong: [number, number][] = [
      [READ, NO_HOLE],
      [READ, DF],
      [READ, 0x8000],
      [TRIM, NO_HOLE],
      [CACHE, DF],
      [FLUSH, REQ_ONE],
      [WRITE_ZEROES, REQ_ONE],
      [WRITE_ZEROES, 64],
      [READ, PAYLOAD_LEN],
      [CACHE, 64],
    ];
    for (const [type, flags] of wrong) {
      await exchange(peer, compact({ type, flags, length: 512 }), simpleReply(1, EINVAL));
    }
    // The payload of a refused WRITE is skipped, even where it looks like a request.
    const decoy = compact({ type: WRITE_ZEROES, offset: 0, length: 512, cookie: 666 });
    for (const flags of [NO_HOLE, PAYLOAD_LEN, 0x4000]) {
      await exchange(
        peer,
        compact({ type: WRITE, flags, length: 28, payload: decoy }),
        simpleReply(1, EINVAL),
      );
    }
    await exchange(peer, compact({ type: FLUSH }), simpleReply(1));
    expect(backend.calls).toEqual({ flush: 1 });
  });

  it("echoes cookies bit for bit, also equal ones in flight", async () => {
    const { path } = await serve({ pace });
    const peer = await entered(path);
    for (const cookie of [0n, 2n ** 64n - 1n, 2n ** 63n, 0x8000_0000n, 0x0102_0304_0506_0708n]) {
      await exchange(peer, compact({ type: FLUSH, cookie }), simpleReply(cookie));
    }
    const twins = compact({ type: FLUSH, cookie: 7 });
    await exchange(peer, concat(twins, twins), concat(simpleReply(7), simpleReply(7)));
  });

  it("passes FUA on WRITE, TRIM and WRITE_ZEROES and accepts it on every command", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path);
    await exchange(peer, compact({ type: WRITE, flags: FUA, length: 1, payload: filled(1) }), simpleReply(1));
    await exchange(peer, compact({ type: TRIM, flags: FUA, length: 1 }), simpleReply(1));
    await exchange(peer, compact({ type: WRITE_ZEROES, flags: FUA | NO_HOLE, length: 1 }), simpleReply(1));
    expect(backend.count("fua")).toBe(3);
    for (const type of [FLUSH, CACHE])
      await exchange(peer, compact({ type, flags: FUA, length: 0 }), simpleReply(1));
    await exchange(
      peer,
      compact({ type: READ, flags: FUA, offset: 9, length: 1 }),
      simpleReply(1, 0, filled(1, 0)),
    );
  });

  it("takes FAST_ZERO, NO_HOLE and lengths far above the maximum payload", async () => {
    const { path, backend } = await serve({ pace, size: 64 << 20 });
    const peer = await entered(path);
    backend.bytes.fill(1);
    const length = (64 << 20) - 2;
    await exchange(
      peer,
      compact({ type: WRITE_ZEROES, flags: FAST_ZERO, offset: 1, length }),
      simpleReply(1),
    );
    expect([backend.bytes[0], backend.bytes[1], backend.bytes[length], backend.bytes[length + 1]]).toEqual([
      1, 0, 0, 1,
    ]);
    await exchange(peer, compact({ type: TRIM, offset: 1, length }), simpleReply(1));
    await exchange(peer, compact({ type: CACHE, offset: 1, length }), simpleReply(1));
    expect(backend.calls).toEqual({ fastOnly: 1, writeZeroes: 1, trim: 1, cache: 1 });
  });

  it("answers writes to a read-only export EPERM", async () => {
    const { path, backend } = await serve({ pace, readOnly: true });
    const peer = await entered(path);
    await exchange(peer, compact({ type: WRITE, length: 4, payload: filled(4) }), simpleReply(1, EPERM));
    for (const type of [TRIM, WRITE_ZEROES])
      await exchange(peer, compact({ type, length: 4 }), simpleReply(1, EPERM));
    await exchange(peer, compact({ type: READ, length: 1 }), simpleReply(1, 0, filled(1, 0)));
    await exchange(peer, compact({ type: FLUSH }), simpleReply(1));
    expect(Object.keys(backend.calls)).toEqual(["read", "flush"]);
  });

  it("answers unaligned requests EINVAL where it advertised a minimum block", async () => {
    const { path } = await serve({ pace, blockMinimum: 512 });
    const peer = await entered(path);
    for (const [offset, length] of [
      [1, 512],
      [0, 511],
      [512, 1],
    ] as const) {
      await exchange(peer, compact({ type: READ, offset, length }), simpleReply(1, EINVAL));
      await exchange(peer, compact({ type: TRIM, offset, length }), simpleReply(1, EINVAL));
      const payload = filled(length);
      await exchange(peer, compact({ type: WRITE, offset, length, payload }), simpleReply(1, EINVAL));
    }
    await exchange(peer, compact({ type: TRIM, offset: 512, length: 512 }), simpleReply(1));
  });

  it("hands on the backend's errors and goes on", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path);
    const cases: [string, number, number, unknown, number][] = [
      ["write", WRITE, 0, noSpace(), ENOSPC],
      ["read", READ, 0, new Error("odd"), EIO],
      ["flush", FLUSH, 0, new Error("odd"), EIO],
      [
        "writeZeroes",
        WRITE_ZEROES,
        FAST_ZERO,
        Object.assign(new Error("slow"), { code: "ENOTSUP" }),
        ENOTSUP,
      ],
      ["trim", TRIM, 0, Object.assign(new Error("no"), { code: "ENOTSUP" }), EINVAL],
    ];
    for (const [operation, type, flags, error, errno] of cases) {
      backend.failNext = { operation, error };
      const payload = type === WRITE ? filled(8) : undefined;
      await exchange(
        peer,
        compact({ type, flags, length: type === FLUSH ? 0 : 8, payload }),
        simpleReply(1, errno),
      );
    }
    await exchange(peer, compact({ type: FLUSH }), simpleReply(1));
  });

  it("closes on a wrong request magic after the answers to what came before, and obeys nothing of it", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path);
    const bad = compact({ type: WRITE_ZEROES, length: 512 });
    bad[0] = 0x26;
    peer.send(compact({ type: FLUSH, cookie: 3 }), bad, compact({ type: FLUSH, cookie: 4 }));
    expect(await peer.rest()).toEqual(simpleReply(3));
    expect(backend.calls).toEqual({ flush: 1 });
  });

  it("carries out and answers everything before DISC, then closes", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path);
    const writes = Array.from({ length: 100 }, (_, i) =>
      compact({ type: WRITE, cookie: i, offset: i, length: 1, payload: filled(1, i + 1) }),
    );
    peer.send(...writes, compact({ type: DISC }), compact({ type: WRITE_ZEROES, length: 100 }));
    expect((await peer.rest()).length).toBe(1600);
    expect([...backend.bytes.subarray(0, 100)]).toEqual(Array.from({ length: 100 }, (_, i) => i + 1));
    expect(backend.count("writeZeroes")).toBe(0);
  });

  it("answers everything that a half-closed peer sent", async () => {
    const { path } = await serve({ pace });
    const peer = await entered(path);
    peer.send(compact({ type: FLUSH, cookie: 1 }), compact({ type: FLUSH, cookie: 2 }));
    peer.socket.end();
    expect(await peer.rest()).toEqual(concat(simpleReply(1), simpleReply(2)));
  });

  it("understands requests that come byte by byte", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path);
    const other = await entered(path);
    const bytes = concat(
      compact({ type: WRITE, cookie: 1, offset: 10, length: 5, payload: Buffer.from("hello") }),
      compact({ type: READ, cookie: 2, offset: 11, length: 3 }),
    );
    for (let i = 0; i < bytes.length; i++) {
      peer.send(bytes.subarray(i, i + 1));
      await exchange(other, compact({ type: FLUSH, cookie: i }), simpleReply(i));
    }
    // The two may overtake each other; the write ended long before the last byte of the read was sent.
    expect(await peer.read(16 + 19)).toEqual(concat(simpleReply(1), simpleReply(2, 0, Buffer.from("ell"))));
    expect(backend.bytes.toString("latin1", 10, 15)).toBe("hello");
  });

  it("takes 4000 requests sent ahead", async () => {
    const { path } = await serve({ pace });
    const peer = await entered(path);
    const requests = Array.from({ length: 4000 }, (_, i) =>
      compact({ type: READ, cookie: i, offset: i, length: 1 }),
    );
    peer.send(...requests);
    const seen = new Set<bigint>();
    for (let i = 0; i < 4000; i++) seen.add((await peer.read(17)).readBigUInt64BE(8));
    expect(seen.size).toBe(4000);
  });
});

describe.each(paces)("structured replies, backend finishes %s", (_, pace) => {
  it("answers READ with a data chunk, other commands simply", async () => {
    const { path, backend } = await serve({ pace });
    backend.bytes.write("structured", 100);
    const peer = await entered(path, 1);
    const answer = structuredChunk({
      type: OFFSET_DATA,
      cookie: 3,
      payload: concat(u64(100), Buffer.from("struct")),
    });
    await exchange(peer, compact({ type: READ, cookie: 3, offset: 100, length: 6 }), answer);
    await exchange(peer, compact({ type: READ, flags: DF, cookie: 3, offset: 100, length: 6 }), answer);
    await exchange(peer, compact({ type: FLUSH, cookie: 4 }), simpleReply(4));
    await exchange(
      peer,
      compact({ type: READ, cookie: 5, length: 0 }),
      structuredChunk({ type: NONE, cookie: 5 }),
    );
  });

  it("answers errors with chunks that carry a message for people", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path, 1);
    backend.failNext = { operation: "write", error: noSpace() };
    peer.send(compact({ type: WRITE, length: 4, payload: filled(4) }));
    expect(await errorChunk(peer, ENOSPC)).toContain("no space left on the host");
    peer.send(compact({ type: READ, offset: SIZE, length: 4 }));
    expect(await errorChunk(peer, EINVAL)).toMatch(/READ of 4 bytes at offset 1048576 ends past/);
    peer.send(compact({ type: BLOCK_STATUS, length: 4 }));
    await errorChunk(peer, EINVAL);
    backend.failNext = { operation: "read", error: new Error("é".repeat(5000)) };
    peer.send(compact({ type: READ, length: 4 }));
    expect((await errorChunk(peer, EIO)).length).toBeLessThan(600);
    backend.failNext = { operation: "read", error: new Error("half \ud800 a pair and \0") };
    peer.send(compact({ type: READ, flags: DF, length: 300_000 }));
    await errorChunk(peer, EIO);
  });

  it("covers a large READ exactly once with few chunks, holes as holes where that is cheap", async () => {
    const { path, backend } = await serve({ pace });
    const writer = await entered(path, 0);
    for (const [offset, length] of [
      [100_000, 50_000],
      [400_000, 1],
      [600_000, 300_000],
    ] as const) {
      await exchange(
        writer,
        compact({ type: WRITE, offset, length, payload: filled(length) }),
        simpleReply(1),
      );
    }
    const peer = await entered(path, 1);
    for (const [offset, length] of [
      [0, SIZE],
      [1, SIZE - 1],
      [99_999, 500_000],
      [0, 65_536],
      [900_001, 100_000],
    ] as const) {
      peer.send(compact({ type: READ, offset, length }));
      const result = Buffer.alloc(length, 0xee);
      let covered = 0;
      for (let done = false; !done; ) {
        const part = await chunk(peer);
        done = part.done;
        const at = Number(part.payload.readBigUInt64BE(0)) - offset;
        if (part.type === OFFSET_HOLE) {
          const bytes = part.payload.readUInt32BE(8);
          result.fill(0, at, at + bytes);
          covered += bytes;
        } else {
          expect(part.type).toBe(OFFSET_DATA);
          covered += part.payload.copy(result, at, 8);
        }
      }
      expect(covered).toBe(length);
      expect(result.equals(backend.bytes.subarray(offset, offset + length))).toBe(true);
    }
    peer.send(compact({ type: READ, flags: DF, length: SIZE }));
    expect(await chunk(peer)).toMatchObject({ done: true, type: OFFSET_DATA });
  });

  it("sends a range that is all hole as one small chunk, when the backend knows at once", async () => {
    const { path } = await serve({ pace });
    const peer = await entered(path, 1);
    peer.send(compact({ type: READ, offset: 3, length: 1_000_000 }));
    const { done, type, payload } = await chunk(peer);
    expect(done).toBe(true);
    if (pace === paces[0]![1]) expect([type, payload]).toEqual([OFFSET_HOLE, concat(u64(3), u32(1_000_000))]);
    else expect(type).toBe(OFFSET_DATA);
  });

  it("tells block status of several contexts, inside the request, and REQ_ONE one extent", async () => {
    const { path } = await serve({ pace });
    const peer = await entered(path, 1, [BASE, DEPTH]);
    await exchange(
      peer,
      compact({ type: WRITE, offset: 8192, length: 4096, payload: filled(4096) }),
      simpleReply(1),
    );
    await exchange(
      peer,
      compact({ type: WRITE_ZEROES, flags: NO_HOLE, offset: 12288, length: 4096 }),
      simpleReply(1),
    );
    const status = (id: number, done: boolean, ...fields: number[]) =>
      structuredChunk({ done, type: STATUS, cookie: 2, payload: concat(u32(id), ...fields.map(u32)) });
    await exchange(
      peer,
      compact({ type: BLOCK_STATUS, cookie: 2, offset: 4096, length: 16384 }),
      concat(
        status(0, false, 4096, 3, 4096, 0, 4096, 2, 4096, 3),
        status(1, true, 4096, 0, 4096, 1, 8192, 0),
      ),
    );
    await exchange(
      peer,
      compact({ type: BLOCK_STATUS, flags: REQ_ONE, cookie: 2, offset: 5000, length: 1000 }),
      concat(status(0, false, 1000, 3), status(1, true, 1000, 0)),
    );
    // After a plain WRITE_ZEROES and a TRIM the range is a hole again.
    await exchange(peer, compact({ type: TRIM, offset: 8192, length: 8192 }), simpleReply(1));
    await exchange(
      peer,
      compact({ type: BLOCK_STATUS, cookie: 2, length: SIZE }),
      concat(status(0, false, SIZE, 3), status(1, true, SIZE, 0)),
    );
  });

  it("answers wrong block status requests EINVAL", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path, 1, [BASE]);
    const wrong = [
      { offset: SIZE - 1, length: 2 },
      { offset: SIZE, length: 1 },
      { offset: 2n ** 64n - 1n, length: 1 },
      { length: 0 },
      { length: 1, flags: DF },
      { length: 1, flags: PAYLOAD_LEN },
    ];
    for (const fields of wrong) {
      peer.send(compact({ type: BLOCK_STATUS, ...fields }));
      await errorChunk(peer, EINVAL);
    }
    expect(backend.calls).toEqual({});
  });
});

describe.each(paces)("extended headers, backend finishes %s", (_, pace) => {
  const offset = 0x1234;

  it("answers everything with extended chunks that echo the offset", async () => {
    const { path } = await serve({ pace });
    const peer = await entered(path, 2);
    const payload = Buffer.from("extended");
    const done = extendedChunk({ type: NONE, cookie: 8, offset });
    for (const flags of [PAYLOAD_LEN, 0]) {
      // QEMU 10 as a client leaves the payload flag out; what follows is a payload all the same.
      await exchange(peer, extended({ type: WRITE, flags, cookie: 8, offset, length: 8, payload }), done);
    }
    await exchange(
      peer,
      extended({ type: READ, cookie: 9, offset, length: 8 }),
      extendedChunk({ type: OFFSET_DATA, cookie: 9, offset, payload: concat(u64(offset), payload) }),
    );
    await exchange(peer, extended({ type: FLUSH, cookie: 8, offset }), done);
    const odd = 0xfedc_ba98_7654_3210n;
    peer.send(extended({ type: READ, cookie: 10, offset: odd, length: 1 }));
    const head = await peer.read(32);
    expect([head.readUInt16BE(6), head.readBigUInt64BE(16)]).toEqual([ERROR, odd]);
  });

  it("fails huge lengths cleanly and serves lengths above 4 GiB that fit", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path, 2, [BASE]);
    for (const length of [2n ** 32n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
      for (const type of [TRIM, READ, BLOCK_STATUS, CACHE]) {
        peer.send(extended({ type, offset: 1, length }));
        await errorChunk(peer, EINVAL, true);
      }
      peer.send(extended({ type: WRITE_ZEROES, offset: 1, length }));
      await errorChunk(peer, ENOSPC, true);
    }
    expect(backend.calls).toEqual({});
    const ranges: [number, number][] = [];
    Object.defineProperty(backend, "size", { value: 2 ** 45 });
    Object.assign(backend, {
      trim: (at: number, bytes: number) => void ranges.push([at, bytes]),
      writeZeroes: (at: number, bytes: number) => void ranges.push([at, bytes]),
      status: (_c: string, _o: number, bytes: number, sink: (bytes: number, flags: number) => boolean) =>
        void sink(bytes, 3),
    });
    for (const type of [TRIM, WRITE_ZEROES]) {
      await exchange(
        peer,
        extended({ type, offset: 7, length: 2 ** 44 }),
        extendedChunk({ type: NONE, offset: 7 }),
      );
    }
    expect(ranges).toEqual([
      [7, 2 ** 44],
      [7, 2 ** 44],
    ]);
    const payload = concat(u32(0), u32(1), u64(2 ** 44), u64(3));
    await exchange(
      peer,
      extended({ type: BLOCK_STATUS, offset: 7, length: 2 ** 44 }),
      extendedChunk({ type: STATUS_EXT, offset: 7, payload }),
    );
  });

  it("skips the payload where none belongs and answers EINVAL", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path, 2);
    const decoy = extended({ type: WRITE_ZEROES, length: 512, cookie: 666 });
    for (const type of [READ, FLUSH, TRIM, CACHE, WRITE_ZEROES, 99]) {
      peer.send(extended({ type, flags: PAYLOAD_LEN, length: decoy.length, payload: decoy }));
      await errorChunk(peer, EINVAL, true);
    }
    await exchange(peer, extended({ type: FLUSH }), extendedChunk({ type: NONE }));
    expect(backend.calls).toEqual({ flush: 1 });
  });

  it("filters block status by a payload of context ids; duplicates and unknown ids are EINVAL", async () => {
    const { path } = await serve({ pace });
    const peer = await entered(path, 2, [BASE, DEPTH]);
    const filter = (...ids: number[]) => concat(u64(8192), ...ids.map(u32));
    const ask = (payload: Buffer, at = 0) =>
      extended({ type: BLOCK_STATUS, flags: PAYLOAD_LEN, offset: at, length: payload.length, payload });
    const status = (id: number, done: boolean, flags: number) =>
      extendedChunk({ done, type: STATUS_EXT, payload: concat(u32(id), u32(1), u64(8192), u64(flags)) });
    await exchange(peer, ask(filter(1)), status(1, true, 0));
    await exchange(peer, ask(filter(1, 0)), concat(status(1, false, 0), status(0, true, 3)));
    const wrong = [
      filter(),
      filter(0, 0),
      filter(2),
      filter(0, 1, 2),
      filter(0).subarray(0, 11),
      Buffer.alloc(0),
      Buffer.alloc(65536),
    ];
    for (const payload of wrong) {
      peer.send(ask(payload));
      await errorChunk(peer, EINVAL, true);
    }
    peer.send(ask(filter(0), SIZE));
    await errorChunk(peer, EINVAL, true);
    peer.send(ask(concat(u64(2n ** 64n - 1n), u32(0))));
    await errorChunk(peer, EINVAL, true);
    await exchange(peer, ask(filter(0)), status(0, true, 3));
  });

  it("never serves a compact request", async () => {
    const { path, backend } = await serve({ pace });
    const peer = await entered(path, 2);
    peer.send(compact({ type: FLUSH }), u32(0));
    expect((await peer.rest()).length).toBe(0);
    expect(backend.calls).toEqual({});
  });

  it("ends the connection on a payload above the maximum", async () => {
    const { path } = await serve({ pace });
    for (const length of [(32 << 20) + 1, 2n ** 63n]) {
      for (const type of [WRITE, READ]) {
        const peer = await entered(path, 2);
        peer.send(extended({ type, flags: PAYLOAD_LEN, length }), Buffer.alloc(100));
        await errorChunk(peer, type === WRITE ? ENOSPC : EINVAL, true);
        expect((await peer.rest()).length).toBe(0);
      }
    }
  });
});

it("refuses DF before structured replies were agreed on", async () => {
  const { path } = await serve();
  const peer = await entered(path);
  await exchange(peer, compact({ type: READ, flags: DF, length: 1 }), simpleReply(1, EINVAL));
});

it("answers out of order: a slow read does not hold up a quick one", async () => {
  let release: () => void = () => {};
  const gate = new Promise<void>((resolve) => {
    release = resolve;
  });
  let first = true;
  const pace: Pace = (operation) => {
    if (!first) return operation();
    first = false;
    return gate.then(operation);
  };
  const { path } = await serve({ pace });
  const peer = await entered(path);
  peer.send(compact({ type: READ, cookie: 1, length: 4 }), compact({ type: READ, cookie: 2, length: 4 }));
  expect((await peer.read(20)).readBigUInt64BE(8)).toBe(2n);
  release();
  expect((await peer.read(20)).readBigUInt64BE(8)).toBe(1n);
});

it("a flags field of all ones is refused for every command", async () => {
  const { path, backend } = await serve();
  const peer = await entered(path);
  for (const type of [READ, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS, FLUSH]) {
    peer.send(concat(u32(0x25609513), u16(0xffff), u16(type), u64(1), u64(0), u32(16)));
    expect(await peer.read(16)).toEqual(simpleReply(1, EINVAL));
  }
  expect(backend.calls).toEqual({});
});
