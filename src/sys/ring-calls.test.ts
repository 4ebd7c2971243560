import { fstatSync, openSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { Errno } from "./host-error.ts";
import type { ForeignFunction, Koffi } from "./load-koffi.ts";
import { openRing } from "./ring-calls.ts";

const SETUP = 425;
const COOP_TASKRUN = 0x100;
const HANDLERS = { woken() {}, lost() {} };

/** A C library whose io_uring_setup does what the test says; its other calls fail with ENOMEM. */
function library(setUp: (params: Uint32Array) => number) {
  const flags: number[] = [];
  let params = new Uint32Array();
  let errno = 0;
  const fail = (code: number): number => {
    errno = code;
    return -1;
  };
  const call = (name: string) => (number: number) => {
    if (name !== "syscall" || number !== SETUP) return fail(Errno.ENOMEM);
    flags.push(params[2]!);
    const result = setUp(params);
    return result < 0 ? fail(-result) : result;
  };
  const koffi: Koffi = {
    load: () => ({ func: (name) => call(name) as unknown as ForeignFunction }),
    address: (buffer) => {
      params = buffer as Uint32Array<ArrayBuffer>;
      return 4096n;
    },
    view: () => {
      throw new Error("there is no memory to see");
    },
    errno: () => errno,
  };
  return { koffi, flags };
}

function openedOn(fd: number): boolean {
  try {
    fstatSync(fd);
    return true;
  } catch {
    return false;
  }
}

describe("there is no ring", () => {
  it.each([
    ["EPERM", "Operation not permitted"],
    ["ENOSYS", "Function not implemented"],
    ["ENOMEM", "Cannot allocate memory"],
  ] as const)("where the system refuses it with %s", (name, words) => {
    const { koffi, flags } = library(() => -Errno[name]);
    expect(openRing(koffi, 8, HANDLERS)).toBe(`io_uring_setup: ${words}`);
    expect(flags).toEqual([COOP_TASKRUN]);
  });

  it("where it refuses the flags that we like, and none at all", () => {
    const { koffi, flags } = library(() => -Errno.EINVAL);
    expect(openRing(koffi, 8, HANDLERS)).toBe("io_uring_setup: Invalid argument");
    expect(flags).toEqual([COOP_TASKRUN, 0]);
  });

  it("where the kernel is older than 5.12, and its descriptor is closed", () => {
    const fd = openSync("/dev/null", "r");
    const { koffi } = library((params) => {
      params[5] = 0x1ff;
      return fd;
    });
    expect(openRing(koffi, 8, HANDLERS)).toBe("that of this kernel is too old");
    expect(openedOn(fd)).toBe(false);
  });

  it("where its memory cannot be had, and its descriptor is closed", () => {
    const fd = openSync("/dev/null", "r");
    const { koffi, flags } = library((params) => {
      if (params[2] !== 0) return -Errno.EINVAL;
      params.set([8, 16], 0);
      params[5] = 0x3ff;
      return fd;
    });
    expect(openRing(koffi, 8, HANDLERS)).toBe("mmap of a ring: Cannot allocate memory");
    expect([flags, openedOn(fd)]).toEqual([[COOP_TASKRUN, 0], false]);
  });
});
