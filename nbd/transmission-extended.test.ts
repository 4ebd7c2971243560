// Conversations with extended headers, built and compared byte by byte.

import { afterEach, describe, expect, it } from "vitest";
import {
  BASE,
  BLOCK_STATUS,
  CACHE,
  DEPTH,
  EINVAL,
  ENOSPC,
  ERROR,
  errorChunk,
  exchange,
  FLUSH,
  NONE,
  OFFSET_DATA,
  PAYLOAD_LEN,
  paces,
  READ,
  SIZE,
  STATUS_EXT,
  serve,
  TRIM,
  WRITE,
  WRITE_ZEROES,
} from "./testing/conversation.ts";
import { cleanUp, compact, concat, entered, extended, extendedChunk, u32, u64 } from "./testing/peer.ts";

afterEach(cleanUp);

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
