// How large the chunks of a merge are, how many are in flight, and who copies them.

import { describe, expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import type { BlockNode } from "../block/node.ts";
import { type Call, Gate } from "../block/testing/interpose.ts";
import { rest } from "../block/testing/scheduler.ts";
import { StreamBench } from "./testing/stream-bench.ts";

describe("where the host shares the space of copies", () => {
  it.each([
    ["a chunk is 32 MiB", 1, {}, [32, 32, 32]],
    ["chunks are small again when one took long", 21, {}, [32, ...new Array(128).fill(0.5)]],
    ["a limited speed keeps small chunks", 1, { speed: 1 << 30 }, new Array(192).fill(0.5)],
  ])("%s", async (_, copyMs, settings, mebibytes) => {
    const clock = new ManualClock();
    const it = new StreamBench(clock);
    const sizes: number[] = [];
    const before = (call: Call) => {
      if (call.operation !== "copyUp") return;
      sizes.push(call.bytes / (1 << 20));
      // A guest at work: one chunk at a time.
      it.world.graph.guestRequests++;
      clock.advance(copyMs);
    };
    const { guest } = it.world.chain("A E", { size: 96 << 20, clusterSize: 512 << 10, before });
    it.world.fill("A", 0, 192);
    Object.assign(it.world.driver("E"), { sharesSpaceWith: () => true });
    const job = await it.start(guest.node, undefined, settings);
    await job.concluded;
    expect(sizes).toEqual(mebibytes);
  });
});

describe("chunks in flight", () => {
  it.each([
    ["four while no guest is at work", 0, {}, 4],
    ["one while guests are at work", 1, {}, 1],
    ["one under a speed limit", 0, { speed: 1 << 30 }, 1],
  ])("%s", async (_, requestsPerChunk, settings, inFlight) => {
    const it = new StreamBench();
    const gate = new Gate((call) => call.operation === "copyUp");
    const before = (call: Call) => {
      if (call.operation === "copyUp") it.world.graph.guestRequests += requestsPerChunk;
      return gate.before(call);
    };
    const { guest } = it.world.chain("A E", { size: 8 << 20, clusterSize: 512 << 10, before });
    it.world.fill("A", 0, 16);
    const job = await it.start(guest.node, undefined, settings);
    await gate.arrival();
    await rest();
    expect(gate.held).toBe(inFlight);
    gate.open();
    await job.concluded;
    expect(it.world.driver("E").clusters.filter((cluster) => cluster instanceof Buffer)).toHaveLength(16);
  });
});

describe("the event loop", () => {
  it.each([
    ["may copy while no guest is at work", [], []],
    ["leaves chunks to others once a guest is at work, until none is", [3, 4, 9], [4, 5, 10]],
  ])("%s", async (_, withRequests, notIdle) => {
    const it = new StreamBench();
    const { guest } = it.world.chain("A E", { size: 8 << 20, clusterSize: 512 << 10 });
    it.world.fill("A", 0, 16);
    const top = it.world.driver("E");
    const copyUp = top.copyUp.bind(top);
    const busy: number[] = [];
    let chunk = -1;
    Object.assign(top, {
      copyUp: (offset: number, bytes: number, base: BlockNode | undefined, idle: boolean) => {
        chunk++;
        if (!idle) busy.push(chunk);
        if ((withRequests as number[]).includes(chunk)) it.world.graph.guestRequests++;
        return copyUp(offset, bytes, base);
      },
    });
    const job = await it.start(guest.node, undefined, { speed: 1 << 30 });
    await job.concluded;
    expect(chunk).toBe(15);
    expect(busy).toEqual(notIdle);
  });
});
