import { describe, expect, it } from "vitest";
import { MiB } from "../../src/base/units.ts";
import { judgeDrift, slope } from "./drift.ts";
import type { QuietPoint, Sample } from "./samples.ts";

const FLAT: Omit<Sample, "seconds"> = {
  life: 1,
  memoryBytes: 100 * MiB,
  threads: 20,
  descriptors: 30,
  layers: 4,
  chainAllocatedBytes: 300 * MiB,
  plainAllocatedBytes: 50 * MiB,
  plainLengthBytes: 64 * MiB,
  requestsPerSecond: 300,
  p50Ms: 1,
  p99Ms: 20,
  maxMs: 90,
};

/**
 * 40 samples, twenty seconds apart; `at` tells what differs, of the part of the time that is over (0 to 1).
 */
function samples(at: (part: number) => Partial<Sample> = () => ({})): Sample[] {
  return Array.from({ length: 40 }, (_, index) => ({ ...FLAT, seconds: 20 * index, ...at(index / 39) }));
}

function rests(at: (index: number) => number): QuietPoint[] {
  return Array.from({ length: 40 }, (_, index) => ({
    seconds: 20 * index,
    life: 1,
    layers: 3,
    imageDescriptors: 4,
    otherDescriptors: at(index),
  }));
}

function drifting(some: readonly Sample[], quiet: readonly QuietPoint[] = []): string[] {
  return judgeDrift(some, quiet)
    .filter(({ drifts }) => drifts)
    .map(({ quantity, where }) => `${quantity} in ${where}`);
}

describe("the verdict on a run", () => {
  it("finds nothing where nothing drifts, and says what it looked at", () => {
    expect(
      drifting(
        samples(),
        rests(() => 25),
      ),
    ).toEqual([]);
    expect(
      judgeDrift(
        samples(),
        rests(() => 25),
      ).map(({ quantity }) => quantity),
    ).toEqual([
      "memory",
      "threads",
      "descriptors at rest",
      "chain on disk",
      "plain image on disk",
      "plain image's length",
      "latency p50",
      "latency p99",
      "fullest image",
    ]);
  });

  it("forgives a warm-up and peaks", () => {
    const uneven = samples((part) => ({
      memoryBytes: part < 0.2 ? 60 * MiB : 100 * MiB,
      p99Ms: part === 1 ? 4000 : 20,
    }));
    expect(drifting(uneven)).toEqual([]);
  });

  it("forgives a machine that is slow most of the time, later on", () => {
    let number = 0;
    const slow = samples((part) => (part > 0.5 && number++ % 3 > 0 ? { p50Ms: 30, p99Ms: 500 } : {}));
    expect(drifting(slow)).toEqual([]);
  });

  it("finds memory that grows in one life", () => {
    expect(drifting(samples((part) => ({ memoryBytes: (100 + 80 * part) * MiB })))).toEqual([
      "memory in life 1",
    ]);
  });

  it("finds a descriptor that stays open", () => {
    expect(
      drifting(
        samples(),
        rests((index) => 25 + Math.floor(index / 10)),
      ),
    ).toEqual(["descriptors at rest in life 1"]);
  });

  it("finds none where one comes and goes", () => {
    expect(
      drifting(
        samples(),
        rests((index) => (index > 20 && index % 2 === 0 ? 27 : 25)),
      ),
    ).toEqual([]);
  });

  it("finds an image and a latency that grow over the lives", () => {
    const grows = samples((part) => ({
      life: part < 0.5 ? 1 : 2,
      plainLengthBytes: 64 * MiB * (1 + part),
      p50Ms: 1 + 20 * part * part,
    }));
    expect(drifting(grows)).toEqual(["plain image's length in the run", "latency p50 in the run"]);
  });

  it("finds images that take more than their disks", () => {
    expect(drifting(samples(() => ({ layers: 1, chainAllocatedBytes: 220 * MiB })))).toEqual([
      "fullest image in the run",
    ]);
  });

  it("says nothing of what is too short", () => {
    expect(judgeDrift(samples().slice(0, 20), [])).toEqual([]);
    const oneSecond = samples().map((sample) => ({ ...sample, seconds: sample.seconds / 800 }));
    expect(judgeDrift(oneSecond, [])).toEqual([]);
  });
});

it("a slope is the growth per second", () => {
  expect(slope([0, 1, 2, 3].map((seconds) => ({ seconds, value: 7 + 2 * seconds })))).toBeCloseTo(2);
  expect(slope([{ seconds: 1, value: 5 }])).toBe(0);
});
