import { describe, expect, it } from "vitest";
import { KiB } from "../base/units.ts";
import { SlowWrites } from "./slow-writes.ts";

const SLOW = 0.05;
const QUICK = 0.005;

function onLoop(policy: SlowWrites, count: number, tookMs: number, bytes = 4 * KiB): void {
  for (let i = 0; i < count; i++) policy.wroteOnLoop(bytes, tookMs);
}

function beside(policy: SlowWrites, count: number, company: number): void {
  for (let i = 0; i < count; i++) policy.wroteBeside(company);
}

/** Writes on the loop, all slow, until one goes beside it. */
function untilBeside(policy: SlowWrites): number {
  for (let count = 0; count < 100_000; count++) {
    if (policy.beside) return count;
    policy.wroteOnLoop(4 * KiB, SLOW);
  }
  return Number.POSITIVE_INFINITY;
}

describe("small writes", () => {
  it("stay on the loop while most of them are quick, whatever a few took", () => {
    const policy = new SlowWrites(() => true);
    for (let i = 0; i < 100; i++) {
      onLoop(policy, 15, 40);
      onLoop(policy, 17, QUICK);
    }
    expect(policy.beside).toBe(false);
  });

  it("may take as long as their bytes need", () => {
    const policy = new SlowWrites(() => true);
    onLoop(policy, 1000, 0.035, 256 * KiB);
    expect(policy.beside).toBe(false);
    onLoop(policy, 32, 0.04, 256 * KiB);
    expect(policy.beside).toBe(true);
  });

  it("go beside it when most of them are slow, where there is a ring", () => {
    let ring = false;
    const policy = new SlowWrites(() => ring);
    expect(untilBeside(policy)).toBe(Number.POSITIVE_INFINITY);
    ring = true;
    expect(untilBeside(policy)).toBeLessThanOrEqual(32);
  });

  it("come back when they have little company there, and stay longer each time it was in vain", () => {
    const policy = new SlowWrites(() => true);
    const stays: number[] = [];
    for (let i = 0; i < 7; i++) {
      stays.push(untilBeside(policy));
      beside(policy, 31, 3);
      expect(policy.beside).toBe(true);
      beside(policy, 1, 3);
      expect(policy.beside).toBe(false);
    }
    expect(stays).toEqual([32, 1056, 2080, 4128, 8224, 16_416, 16_416]);
  });

  it("come back after a while to see whether they are slow still", () => {
    const policy = new SlowWrites(() => true);
    for (let i = 0; i < 3; i++) {
      expect(untilBeside(policy)).toBe(32);
      beside(policy, 2047, 4);
      expect(policy.beside).toBe(true);
      beside(policy, 1, 4);
    }
    onLoop(policy, 1000, QUICK);
    expect(policy.beside).toBe(false);
  });

  it("forget that it was in vain when it was not", () => {
    const policy = new SlowWrites(() => true);
    for (let i = 0; i < 3; i++) {
      untilBeside(policy);
      beside(policy, 32, 0);
    }
    untilBeside(policy);
    beside(policy, 2048, 30);
    untilBeside(policy);
    beside(policy, 32, 0);
    expect(untilBeside(policy)).toBe(1056);
  });

  it("that find no room beside the loop count as without company, once", () => {
    const policy = new SlowWrites(() => true);
    untilBeside(policy);
    for (let i = 0; i < 31; i++) {
      beside(policy, 1, 0);
      onLoop(policy, 1, SLOW);
      expect(policy.beside).toBe(true);
    }
    beside(policy, 1, 0);
    expect(policy.beside).toBe(false);
    expect(untilBeside(policy)).toBe(1056);
  });

  it("that end beside the loop after the verdict change nothing", () => {
    const policy = new SlowWrites(() => true);
    beside(policy, 1000, 9);
    expect(untilBeside(policy)).toBe(32);
  });
});
