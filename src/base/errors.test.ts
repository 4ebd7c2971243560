import { describe, expect, it } from "vitest";
import {
  BlockError,
  ERROR_CODES,
  errorCode,
  errorMessage,
  errorWords,
  NbdErrno,
  nbdErrno,
} from "./errors.ts";

const QMP_CLASSES = ["GenericError", "CommandNotFound", "DeviceNotFound", "DeviceNotActive", "KVMMissingCap"];

describe("the registry of errors", () => {
  it.each(Object.entries(ERROR_CODES))("%s means something to each kind of caller", (_code, meaning) => {
    // The protocol allows these values alone; a client may drop the connection on another.
    expect(Object.values(NbdErrno)).toContain(meaning.nbd);
    expect(QMP_CLASSES).toContain(meaning.qmp);
    expect(meaning.exit).toBeGreaterThan(0);
    expect(meaning.exit).toBeLessThan(126);
    expect(meaning.text).toMatch(/^\S.*[^.\s]$/);
  });

  it("keeps the errno values of the NBD protocol", () => {
    expect(NbdErrno).toEqual({
      EPERM: 1,
      EIO: 5,
      ENOMEM: 12,
      EINVAL: 22,
      ENOSPC: 28,
      EOVERFLOW: 75,
      ENOTSUP: 95,
      ESHUTDOWN: 108,
    });
  });

  it("tells a full disk from a broken one, whatever the host calls it", () => {
    const full = ["ENOSPC", "EDQUOT", "EFBIG"] as const;
    expect(full.map((code) => nbdErrno(new BlockError(code, "x")))).toEqual([28, 28, 28]);
    expect(nbdErrno(new BlockError("IMAGE_CORRUPT", "x"))).toBe(NbdErrno.EIO);
  });
});

describe("any thrown value has a code", () => {
  it.each([
    [new BlockError("NODE_IN_USE", "busy"), "NODE_IN_USE", "busy"],
    [Object.assign(new Error("no space"), { code: "ENOSPC" }), "ENOSPC", "no space"],
    [Object.assign(new Error("odd"), { code: "toString" }), "EIO", "odd"],
    [Object.assign(new Error("odd"), { code: 7 }), "EIO", "odd"],
    [new TypeError("ours"), "EIO", "ours"],
    ["text", "EIO", "text"],
    [null, "EIO", "null"],
    [undefined, "EIO", "undefined"],
  ])("%s", (thrown, code, message) => {
    expect(errorCode(thrown)).toBe(code);
    expect(errorMessage(thrown)).toBe(message);
  });

  it("gives the C library's words for a host errno", () => {
    expect(errorWords(new BlockError("ENOSPC", "write of 'x.img' at 7"))).toBe("No space left on device");
    expect(errorWords(Object.assign(new Error(), { code: "EACCES" }))).toBe("Permission denied");
  });

  it("keeps the cause", () => {
    const cause = new Error("deep");
    expect(new BlockError("EIO", "above", cause).cause).toBe(cause);
    expect("cause" in new BlockError("EIO", "alone")).toBe(false);
  });
});
