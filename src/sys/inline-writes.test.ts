import { expect, it } from "vitest";
import { ManualClock } from "../base/clock.ts";
import { InlineWrites } from "./inline-writes.ts";

function write(policy: InlineWrites, clock: ManualClock, tookMs: number): boolean {
  const beganMs = policy.begin();
  if (beganMs < 0) return false;
  clock.advance(tookMs);
  policy.finished(beganMs);
  return true;
}

it("keeps writes inline while they are fast", () => {
  const clock = new ManualClock();
  const policy = new InlineWrites(clock);
  for (let i = 0; i < 100; i++) expect(write(policy, clock, 0.1)).toBe(true);
});

it("uses the pool for a while after a slow write, and for longer when it happens again", () => {
  const clock = new ManualClock();
  const policy = new InlineWrites(clock);
  expect(write(policy, clock, 20)).toBe(true);
  expect(write(policy, clock, 0)).toBe(false);
  clock.advance(50);
  expect(write(policy, clock, 20)).toBe(true);
  clock.advance(50);
  expect(write(policy, clock, 0)).toBe(false);
  clock.advance(50);
  expect(write(policy, clock, 0)).toBe(true);
});

it("starts from the short pause again after a quiet time", () => {
  const clock = new ManualClock();
  const policy = new InlineWrites(clock);
  write(policy, clock, 20);
  clock.advance(50);
  write(policy, clock, 20);
  clock.advance(10_000);
  write(policy, clock, 0.1);
  write(policy, clock, 20);
  clock.advance(50);
  expect(write(policy, clock, 0)).toBe(true);
});

it("asks no clock where writes never sleep", () => {
  const clock = new ManualClock();
  const policy = new InlineWrites(clock, false);
  expect(write(policy, clock, 1000)).toBe(true);
  expect(write(policy, clock, 0)).toBe(true);
});
