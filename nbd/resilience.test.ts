// Peers that send garbage, vanish, stall or never read; always with a second client that must not notice.
// Every buffer must be back at the end, and the server must still serve.

import { afterEach, describe, expect, it } from "vitest";
import { Prng } from "../src/base/prng.ts";
import { heldBufferCount } from "./held-buffer.ts";
import type { NbdServer } from "./server.ts";
import { IN_FLIGHT_BYTES_MAX, REQUESTS_IN_FLIGHT_MAX, UNSENT_BYTES_MAX } from "./session.ts";
import { MemoryBackend, type Pace } from "./testing/memory-backend.ts";
import {
  cleanUp,
  compact,
  concat,
  entered,
  extended,
  greeted,
  OPTS,
  option,
  Peer,
  simpleReply,
  startServer,
  str,
  u16,
  u32,
  u64,
} from "./testing/peer.ts";

afterEach(cleanUp);

const [READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS] = [0, 1, 2, 3, 4, 5, 6, 7];
const SIZE = 1 << 20;
const WITNESS = Buffer.from("what the witness wrote must stay");

const atOnce: Pace = (operation) => operation();
const later: Pace = (operation) => new Promise((resolve) => setImmediate(resolve)).then(operation);

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

/** A server with a disk for the bad peer ("") and one for the witness, who is in already. */
async function stage(pace: Pace, size = SIZE) {
  const { server, path } = await startServer({ maxConnections: 0 });
  const backend = new MemoryBackend({ size, pace });
  const quiet = new MemoryBackend({ size: SIZE });
  server.addExport({ name: "", backend });
  server.addExport({ name: "quiet", backend: quiet });
  const witness = await greeted(path);
  witness.send(option(OPTS.GO, str("quiet"), u16(0)));
  await witness.read(52);
  witness.send(compact({ type: WRITE, offset: 77, length: WITNESS.length, payload: WITNESS }));
  await witness.read(16);
  const check = async () => {
    witness.send(compact({ type: READ, cookie: 4, offset: 77, length: WITNESS.length }));
    expect(await witness.read(16 + WITNESS.length)).toEqual(simpleReply(4, 0, WITNESS));
  };
  return { server, path, backend, check };
}

/** Waits until only the witness is connected and every buffer but its own is back. */
async function settled(server: NbdServer, backend: MemoryBackend, buffersBefore: number): Promise<void> {
  await until(() => server.connectionCount === 1 && backend.underWay === 0);
  await until(() => heldBufferCount() === buffersBefore);
}

/** A conversation that uses every option and command; what a mutation starts from. */
function conversation(style: 0 | 1 | 2): Buffer {
  const code = style === 2 ? OPTS.EXTENDED : OPTS.STRUCTURED;
  const make = style === 2 ? extended : compact;
  const write = style === 2 ? 32 : 0;
  return concat(
    u32(3),
    option(99, Buffer.alloc(10)),
    option(OPTS.LIST),
    ...(style > 0 ? [option(code), option(OPTS.SET_META, str(""), u32(1), str("base:allocation"))] : []),
    option(OPTS.INFO, str("missing"), u16(1), u16(3)),
    option(OPTS.GO, str(""), u16(2), u16(1), u16(3)),
    make({ type: WRITE, flags: write, cookie: 1, offset: 5, length: 30, payload: Buffer.alloc(30, 1) }),
    make({ type: READ, cookie: 2, offset: 3, length: 40 }),
    make({
      type: WRITE,
      flags: write,
      cookie: 3,
      offset: 99,
      length: 70_000,
      payload: Buffer.alloc(70_000, 2),
    }),
    make({ type: READ, cookie: 4, length: 100_000 }),
    make({ type: TRIM, cookie: 5, length: 8192 }),
    make({ type: WRITE_ZEROES, flags: 1, cookie: 6, offset: 1, length: 9000 }),
    make({ type: CACHE, cookie: 7, length: 9000 }),
    make({ type: BLOCK_STATUS, cookie: 8, length: SIZE }),
    make({ type: FLUSH, cookie: 9 }),
    make({ type: DISC }),
  );
}

describe.each([
  ["at once", atOnce],
  ["later", later],
])("backend finishes %s", (_, pace) => {
  it("survives an abrupt close at every byte of a conversation", async () => {
    const { server, path, backend, check } = await stage(pace);
    const before = heldBufferCount();
    for (const style of [0, 1, 2] as const) {
      const bytes = conversation(style);
      // Every byte of the headers; steps through the one long payload.
      for (let cut = 0; cut <= bytes.length; cut += cut > 500 && cut < bytes.length - 400 ? 997 : 1) {
        const peer = await Peer.connect(path);
        peer.socket.write(bytes.subarray(0, cut), () => peer.destroy());
        if (cut % 50 === 0) await check();
      }
      await settled(server, backend, before);
    }
    await check();
  }, 60_000);

  it("survives mutated conversations", async () => {
    const { server, path, backend, check } = await stage(pace);
    const before = heldBufferCount();
    for (let seed = 1; seed <= 150; seed++) {
      const prng = new Prng(seed);
      const bytes = Buffer.from(conversation(prng.below(3) as 0 | 1 | 2));
      for (let count = prng.between(1, 8); count > 0; count--) {
        const at = prng.chance(0.7) ? prng.below(500) : prng.below(bytes.length);
        bytes[at] = prng.pick([0, 1, 0x7f, 0x80, 0xff, prng.below(256)]);
      }
      const peer = await Peer.connect(path);
      const cut = prng.chance(0.5) ? bytes.length : prng.below(bytes.length);
      peer.socket.end(bytes.subarray(0, cut));
      if (prng.chance(0.3)) await peer.rest();
      else if (prng.chance(0.5)) peer.destroy();
      if (seed % 10 === 0) await check();
    }
    await settled(server, backend, before);
    await check();
  }, 60_000);

  it("survives garbage in every state", async () => {
    const { server, path, backend, check } = await stage(pace);
    const before = heldBufferCount();
    const states: [string, () => Promise<Peer>][] = [
      ["before the flags", () => Peer.connect(path)],
      ["in the options", () => greeted(path)],
      ["simple", () => entered(path)],
      ["structured", () => entered(path, 1, ["base:allocation"])],
      ["extended", () => entered(path, 2, ["base:allocation"])],
    ];
    for (const [, open] of states) {
      for (let seed = 1; seed <= 25; seed++) {
        const prng = new Prng(seed);
        const peer = await open();
        const parts: Buffer[] = [];
        for (let count = prng.between(1, 20); count > 0; count--) {
          const garbage = prng.fill(Buffer.alloc(prng.between(1, 2000)));
          // Half of it begins like something that is understood.
          const start = prng.pick([
            Buffer.from("IHAVEOPT"),
            u32(0x25609513),
            u32(0x21e41c71),
            concat(
              u32(0x25609513),
              u16(0),
              u16(prng.below(9)),
              u64(seed),
              u64(prng.below(SIZE)),
              u32(prng.below(9999)),
            ),
          ]);
          parts.push(prng.chance(0.5) ? concat(start, garbage) : garbage);
        }
        peer.socket.end(concat(...parts));
        await check();
        peer.destroy();
      }
    }
    await settled(server, backend, before);
  }, 60_000);

  it("keeps its memory bounded towards a client that never reads, and starves nobody", async () => {
    const { server, path, backend, check } = await stage(pace, 4 << 20);
    const before = heldBufferCount();
    const peer = await entered(path);
    peer.socket.pause();
    backend.bytes.fill(9);
    // Replies of 20 GiB are asked for.
    const reads = Array.from({ length: 5000 }, () => compact({ type: READ, length: 4 << 20 }));
    peer.send(...reads);
    let calls = -1;
    while (calls !== backend.count("read")) {
      calls = backend.count("read");
      for (let i = 0; i < 5; i++) await check();
    }
    expect(calls).toBeGreaterThan(0);
    const boundBytes = UNSENT_BYTES_MAX + IN_FLIGHT_BYTES_MAX + (4 << 20);
    expect(calls * (4 << 20)).toBeLessThanOrEqual(boundBytes);
    peer.destroy();
    await settled(server, backend, before);
  });

  it("goes on where it stopped when such a client begins to read", async () => {
    const { path, backend } = await stage(pace, 4 << 20);
    const peer = await entered(path);
    peer.socket.pause();
    const count = 60;
    new Prng(7).fill(backend.bytes);
    const requests = Array.from({ length: count }, (_, i) =>
      compact({ type: READ, cookie: i, offset: i, length: 1 << 20 }),
    );
    peer.send(
      ...requests,
      compact({ type: WRITE, cookie: 99, length: 3, payload: Buffer.from("end") }),
      compact({ type: DISC }),
    );
    let calls = -1;
    while (calls !== backend.count("read")) {
      calls = backend.count("read");
      for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
    }
    expect(calls).toBeLessThan(count);
    peer.socket.resume();
    const cookies = new Set<bigint>();
    for (let i = 0; i < count; i++) {
      const reply = await peer.read(16 + (1 << 20));
      const cookie = reply.readBigUInt64BE(8);
      cookies.add(cookie);
      // The last request may write the first bytes while slow reads of them are still under way.
      const expected = backend.bytes.subarray(Number(cookie) + 3, Number(cookie) + (1 << 20));
      expect(reply.subarray(19).equals(expected)).toBe(true);
    }
    expect(cookies.size).toBe(count);
    expect(await peer.rest()).toEqual(simpleReply(99));
    expect(backend.bytes.toString("latin1", 0, 3)).toBe("end");
  });
});

it("stops reading at the limit of requests in flight and goes on as they end", async () => {
  const waiting: (() => void)[] = [];
  const pace: Pace = (operation) =>
    new Promise<void>((resolve) => {
      waiting.push(() => resolve(operation()));
    });
  const { server, path, backend, check } = await stage(pace);
  const before = heldBufferCount();
  const peer = await entered(path);
  const count = REQUESTS_IN_FLIGHT_MAX + 3000;
  peer.send(...Array.from({ length: count }, (_, i) => compact({ type: FLUSH, cookie: i })));
  await until(() => waiting.length === REQUESTS_IN_FLIGHT_MAX);
  for (let i = 0; i < 10; i++) await check();
  expect(waiting.length).toBe(REQUESTS_IN_FLIGHT_MAX);
  // In the reverse order, a part at a time.
  while (backend.count("flush") < count || waiting.length > 0) {
    for (const go of waiting.splice(-500).reverse()) go();
    await new Promise((resolve) => setImmediate(resolve));
  }
  const cookies = new Set<bigint>();
  for (let i = 0; i < count; i++) cookies.add((await peer.read(16)).readBigUInt64BE(8));
  expect(cookies.size).toBe(count);
  peer.destroy();
  await settled(server, backend, before);
}, 60_000);

it("answers others between the reads of a flood", async () => {
  const { path, backend, check } = await stage(atOnce);
  const peer = await entered(path);
  const count = 60_000;
  peer.socket.resume();
  peer.socket.write(Buffer.alloc(28 * count, compact({ type: FLUSH })));
  let between = 0;
  while (backend.count("flush") < count) {
    await check();
    if (backend.count("flush") < count) between++;
  }
  expect(between).toBeGreaterThan(0);
  await peer.read(16 * count);
}, 60_000);

it("carries requests of a vanished client out, once, and gives their buffers back", async () => {
  const waiting: (() => void)[] = [];
  const pace: Pace = (operation) =>
    new Promise<void>((resolve) => {
      waiting.push(() => resolve(operation()));
    });
  const { server, path, backend, check } = await stage(pace);
  const before = heldBufferCount();
  const peer = await entered(path, 1, ["base:allocation"]);
  const small = Buffer.alloc(100, 3);
  const large = Buffer.alloc(400_000, 4);
  const requests = [
    ...Array.from({ length: 40 }, (_, i) =>
      compact({ type: WRITE, offset: i * 100, length: 100, payload: small }),
    ),
    ...Array.from({ length: 40 }, () => compact({ type: READ, length: 1000 })),
    compact({ type: WRITE, offset: 500_000, length: large.length, payload: large }),
    compact({ type: READ, flags: 4, length: 300_000 }),
    compact({ type: BLOCK_STATUS, length: SIZE }),
    compact({ type: FLUSH }),
  ];
  peer.send(...requests);
  await until(() => waiting.length === requests.length);
  peer.destroy();
  await until(() => server.clientCount("") === 1);
  for (let i = 0; i < 5; i++) await check();
  expect(server.connectionCount).toBe(2);
  for (const go of waiting.splice(0)) go();
  await settled(server, backend, before);
  expect(backend.bytes.subarray(0, 4000).every((byte) => byte === 3)).toBe(true);
  expect(backend.bytes.subarray(500_000, 900_000).every((byte) => byte === 4)).toBe(true);
});

it("lets go of a payload under way when its client vanishes", async () => {
  const { server, path, backend, check } = await stage(atOnce);
  const before = heldBufferCount();
  for (const sent of [0, 1, 300_000, 999_999]) {
    const peer = await entered(path);
    const head = compact({ type: WRITE, length: 1_000_000 });
    await new Promise((resolve) => peer.socket.write(concat(head, Buffer.alloc(sent, 5)), resolve));
    await check();
    peer.destroy();
    await until(() => server.connectionCount === 1);
  }
  await settled(server, backend, before);
  expect(backend.calls).toEqual({});
});
