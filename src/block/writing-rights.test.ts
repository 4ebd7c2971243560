import { describe, expect, it } from "vitest";
import { BlockNode } from "./node.ts";
import { ALL_PERMISSIONS, Permission } from "./permissions.ts";
import { ArrayDriver } from "./testing/array-driver.ts";
import { ArrayWorld } from "./testing/array-world.ts";
import { Faults, Gate, inOrder } from "./testing/interpose.ts";
import { rest } from "./testing/scheduler.ts";

const SIZE = 8 * 512;

function chain(names: string) {
  const world = new ArrayWorld();
  const { nodes, guest } = world.chain(names, { size: SIZE });
  const named = Object.fromEntries(nodes.map((node) => [node.name, node])) as Record<string, BlockNode>;
  return { world, graph: world.graph, named, guest };
}

describe("setWritable", () => {
  function formatOverFile(readOnly: boolean) {
    const world = new ArrayWorld();
    const file = world.image("file", { size: SIZE, readOnly });
    world.graph.reserveName("format");
    const node = new BlockNode({ name: "format", filename: "x" }, file, readOnly);
    const driver = new ArrayDriver(node, { size: SIZE, writable: !readOnly });
    node.install(driver);
    const link = world.graph.linkFile(node, file);
    world.graph.add(node);
    return { world, graph: world.graph, file, node, driver, link };
  }
  const WRITES = Permission.CONSISTENT_READ | Permission.WRITE | Permission.RESIZE;

  it("takes the file along, and what is claimed of it", async () => {
    const { graph, file, node, link } = formatOverFile(true);
    expect(link.needs).toBe(Permission.CONSISTENT_READ);
    await graph.setWritable(node, true);
    expect([node.readOnly, file.readOnly, link.needs]).toEqual([false, false, WRITES]);
    await graph.setWritable(node, false);
    expect([node.readOnly, file.readOnly, link.needs]).toEqual([true, true, Permission.CONSISTENT_READ]);
  });

  it("keeps what else the node needs of its file", async () => {
    const { graph, node, link } = formatOverFile(true);
    link.needs |= Permission.WRITE_UNCHANGED;
    await graph.setWritable(node, true);
    expect(link.needs).toBe(WRITES | Permission.WRITE_UNCHANGED);
    await graph.setWritable(node, false);
    expect(link.needs).toBe(Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED);
  });

  it("is refused when somebody else forbids writing to the file", async () => {
    const { graph, file, node } = formatOverFile(true);
    graph.use(file, {
      user: "node 'other'",
      role: "backing",
      needs: 1,
      shares: ALL_PERMISSIONS & ~Permission.WRITE,
    });
    await expect(graph.setWritable(node, true)).rejects.toThrow("unshared by node 'other'");
    expect([node.readOnly, file.readOnly]).toEqual([true, true]);
  });

  it("does what is asked last, when it is asked again before it is done", async () => {
    const { world, graph, named } = chain("A B");
    const gate = new Gate((call) => call.operation === "setReadOnly");
    world.driver("B").before = gate.before;
    const appended = graph.append(named["B"]!, world.image("S", { size: SIZE }));
    await gate.arrival();
    const opened = graph.setWritable(named["B"]!, true);
    gate.open();
    await Promise.all([appended, opened]);
    expect(named["B"]!.readOnly).toBe(false);
    await named["B"]!.write(0, 512, Buffer.alloc(512, 7), 0);
  });

  it("is over before the node closes, when the last user leaves meanwhile", async () => {
    const { world, graph, named, guest } = chain("A B");
    const gate = new Gate((call) => call.operation === "setReadOnly");
    world.driver("B").before = gate.before;
    const appended = graph.append(named["B"]!, world.image("S", { size: SIZE }));
    await gate.arrival();
    const released = graph.release(guest);
    await rest();
    expect(["B", "S"].map((name) => world.driver(name).closed)).toEqual([false, true]);
    gate.open();
    await Promise.all([appended, released]);
    expect(["A", "B"].map((name) => world.driver(name).closed)).toEqual([true, true]);
    expect(world.leftovers()).toEqual([]);
  });

  it("keeps others from becoming the file's writer while it reopens it", async () => {
    const { world, graph, file, node } = formatOverFile(true);
    const gate = new Gate((call) => call.operation === "setWritable");
    world.driver("file").before = gate.before;
    const opening = graph.setWritable(node, true);
    await gate.arrival();
    const rival = { user: "rival", role: "root", needs: 1, shares: ALL_PERMISSIONS & ~Permission.WRITE };
    expect(() => graph.use(file, rival)).toThrow("unshared by rival");
    gate.open();
    await opening;
  });

  it.each([
    [true, "file"],
    [true, "format"],
    [false, "file"],
    [false, "format"],
  ])("to %s: an error of the %s leaves both as they were", async (writable, who) => {
    const { world, graph, file, node, driver, link } = formatOverFile(writable);
    const needs = link.needs;
    const fault = new Faults(0, (call) => call.operation.startsWith("set"));
    (who === "file" ? world.driver("file") : driver).before = inOrder(fault.before);
    await expect(graph.setWritable(node, writable)).rejects.toThrow("injected fault");
    expect([node.readOnly, file.readOnly]).toEqual([writable, writable]);
    expect([driver.writable, world.driver("file").writable]).toEqual([!writable, !writable]);
    expect([link.needs, node.isQuiesced, file.isQuiesced]).toEqual([needs, false, false]);
  });
});
