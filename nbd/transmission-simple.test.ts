// Conversations with simple replies, built and compared byte by byte.

import { afterEach, describe, expect, it } from "vitest";
import {
  BLOCK_STATUS,
  CACHE,
  DF,
  DISC,
  EINVAL,
  EIO,
  ENOSPC,
  ENOTSUP,
  EPERM,
  exchange,
  FAST_ZERO,
  FLUSH,
  FUA,
  filled,
  NO_HOLE,
  PAYLOAD_LEN,
  paces,
  READ,
  REQ_ONE,
  SIZE,
  serve,
  TRIM,
  WRITE,
  WRITE_ZEROES,
} from "./testing/conversation.ts";
import { noSpace, type Pace } from "./testing/memory-backend.ts";
import { cleanUp, compact, concat, entered, simpleReply, u16, u32, u64 } from "./testing/peer.ts";

afterEach(cleanUp);

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

  it("closes on a wrong request magic after earlier answers, and obeys nothing of it", async () => {
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
