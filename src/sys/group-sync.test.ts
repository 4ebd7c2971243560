import { describe, expect, it } from "vitest";
import { BlockError } from "../base/errors.ts";
import { GroupSync } from "./group-sync.ts";

/** A sync whose runs end when the test says so. */
function held() {
  const runs: { resolve: () => void; reject: (error: unknown) => void }[] = [];
  const group = new GroupSync(() => new Promise((resolve, reject) => runs.push({ resolve, reject })));
  return { group, runs };
}

async function settled(completion: void | Promise<void>): Promise<boolean> {
  let done = false;
  const mark = () => {
    done = true;
  };
  Promise.resolve(completion).then(mark, mark);
  await new Promise((resolve) => setImmediate(resolve));
  return done;
}

describe("group sync", () => {
  it("asks the host at the first sync although this object wrote nothing", () => {
    const { group, runs } = held();
    void group.sync();
    expect(runs.length).toBe(1);
  });

  it("has nothing to do when nothing was written since the last sync", async () => {
    const { group, runs } = held();
    const first = group.sync();
    runs[0]!.resolve();
    await first;
    expect(group.sync()).toBeUndefined();
    group.changed();
    expect(group.sync()).toBeInstanceOf(Promise);
    expect(runs.length).toBe(2);
  });

  it("shares the next sync among all who ask while one runs", async () => {
    const { group, runs } = held();
    const first = group.sync();
    group.changed();
    const second = group.sync();
    group.changed();
    const third = group.sync();
    expect(runs.length).toBe(1);
    runs[0]!.resolve();
    await first;
    expect(await settled(second)).toBe(false);
    expect(runs.length).toBe(2);
    runs[1]!.resolve();
    await Promise.all([second, third]);
    expect(runs.length).toBe(2);
  });

  it("takes the running sync when nothing was written since it began", async () => {
    const { group, runs } = held();
    const first = group.sync();
    const second = group.sync();
    runs[0]!.resolve();
    await Promise.all([first, second]);
    expect(runs.length).toBe(1);
  });

  it("does not let a write that settles while a sync runs pass as synced", async () => {
    const { group, runs } = held();
    const first = group.sync();
    group.changed();
    runs[0]!.resolve();
    await first;
    void group.sync();
    expect(runs.length).toBe(2);
  });

  it("never runs two at once, though one is asked for just when one has ended", async () => {
    let running = 0;
    let most = 0;
    const group = new GroupSync(async () => {
      running++;
      most = Math.max(most, running);
      await new Promise((resolve) => setImmediate(resolve));
      running--;
    });
    const first = group.sync() as Promise<void>;
    // Registered first, so it comes after the end of the first sync and before the one that waits for it goes
    // on.
    const between = first.then(() => {
      group.changed();
      return group.sync();
    });
    group.changed();
    const waiting = group.sync();
    await Promise.all([first, between, waiting]);
    expect(most).toBe(1);
    expect(running).toBe(0);
  });

  it("fails for ever after one failure", async () => {
    const { group, runs } = held();
    const error = new BlockError("EIO", "the disk is broken");
    const first = group.sync();
    group.changed();
    const second = group.sync();
    runs[0]!.reject(error);
    await expect(first).rejects.toBe(error);
    await expect(second).rejects.toBe(error);
    group.changed();
    expect(() => group.sync()).toThrow(error);
    expect(runs.length).toBe(1);
  });
});
