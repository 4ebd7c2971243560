import { describe, expect, it } from "vitest";
import { Prng } from "../base/prng.ts";
import { composedExtents } from "./chain.ts";
import { ExtentList } from "./extent.ts";
import { Graph, isNodeName } from "./graph.ts";
import { BlockNode } from "./node.ts";
import { ALL_PERMISSIONS, Permission } from "./permissions.ts";
import { ArrayDriver } from "./testing/array-driver.ts";
import { ArrayWorld, contentOf } from "./testing/array-world.ts";
import { type Call, Faults, Gate } from "./testing/interpose.ts";
import { rest, Scheduler } from "./testing/scheduler.ts";

const SIZE = 8 * 512;

function chain(names: string) {
  const world = new ArrayWorld();
  const { nodes, guest } = world.chain(names, { size: SIZE });
  const named = Object.fromEntries(nodes.map((node) => [node.name, node])) as Record<string, BlockNode>;
  return { world, graph: world.graph, named, guest };
}

/** Holds a node as the monitor does. */
const MONITOR = { user: "the monitor", role: "", needs: 0, shares: ALL_PERMISSIONS, staysAtNode: true };

describe("names", () => {
  it.each([
    ["A", true],
    ["node-1.x_Y", true],
    ["n".repeat(31), true],
    ["n".repeat(32), false],
    ["", false],
    ["1a", false],
    ["_a", false],
    ["a b", false],
    ["ä", false],
    ["#block1", false],
  ])("'%s': %s", (name, good) => {
    expect(isNodeName(name)).toBe(good);
  });

  it("are unique among nodes and among those that are being opened", () => {
    const { world, graph } = chain("A B");
    expect(() => graph.reserveName("A")).toThrow("Duplicate nodes with node-name='A'");
    graph.reserveName("new");
    expect(() => graph.reserveName("new")).toThrow("Duplicate nodes with node-name='new'");
    graph.unreserveName("new");
    expect(graph.reserveName("new")).toBe("new");
    expect(() => graph.reserveName("1 bad")).toThrow("Invalid node-name: '1 bad'");
    expect(() => graph.get("none")).toThrow("Cannot find device='none' nor node-name='none'");
    expect([...graph.nodes].map((node) => node.name)).toEqual(["A", "B"]);
    expect(world.leftovers()).toEqual([]);
  });

  it("are generated where none is given, each once", () => {
    const graph = new Graph();
    const names = [1, 2, 3].map(() => graph.reserveName(undefined));
    expect(new Set(names).size).toBe(3);
    for (const name of names) expect(isNodeName(name)).toBe(false);
  });
});

describe("uses", () => {
  it("close a node when the last one goes, and then what is behind it", async () => {
    const { world, graph, named, guest } = chain("A B C");
    const second = graph.use(named["B"]!, MONITOR);
    await graph.release(guest);
    expect(["A", "B", "C"].map((name) => world.driver(name).closed)).toEqual([false, false, true]);
    expect(graph.find("C")).toBeUndefined();
    await graph.release(second);
    expect(["A", "B", "C"].map((name) => world.driver(name).closed)).toEqual([true, true, true]);
    expect([...graph.nodes]).toEqual([]);
    await graph.release(second);
    await graph.release(guest);
  });

  it("that write are refused on a read-only node", () => {
    const { world, named } = chain("A B");
    expect(() => world.guest(named["A"]!)).toThrow("Block node is read-only");
    expect(() => world.guest(named["A"]!, { needs: Permission.WRITE_UNCHANGED })).toThrow("read-only");
    expect(() => world.guest(named["A"]!, { needs: Permission.CONSISTENT_READ })).not.toThrow();
  });

  it("tell who holds a node", () => {
    const { graph, named } = chain("A B");
    expect(graph.usesOf(named["A"]!).map((use) => `${use.user} as ${use.role}`)).toEqual([
      "node 'B' as backing",
    ]);
    expect(graph.parentsOf(named["A"]!)).toEqual([named["B"]]);
    expect(graph.backingUse(named["B"]!)?.user).toBe("node 'B'");
    expect(graph.backingUse(named["A"]!)).toBeUndefined();
  });

  it("release what is below even if closing fails, and tell of it", async () => {
    const { world, graph, guest } = chain("A B C");
    world.driver("C").before = new Faults(0, (call) => call.operation === "close").before;
    await expect(graph.release(guest)).rejects.toThrow("injected fault: close of 'C'");
    expect([...graph.nodes]).toEqual([]);
    expect(["A", "B", "C"].map((name) => world.driver(name).closed)).toEqual([true, true, true]);
  });

  it("release the backing image even if closing the file below fails", async () => {
    const world = new ArrayWorld();
    const { graph } = world;
    const file = world.image("file", { size: SIZE });
    const base = world.image("base", { size: SIZE });
    graph.reserveName("format");
    const format = new BlockNode({ name: "format", filename: "" }, file, false);
    format.install(new ArrayDriver(format, { size: SIZE }));
    graph.linkFile(format, file);
    graph.linkBacking(format, base);
    graph.add(format);
    world.driver("file").before = new Faults(0).before;
    await expect(graph.release(world.guest(format))).rejects.toThrow("injected fault: close of 'file'");
    expect([...graph.nodes]).toEqual([]);
    expect(world.driver("base").closed).toBe(true);
  });
});

describe("links", () => {
  it("refuse a cycle", () => {
    const { graph, named } = chain("A B C");
    expect(() => graph.linkBacking(named["A"]!, named["C"])).toThrow(
      "Making 'C' a backing child of 'A' would create a cycle",
    );
    expect(() => graph.linkBacking(named["A"]!, named["A"])).toThrow("would create a cycle");
    expect(named["A"]!.backing).toBeUndefined();
  });

  it("refuse a driver without backing link, by name", () => {
    const { world, graph, named } = chain("A B");
    const flat = world.image("R", { size: SIZE, flat: true });
    expect(() => graph.linkBacking(flat, named["A"])).toThrow(
      "Driver 'flat' of node 'R' does not support backing files",
    );
  });

  it("refuse to put a node that a guest writes behind another", () => {
    const { world, graph, named } = chain("A B");
    const other = world.image("X", { size: SIZE });
    expect(() => graph.linkBacking(other, named["B"])).toThrow(
      "Permission conflict on node 'B': permissions 'write' are both required by an unnamed block device",
    );
    expect(other.backing).toBeUndefined();
    expect(graph.usesOf(named["B"]!)).toHaveLength(1);
  });

  it("changed by replaceBacking let the old one go, and what nobody else uses closes", async () => {
    const { world, graph, named, guest } = chain("A B C D");
    const kept = graph.use(named["C"]!, MONITOR);
    await graph.replaceBacking(named["D"]!, named["A"]);
    expect(world.drawn(guest.node)).toBe("[A] <- [D]");
    expect(world.drawn(named["C"]!)).toBe("[A] <- [B] <- [C]");
    await graph.release(kept);
    expect([...graph.nodes].map((node) => node.name)).toEqual(["A", "D"]);
    await graph.replaceBacking(named["D"]!, undefined);
    expect([...graph.nodes].map((node) => node.name)).toEqual(["D"]);
    expect(world.leftovers()).toEqual([]);
  });

  it("are changed by replaceBacking while nothing is in flight", async () => {
    const { world, graph, named, guest } = chain("A B C");
    const gate = new Gate((call) => call.operation === "read");
    world.driver("B").before = gate.before;
    world.fill("B", 0, 1);
    const content = Buffer.alloc(512);
    const reading = guest.node.read(0, 512, content, 0);
    const replacing = graph.replaceBacking(named["C"]!, named["A"]);
    await rest();
    expect(world.drawn(guest.node)).toBe("[A] <- [B] <- [C]");
    gate.open();
    await Promise.all([reading, replacing]);
    expect(content.toString("latin1", 0, 2)).toBe("BB");
    expect(world.drawn(guest.node)).toBe("[A] <- [C]");
  });

  it("stay when replaceBacking is refused", async () => {
    const { world, graph, named } = chain("A B C");
    await expect(graph.replaceBacking(named["B"]!, named["C"])).rejects.toThrow("cycle");
    expect(world.drawn(named["C"]!)).toBe("[A] <- [B] <- [C]");
    expect(world.leftovers()).toEqual([]);
  });
});

it("changes of the graph run one at a time, also after one that failed", async () => {
  const graph = new Graph();
  const seen: string[] = [];
  const change = (name: string, fails = false) =>
    graph.exclusively(async () => {
      seen.push(`${name} begins`);
      await rest();
      seen.push(`${name} ends`);
      if (fails) throw new Error(name);
      return name;
    });
  const all = [change("a"), change("b", true), change("c")];
  const results = await Promise.allSettled(all);
  expect(results.map((result) => result.status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
  expect(seen).toEqual(["a begins", "a ends", "b begins", "b ends", "c begins", "c ends"]);
});

describe("append (live snapshot)", () => {
  it("moves everybody to the overlay but the monitor, and leaves the old image read-only", async () => {
    const { world, graph, named, guest } = chain("A B");
    const monitor = graph.use(named["B"]!, MONITOR);
    const overlay = world.image("S", { size: SIZE });
    await graph.append(named["B"]!, overlay);
    expect(guest.node).toBe(overlay);
    expect(monitor.node).toBe(named["B"]);
    expect(world.drawn(overlay)).toBe("[A] <- [B] <- [S]");
    expect([named["B"]!.readOnly, overlay.readOnly]).toEqual([true, false]);
    expect(graph.usesOf(overlay)).toEqual([guest]);
    expect(world.leftovers()).toEqual([]);
  });

  it("in the middle of a chain moves the overlays above", async () => {
    const { world, graph, named, guest } = chain("A B C");
    await graph.append(named["A"]!, world.image("S", { size: SIZE }));
    expect(world.drawn(guest.node)).toBe("[A] <- [S] <- [B] <- [C]");
    expect(graph.backingUse(named["B"]!)?.node.name).toBe("S");
    await graph.release(guest);
    expect([...graph.nodes]).toEqual([]);
  });

  it.each([
    ["has a backing image", "The overlay already has a backing image"],
    ["is too small", "is smaller than 'B' (4096 bytes)"],
    ["is read-only", "Block node is read-only"],
    ["has no backing link", "does not support backing files"],
    ["is the node itself", "The overlay is already in use"],
  ])("is refused when the overlay %s; then nothing has changed", async (what, words) => {
    const { world, graph, named, guest } = chain("A B");
    const overlay = {
      "has a backing image": () => world.image("S", { size: SIZE, backing: named["A"]! }),
      "is too small": () => world.image("S", { size: SIZE - 1 }),
      "is read-only": () => world.image("S", { size: SIZE, readOnly: true }),
      "has no backing link": () => world.image("S", { size: SIZE, flat: true }),
      "is the node itself": () => named["B"]!,
    }[what]!();
    const before = world.drawn(guest.node);
    await expect(graph.append(named["B"]!, overlay)).rejects.toThrow(words);
    expect([guest.node.name, world.drawn(guest.node)]).toEqual(["B", before]);
    expect(graph.usesOf(named["B"]!)).toEqual([guest]);
    expect(world.leftovers()).toEqual([]);
    expect(named["B"]!.readOnly).toBe(false);
  });

  it("is refused while a job holds the node, and when one took hold of it during the drain", async () => {
    const { world, graph, named } = chain("A B");
    const overlay = world.image("S", { size: SIZE });
    const job = {};
    named["B"]!.blockers.set(job, "block device is in use by block job: stream");
    await expect(graph.append(named["B"]!, overlay)).rejects.toThrow("Node 'B' is busy");
    named["B"]!.blockers.delete(job);
    world.driver("B").before = (call) => {
      if (call.operation === "flush") named["B"]!.blockers.set(job, "block job: stream");
    };
    await expect(graph.append(named["B"]!, overlay)).rejects.toThrow("Node 'B' is busy");
    named["B"]!.blockers.delete(job);
    expect(world.leftovers()).toEqual([]);
    expect(overlay.backing).toBeUndefined();
  });

  it("is refused for a node that holds another's bytes", async () => {
    const { world, graph } = chain("A B");
    const file = world.image("file", { size: SIZE });
    graph.reserveName("format");
    const format = new BlockNode({ name: "format", filename: "" }, file, true);
    graph.linkFile(format, file);
    await expect(graph.append(file, world.image("S", { size: SIZE }))).rejects.toThrow(
      "Node 'file' holds the bytes of node 'format'",
    );
  });

  it("is refused while the overlay is being resized, which those who move to it do not allow", async () => {
    const { world, graph, named, guest } = chain("A B");
    const overlay = world.image("S", { size: SIZE });
    graph.use(overlay, { ...MONITOR, needs: Permission.RESIZE });
    await expect(graph.append(named["B"]!, overlay)).rejects.toThrow("Permission conflict on node 'S'");
    expect(guest.node).toBe(named["B"]);
  });

  it("of several changes nothing when one is refused after others were made", async () => {
    const { world, graph, named, guest } = chain("A B");
    const image = world.image("C", { size: SIZE });
    const second = world.guest(image);
    const gate = new Gate((call) => call.operation === "flush");
    world.driver("B").before = gate.before;
    const overlays = [world.image("S", { size: SIZE }), world.image("T", { size: SIZE })];
    const appending = graph.appendAll([
      { node: named["B"]!, overlay: overlays[0]! },
      { node: image, overlay: overlays[1]! },
    ]);
    await gate.arrival();
    const writing = guest.node.write(0, 512, Buffer.alloc(512, "w"), 0);
    image.blockers.set(world, "block job");
    gate.open();
    await expect(appending).rejects.toThrow("Node 'C' is busy");
    await writing;
    image.blockers.delete(world);
    expect([guest.node, second.node]).toEqual([named["B"], image]);
    expect(overlays.map((overlay) => [overlay.backing, overlay.claims.size])).toEqual([
      [undefined, 0],
      [undefined, 0],
    ]);
    expect(graph.usesOf(named["B"]!)).toEqual([guest]);
    expect(world.driver("B").clusters[0]).toBeInstanceOf(Buffer);
    expect(world.leftovers()).toEqual([]);
  });

  it("sends what the guest wrote meanwhile into the overlay", async () => {
    // Below, it would change the snapshot; and a copy-on-write above that read the cluster first would hide
    // it.
    const { world, graph, named, guest } = chain("A B");
    const gate = new Gate((call) => call.operation === "flush");
    world.driver("B").before = gate.before;
    const overlay = world.image("S", { size: SIZE });
    const appending = graph.append(named["B"]!, overlay);
    await gate.arrival();
    const writing = guest.node.write(0, 512, Buffer.alloc(512, "w"), 0);
    const content = Buffer.alloc(512);
    const reading = guest.node.read(0, 512, content, 0);
    const flushing = guest.node.flush();
    const list = new ExtentList(0);
    const telling = composedExtents(guest.node, undefined, 0, 512, list);
    gate.open();
    await Promise.all([appending, writing, reading, flushing, telling]);
    expect(world.driver("B").clusters[0]).toBeUndefined();
    expect(world.driver("S").clusters[0]).toBeInstanceOf(Buffer);
    expect(content.toString("latin1", 0, 1)).toBe("w");
    expect(list.extents.map(({ kind, depth }) => [kind, depth])).toEqual([[2, 0]]);
    expect([named["B"]!.counters.writes, overlay.counters.writes]).toEqual([0, 1]);
  });

  it("does not bring back a user that left during the drain, and takes one that came", async () => {
    const { world, graph, named, guest } = chain("A B");
    const leaving = world.guest(named["B"]!);
    const gate = new Gate((call) => call.operation === "flush");
    world.driver("B").before = gate.before;
    const overlay = world.image("S", { size: SIZE });
    const appending = graph.append(named["B"]!, overlay);
    await gate.arrival();
    await graph.release(leaving);
    const coming = world.guest(named["B"]!);
    gate.open();
    await appending;
    expect(new Set(graph.usesOf(overlay))).toEqual(new Set([guest, coming]));
    await graph.release(guest);
    await graph.release(coming);
    expect([...graph.nodes]).toEqual([]);
  });

  it("gives up when the node is closed during the drain", async () => {
    const { world, graph, named, guest } = chain("A B");
    const gate = new Gate((call) => call.operation === "flush");
    world.driver("B").before = gate.before;
    const appending = graph.append(named["B"]!, world.image("S", { size: SIZE }));
    await gate.arrival();
    const releasing = graph.release(guest);
    gate.open();
    await expect(appending).rejects.toThrow("Node 'B' was closed meanwhile");
    await releasing;
    expect(world.driver("S").closed).toBe(false);
    expect(graph.find("S")?.backing).toBeUndefined();
  });

  it("changes nothing when the flush of the old image fails", async () => {
    const { world, graph, named, guest } = chain("A B");
    world.driver("B").before = new Faults(0, (call) => call.operation === "flush", "ENOSPC").before;
    await expect(graph.append(named["B"]!, world.image("S", { size: SIZE }))).rejects.toThrow(
      "injected fault",
    );
    expect([guest.node.name, named["B"]!.readOnly]).toEqual(["B", false]);
    expect(world.leftovers()).toEqual([]);
  });

  it.each([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])(
    "under load, at every depth: no deadlock, no loss; seed %d",
    async (seed) => {
      const prng = new Prng(seed);
      const world = new ArrayWorld();
      const scheduler = new Scheduler(prng);
      const before = (call: Call) => scheduler.step(`${call.operation} ${call.node}`);
      const { guest } = world.chain("A B C", { size: SIZE, before });
      const model = Buffer.alloc(SIZE);
      const busy = new Set<number>();
      const errors: unknown[] = [];
      const client = async () => {
        for (let i = 0; i < 40; i++) {
          const cluster = prng.below(8);
          if (busy.has(cluster)) {
            await scheduler.always("client");
            continue;
          }
          busy.add(cluster);
          const at = cluster * 512 + prng.below(256);
          if (prng.chance(0.6)) {
            const written = Buffer.alloc(prng.between(1, 256), prng.between(1, 255));
            written.copy(model, at);
            await guest.node.write(at, written.length, written, 0);
          } else {
            const seen = Buffer.alloc(256);
            await guest.node.read(at, 256, seen, 0);
            if (!seen.equals(model.subarray(at, at + 256))) errors.push(`seed ${seed}: wrong data at ${at}`);
          }
          busy.delete(cluster);
        }
      };
      const snapshots = async () => {
        for (let i = 0; i < 4; i++) {
          const nodes = [...world.graph.nodes];
          const target = prng.pick(nodes);
          const overlay = world.image(`S${i}`, { size: SIZE, before });
          await world.graph.exclusively(() => world.graph.append(target, overlay));
        }
      };
      const ends = [client(), client(), client(), snapshots()];
      await scheduler.until(Promise.all(ends));
      expect(errors).toEqual([]);
      expect(world.leftovers()).toEqual([]);
      for (const node of world.nodes.values())
        node && Object.assign(world.driver(node.name), { before: () => {} });
      expect((await contentOf(guest.node)).equals(model)).toBe(true);
      const frozen = [...world.graph.nodes].filter(
        (node) => !node.name.startsWith("S") && node !== guest.node,
      );
      expect(frozen.every((node) => node.readOnly)).toBe(true);
    },
  );
});
