// Random commands over several connections against a plain array. Requests that overlap in time may end in
// any order, so those in flight together touch separate ranges; neighbours share blocks and are unaligned on
// purpose.

import { afterEach, describe, expect, it } from "vitest";
import { Prng } from "../src/base/prng.ts";
import { NbdClient } from "./client.ts";
import { heldBufferCount } from "./held-buffer.ts";
import { Style } from "./protocol.ts";
import { MemoryBackend, type Pace } from "./testing/memory-backend.ts";
import { cleanUp, startServer } from "./testing/peer.ts";

afterEach(cleanUp);

const SIZE = 600_000;

/** Some operations end at once, some in a microtask, some turns later; also in another order. */
function mixedPace(prng: Prng): Pace {
  return (operation) => {
    const kind = prng.below(4);
    if (kind === 0) return operation();
    if (kind === 1) return Promise.resolve().then(operation);
    return turns(prng.below(4)).then(operation);
  };
}

async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve));
}

/** Cuts the disk into unaligned ranges, a few of them long. */
function ranges(prng: Prng): { offset: number; bytes: number }[] {
  const result: { offset: number; bytes: number }[] = [];
  for (let offset = prng.below(100); offset < SIZE; ) {
    const wanted = prng.chance(0.1) ? prng.between(30_000, 250_000) : prng.between(1, 3000);
    const bytes = Math.min(wanted, SIZE - offset);
    result.push({ offset, bytes });
    offset += bytes + (prng.chance(0.3) ? prng.below(5000) : 0);
  }
  return result;
}

async function act(
  client: NbdClient,
  model: Buffer,
  prng: Prng,
  offset: number,
  bytes: number,
): Promise<void> {
  const fua = prng.chance(0.2);
  switch (prng.below(7)) {
    case 0:
    case 1: {
      const data = prng.chance(0.5) ? Buffer.alloc(bytes, prng.below(256)) : prng.fill(Buffer.alloc(bytes));
      data.copy(model, offset);
      return client.write(offset, data, { fua });
    }
    case 2:
      model.fill(0, offset, offset + bytes);
      return client.writeZeroes(offset, bytes, { fua, noHole: prng.chance(0.5), fastZero: prng.chance(0.3) });
    case 3:
      // What a trim leaves is up to the server: inside it may read as before or as zeroes. Pin it down again.
      await client.trim(offset, bytes, { fua });
      model.fill(0, offset, offset + bytes);
      return client.writeZeroes(offset, bytes);
    case 4:
      await client.flush();
      return client.cache(offset, bytes);
    case 5:
      return checkStatus(client, model, offset, bytes);
    default: {
      const data = await client.read(offset, bytes, { df: client.style > 0 && prng.chance(0.3) });
      if (!data.equals(model.subarray(offset, offset + bytes)))
        throw new Error(`read ${offset}+${bytes} differs`);
    }
  }
}

/** What is told to be zero must read as zeroes; the extents stay inside. */
async function checkStatus(client: NbdClient, model: Buffer, offset: number, bytes: number): Promise<void> {
  if (client.style === Style.SIMPLE) return;
  const extents = (await client.blockStatus(offset, bytes)).get("base:allocation")!;
  let at = offset;
  for (const extent of extents) {
    expect(extent.bytes).toBeGreaterThan(0);
    if ((extent.flags & 2) !== 0 && !isZero(model, at, extent.bytes))
      throw new Error(`${at} is told to be zero`);
    at += extent.bytes;
  }
  expect(at).toBeLessThanOrEqual(offset + bytes);
}

function isZero(model: Buffer, at: number, bytes: number): boolean {
  return model.subarray(at, at + bytes).every((byte) => byte === 0);
}

describe.each([
  ["simple", Style.SIMPLE],
  ["structured", Style.STRUCTURED],
  ["extended", Style.EXTENDED],
])("%s replies", (_, style) => {
  it.each([1, 2, 3, 4])("follow the model, seed %i", async (seed) => {
    const prng = new Prng(seed);
    const before = heldBufferCount();
    const { server, path } = await startServer();
    const backend = new MemoryBackend({ size: SIZE, pace: mixedPace(prng) });
    server.addExport({ name: "", backend });
    const options = { style, contexts: ["base:allocation"] };
    const target = { address: { path }, exportName: "" };
    const clients = [await NbdClient.connect(target, options), await NbdClient.connect(target, options)];
    const model = Buffer.alloc(SIZE);
    for (let round = 0; round < 12; round++) {
      const acts = ranges(prng).map(({ offset, bytes }) =>
        act(prng.pick(clients), model, prng, offset, bytes),
      );
      await Promise.all(acts);
      expect(backend.bytes.equals(model), `seed ${seed}, round ${round}`).toBe(true);
    }
    await Promise.all(clients.map((client) => client.disconnect()));
    while (server.connectionCount > 0) await turns(1);
    expect(heldBufferCount()).toBe(before);
  });
});
