// Conversations with structured replies, built and compared byte by byte.

import { afterEach, describe, expect, it } from "vitest";
import {
  BASE,
  BLOCK_STATUS,
  chunk,
  DEPTH,
  DF,
  EINVAL,
  EIO,
  ENOSPC,
  errorChunk,
  exchange,
  FLUSH,
  filled,
  NO_HOLE,
  NONE,
  OFFSET_DATA,
  OFFSET_HOLE,
  PAYLOAD_LEN,
  paces,
  READ,
  REQ_ONE,
  SIZE,
  STATUS,
  serve,
  TRIM,
  WRITE,
  WRITE_ZEROES,
} from "./testing/conversation.ts";
import { noSpace } from "./testing/memory-backend.ts";
import { cleanUp, compact, concat, entered, simpleReply, structuredChunk, u32, u64 } from "./testing/peer.ts";

afterEach(cleanUp);

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
