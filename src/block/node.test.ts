import { describe, expect, it } from "vitest";
import { WriteFlags } from "./driver.ts";
import { ArrayWorld } from "./testing/array-world.ts";
import { type Call, Faults, Gate, inOrder } from "./testing/interpose.ts";
import { rest } from "./testing/scheduler.ts";

/** One image of eight clusters whose calls are written down, as "write 512+100". */
function image() {
  const world = new ArrayWorld();
  const calls: string[] = [];
  const node = world.image("A", { size: 4096 });
  const driver = world.driver("A");
  const note = (call: Call) => {
    calls.push(call.bytes === 0 ? call.operation : `${call.operation} ${call.offset}+${call.bytes}`);
  };
  driver.before = note;
  const gated = (gate: Gate) => {
    driver.before = inOrder(note, gate.before);
  };
  return { world, node, driver, calls, gated };
}

const anyWrite = (call: Call) => call.operation === "write";
const buffer = Buffer.alloc(4096, 0x55);

describe("the door", () => {
  it("lets through what is inside, and serves it synchronously where the driver does", () => {
    const { node, calls } = image();
    expect(node.read(4095, 1, buffer, 0)).toBeUndefined();
    expect(node.write(0, 4096, buffer, 0)).toBeUndefined();
    expect(node.writeZeroes(512, 512)).toBeUndefined();
    expect(node.discard(1024, 512)).toBeUndefined();
    expect(node.flush()).toBeUndefined();
    expect(calls).toEqual([
      "read 4095+1",
      "write 0+4096",
      "writeZeroes 512+512",
      "discard 1024+512",
      "flush",
    ]);
    expect(node.inFlight).toBe(0);
  });

  it.each([
    [4096, 1],
    [4095, 2],
    [0, 4097],
    [2 ** 52, 2 ** 40],
  ])("refuses %d+%d, which is outside, by name and size", (offset, bytes) => {
    const { node, calls } = image();
    const words = `request of ${bytes} bytes at ${offset} is outside of node 'A' (4096 bytes)`;
    expect(() => node.read(offset, bytes, buffer, 0)).toThrow(words);
    expect(() => node.write(offset, bytes, buffer, 0)).toThrow(words);
    expect(() => node.writeZeroes(offset, bytes)).toThrow(words);
    expect(() => node.discard(offset, bytes)).toThrow(words);
    expect(() => node.extents(offset, bytes, { push: () => true })).toThrow(words);
    expect(calls).toEqual([]);
    expect(node.inFlight).toBe(0);
  });

  it("refuses changes of a read-only node", async () => {
    const world = new ArrayWorld();
    const node = world.image("A", { size: 4096, readOnly: true });
    const words = "Block node is read-only";
    expect(() => node.write(0, 1, buffer, 0)).toThrow(words);
    expect(() => node.writeVector(0, [buffer])).toThrow(words);
    expect(() => node.writeZeroes(0, 1)).toThrow(words);
    expect(() => node.discard(0, 1)).toThrow(words);
    expect(() => node.truncate(1)).toThrow(words);
    await expect(node.copyUp(0, 512, undefined)).rejects.toThrow(words);
    expect(node.read(0, 1, buffer, 0)).toBeUndefined();
    expect(node.inFlight).toBe(0);
  });

  it("counts operations and bytes", () => {
    const { node } = image();
    node.read(0, 10, buffer, 0);
    node.read(0, 20, buffer, 0);
    node.write(0, 5, buffer, 0);
    node.writeVector(0, [buffer.subarray(0, 3), buffer.subarray(0, 4)]);
    node.writeZeroes(0, 1);
    node.discard(0, 1);
    node.flush();
    expect(node.counters).toEqual({
      reads: 2,
      readBytes: 30,
      writes: 2,
      writeBytes: 12,
      zeroes: 1,
      discards: 1,
      flushes: 1,
    });
  });

  it("joins a vector for a driver that has none", async () => {
    const { node } = image();
    node.writeVector(510, [Buffer.from("ab"), Buffer.from("cde")]);
    const content = Buffer.alloc(5);
    node.read(510, 5, content, 0);
    expect(content.toString()).toBe("abcde");
  });
});

describe("errors release the count", () => {
  const operations = ["read", "write", "writeZeroes", "discard", "flush", "extents", "copyUp"] as const;

  it.each(operations)("%s, thrown at once or later", async (operation) => {
    for (const later of [false, true]) {
      const { node, driver } = image();
      const faults = new Faults(0);
      driver.before = later ? inOrder(() => Promise.resolve(), faults.before) : faults.before;
      const run = {
        read: () => node.read(0, 512, buffer, 0),
        write: () => node.write(0, 512, buffer, 0),
        writeZeroes: () => node.writeZeroes(0, 512),
        discard: () => node.discard(0, 512),
        flush: () => node.flush(),
        extents: () => node.extents(0, 512, { push: () => true }),
        copyUp: () => node.copyUp(0, 512, undefined).then(() => {}),
      }[operation];
      await expect((async () => run())()).rejects.toThrow("injected fault");
      expect(node.inFlight).toBe(0);
      expect(driver.locks.held).toBe(0);
      expect(node.quiesce()).toBeUndefined();
    }
  });
});

describe("FUA", () => {
  it.each([false, true])("flushes after the change, waiting: %s", async (waits) => {
    const { node, calls, driver } = image();
    const note = driver.before;
    if (waits) driver.before = inOrder(note, () => Promise.resolve());
    await node.write(0, 10, buffer, 0, WriteFlags.FUA);
    await node.writeZeroes(0, 10, WriteFlags.FUA);
    await node.discard(0, 512, WriteFlags.FUA);
    expect(calls).toEqual(["write 0+10", "flush", "writeZeroes 0+10", "flush", "discard 0+512", "flush"]);
  });

  it("does not flush after a change that failed, and fails when the flush does", async () => {
    const { node, driver } = image();
    const flushes = new Faults(0, (call) => call.operation === "flush");
    driver.before = inOrder(new Faults(0, anyWrite).before, flushes.before);
    expect(() => node.write(0, 10, buffer, 0, WriteFlags.FUA)).toThrow("injected fault: write");
    expect(flushes.seen).toBe(0);
    expect(() => node.write(0, 10, buffer, 0, WriteFlags.FUA)).toThrow("injected fault: flush");
    expect(node.inFlight).toBe(0);
  });

  it("is not done before the flush is", async () => {
    const { node, gated } = image();
    const gate = new Gate((call) => call.operation === "flush");
    gated(gate);
    let done = false;
    const writing = (node.write(0, 10, buffer, 0, WriteFlags.FUA) as Promise<void>).then(() => {
      done = true;
    });
    await rest();
    expect([done, node.inFlight]).toEqual([false, 1]);
    gate.open();
    await writing;
    expect(node.inFlight).toBe(0);
  });
});

describe("drain", () => {
  it("waits for what is inside, and holds back what comes", async () => {
    const { node, calls, gated } = image();
    const gate = new Gate(anyWrite);
    gated(gate);
    const first = node.write(0, 1, buffer, 0);
    let drained = false;
    const draining = (node.quiesce() as Promise<void>).then(() => {
      drained = true;
    });
    const second = node.read(0, 2, buffer, 0);
    const third = node.flush();
    await rest();
    expect([drained, calls]).toEqual([false, ["write 0+1"]]);
    gate.open();
    await draining;
    await first;
    await rest();
    expect(calls).toEqual(["write 0+1"]);
    node.resume();
    await Promise.all([second, third]);
    expect(calls).toEqual(["write 0+1", "read 0+2", "flush"]);
  });

  it("nests", async () => {
    const { node, calls } = image();
    node.quiesce();
    node.quiesce();
    const reading = node.read(0, 1, buffer, 0);
    node.resume();
    await rest();
    expect([calls, node.isQuiesced]).toEqual([[], true]);
    node.resume();
    await reading;
    expect([calls, node.isQuiesced]).toEqual([["read 0+1"], false]);
    expect(() => node.resume()).toThrow("resume without quiesce");
  });

  it("is done for all who asked when the last request has left", async () => {
    const { node, gated } = image();
    const gate = new Gate(anyWrite);
    gated(gate);
    const writing = node.write(0, 1, buffer, 0);
    const done: number[] = [];
    const both = [1, 2].map((id) => (node.quiesce() as Promise<void>).then(() => done.push(id)));
    await rest();
    expect(done).toEqual([]);
    gate.open();
    await Promise.all([...both, writing]);
    expect(done).toEqual([1, 2]);
  });

  it("lets what waited go in order of arrival, before what comes after", async () => {
    const { node, calls } = image();
    node.quiesce();
    const waited = [1, 2, 3].map((bytes) => node.write(0, bytes, buffer, 0));
    node.resume();
    const late = node.write(0, 4, buffer, 0);
    await Promise.all([...waited, late]);
    expect(calls).toEqual(["write 0+1", "write 0+2", "write 0+3", "write 0+4"]);
  });

  it("keeps the order when it is drained again and again", async () => {
    const { node, calls } = image();
    const waited: unknown[] = [];
    node.quiesce();
    for (let bytes = 1; bytes <= 3; bytes++) {
      waited.push(node.write(0, bytes, buffer, 0));
      node.resume();
      expect(node.quiesce()).toBeUndefined();
      waited.push(node.write(512, bytes, buffer, 0));
    }
    node.resume();
    await Promise.all(waited);
    expect(calls.map((call) => call.slice(6))).toEqual(["0+1", "512+1", "0+2", "512+2", "0+3", "512+3"]);
  });

  it("hands the error of a request that waited to its caller alone", async () => {
    const { node, driver } = image();
    driver.before = new Faults(0).before;
    node.quiesce();
    const failing = node.read(0, 1, buffer, 0) as Promise<void>;
    const working = node.read(0, 1, buffer, 0);
    expect(() => node.resume()).not.toThrow();
    await expect(failing).rejects.toThrow("injected fault");
    await working;
    expect(node.inFlight).toBe(0);
  });

  it("checks the rights of a request when it goes on, not when it came", async () => {
    const { node } = image();
    node.quiesce();
    const writing = node.write(0, 1, buffer, 0) as Promise<void>;
    await node.setWritable(false);
    node.resume();
    await expect(writing).rejects.toThrow("Block node is read-only");
  });
});

describe("setWritable", () => {
  it("waits for writes before a node becomes read-only", async () => {
    const { node, driver, gated } = image();
    const gate = new Gate(anyWrite);
    gated(gate);
    const writing = node.write(0, 1, buffer, 0);
    const closing = node.setWritable(false);
    await rest();
    expect([node.readOnly, driver.writable]).toEqual([false, true]);
    gate.open();
    await Promise.all([writing, closing]);
    expect([node.readOnly, driver.writable, node.isQuiesced]).toEqual([true, false, false]);
  });

  it.each([true, false])("to %s: an error leaves the node as it was", async (writable) => {
    const world = new ArrayWorld();
    const node = world.image("A", { size: 4096, readOnly: writable });
    world.driver("A").before = new Faults(0).before;
    await expect(node.setWritable(writable)).rejects.toThrow("injected fault");
    expect([node.readOnly, world.driver("A").writable]).toEqual([writable, !writable]);
    expect(node.isQuiesced).toBe(false);
    await node.setWritable(writable);
    expect([node.readOnly, world.driver("A").writable]).toEqual([!writable, writable]);
  });
});

it("names who keeps a node busy", () => {
  const { node } = image();
  expect(() => node.refuseBlocked()).not.toThrow();
  node.blockers.set({}, "block device is in use by block job: stream");
  expect(() => node.refuseBlocked()).toThrow("Node 'A' is busy: block device is in use by block job: stream");
});

describe("requests that wait at the door", () => {
  it("are handed to an overlay however many they are", async () => {
    const world = new ArrayWorld();
    const below = world.image("A", { size: 4096 });
    const overlay = world.image("S", { size: 4096 });
    below.quiesce();
    overlay.quiesce();
    // A few connections at their limit. As arguments of one call they would be more than the stack takes.
    const waiting = Array.from({ length: 200_000 }, () => below.flush());
    overlay.adoptWaiting(below);
    overlay.resume();
    await Promise.all(waiting);
    expect([below.counters.flushes, overlay.counters.flushes]).toEqual([0, 200_000]);
  });
});
