import { describe, expect, it } from "vitest";
import { ExpectedContent } from "./expected-content.ts";

const change = (stamp: number) => ({ first: 2, count: 2, stamp });

/**
 * Which of the contents the sector may hold. Asks without deciding, by a disk that is made anew each time.
 */
function allowed(make: (disk: ExpectedContent) => void, sector = 2): number[] {
  return [0, 1, 2, 3, 4].filter((stamp) => {
    const disk = new ExpectedContent(8);
    make(disk);
    return disk.seen(sector, stamp);
  });
}

function flush(disk: ExpectedContent): void {
  disk.flushing();
  disk.flushed();
}

describe("what a disk must hold", () => {
  it("is zeros at first, and then what was written last", () => {
    expect(allowed(() => {})).toEqual([0]);
    expect(
      allowed((disk) => {
        disk.changed(change(1));
        disk.changed(change(2));
      }),
    ).toEqual([2]);
    expect(allowed((disk) => disk.changed(change(1)), 4)).toEqual([0]);
  });

  it("is old or new after a request that failed, and what was read after that", () => {
    const failed = (disk: ExpectedContent) => {
      disk.changed(change(1));
      disk.mayHaveChanged(change(2));
    };
    expect(allowed(failed)).toEqual([1, 2]);
    expect(
      allowed((disk) => {
        failed(disk);
        disk.seen(2, 2);
      }),
    ).toEqual([2]);
  });

  it("is what a flush promised or what was sent later, after a kill", () => {
    const written = (disk: ExpectedContent) => {
      disk.changed(change(1));
      disk.changed(change(2));
      flush(disk);
      disk.changed(change(3));
      disk.mayHaveChanged(change(4));
    };
    expect(
      allowed((disk) => {
        written(disk);
        disk.killed();
      }),
    ).toEqual([2, 3, 4]);
    expect(
      allowed((disk) => {
        written(disk);
        disk.ended();
        disk.killed();
      }),
    ).toEqual([3, 4]);
  });

  it("counts what was answered while a flush was under way as sent later", () => {
    expect(
      allowed((disk) => {
        disk.changed(change(1));
        disk.flushing();
        disk.changed(change(2));
        disk.flushed();
        disk.killed();
      }),
    ).toEqual([1, 2]);
  });

  it("is what a write with FUA left or what was sent later, after a kill; of its sectors alone", () => {
    const written = (disk: ExpectedContent, meanwhile: boolean) => {
      disk.changed({ first: 0, count: 6, stamp: 1 });
      if (meanwhile) disk.flushing();
      disk.changedDurably(change(2));
      if (meanwhile) disk.flushed();
      disk.changed({ first: 3, count: 1, stamp: 3 });
      disk.killed();
    };
    const each = (meanwhile: boolean) =>
      [0, 1, 2, 3, 4, 5, 6].map((sector) => allowed((disk) => written(disk, meanwhile), sector));
    expect(each(false)).toEqual([[0, 1], [0, 1], [2], [2, 3], [0, 1], [0, 1], [0]]);
    expect(each(true)).toEqual([[1], [1], [2], [2, 3], [1], [1], [0]]);
  });

  it("keeps what a flush that failed did not promise", () => {
    expect(
      allowed((disk) => {
        disk.changed(change(1));
        disk.flushing();
        disk.flushFailed();
        disk.changed(change(2));
        disk.killed();
      }),
    ).toEqual([0, 1, 2]);
  });

  it("allows after a second kill what the first one may have left", () => {
    expect(
      allowed((disk) => {
        disk.changed(change(1));
        disk.killed();
        disk.changed(change(2));
        disk.killed();
      }),
    ).toEqual([0, 1, 2]);
  });

  it("allows after a kill what was read, until a flush promises it", () => {
    const read = (disk: ExpectedContent) => {
      disk.changed(change(1));
      disk.killed();
      disk.seen(2, 1);
    };
    expect(
      allowed((disk) => {
        read(disk);
        disk.killed();
      }),
    ).toEqual([0, 1]);
    expect(
      allowed((disk) => {
        read(disk);
        flush(disk);
        disk.killed();
      }),
    ).toEqual([1]);
  });
});
