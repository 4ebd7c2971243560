import { expect, it } from "vitest";
import type { DevicePlan } from "./kernel-driver.ts";
import { nbdClientArguments } from "./nbd-client-driver.ts";
import { inUse, kernelPlan } from "./netlink-driver.ts";
import { UndoList } from "./undo.ts";

const PLAN: DevicePlan = {
  target: { address: { path: "/run/a b" }, exportName: "virtio0" },
  uri: "nbd+unix:///virtio0?socket=/run/a%20b",
  index: undefined,
  connections: 1,
  readOnly: false,
  timeoutSeconds: undefined,
  deadSeconds: undefined,
};

function connection(descriptor: number, more: { size?: number; flags?: number; minimum?: number } = {}) {
  const { size = 1 << 20, flags = 0xfff, minimum = 1 } = more;
  const blockSize = { minimum, preferred: 4096, maximum: 1 << 25 };
  return { descriptor, details: { size, flags, blockSize, name: undefined, description: undefined } };
}

it("asks the kernel for a disk as the server describes it", () => {
  expect(kernelPlan({ ...PLAN, deadSeconds: 5 }, [connection(20), connection(21)])).toEqual({
    index: undefined,
    size: 1 << 20,
    blockSize: 512,
    // What no kernel knows is left out: DF, RESIZE, CACHE, FAST_ZERO.
    serverFlags: 0b1_0111_1111,
    descriptors: [20, 21],
    timeoutSeconds: undefined,
    deadSeconds: 5,
    backend: PLAN.uri,
  });
});

it("makes a device read-only when the user wants it, whatever the server allows", () => {
  expect(kernelPlan({ ...PLAN, readOnly: true }, [connection(20, { flags: 0x1 })]).serverFlags).toBe(0x3);
  expect(kernelPlan(PLAN, [connection(20, { flags: 0x1 })]).serverFlags).toBe(0x1);
});

it("keeps the server's smallest block, as far as the kernel has it", () => {
  expect(kernelPlan(PLAN, [connection(20, { minimum: 4096 })]).blockSize).toBe(4096);
  expect(() => kernelPlan(PLAN, [connection(20, { minimum: 65536 })])).toThrow(
    "wants blocks of at least 65536 bytes, the kernel has at most 4096",
  );
  expect(() => kernelPlan(PLAN, [connection(20, { size: 511 })])).toThrow("has 511 bytes: too few");
});

it("gives nbd-client the same wishes in its words", () => {
  expect(nbdClientArguments(PLAN, 3)).toEqual([
    "-unix",
    "/run/a b",
    "/dev/nbd3",
    "-name",
    "virtio0",
    "-nonetlink",
  ]);
  const target = { address: { host: "10.0.0.7", port: 10809 }, exportName: "disk" };
  const more = { target, connections: 4, readOnly: true, timeoutSeconds: 30 };
  expect(nbdClientArguments({ ...PLAN, ...more }, 0)).toEqual(
    "10.0.0.7 10809 /dev/nbd0 -name disk -nonetlink -connections 4 -timeout 30 -readonly".split(" "),
  );
});

it("says who has a device that is in use", () => {
  expect(inUse(3, "nbd://a/b").message).toBe(
    "/dev/nbd3 is in use: it is attached to nbd://a/b; name another one, or none for any that is free, " +
      "or end this one with 'strata detach /dev/nbd3'",
  );
});

it("takes steps back last first, all of them, whatever becomes of one", async () => {
  const taken: string[] = [];
  const undo = new UndoList();
  undo.push(() => void taken.push("daemon"));
  undo.push(async () => {
    throw new Error("the kernel refused");
  });
  undo.push(() => void taken.push("record"));
  expect(await undo.run()).toEqual(["the kernel refused"]);
  expect(taken).toEqual(["record", "daemon"]);
  expect(await undo.run()).toEqual([]);
  expect(taken).toEqual(["record", "daemon"]);
});
