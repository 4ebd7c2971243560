import { describe, expect, it } from "vitest";
import type { BlockError } from "../base/errors.ts";
import { ALL_PERMISSIONS, checkClaim, Permission, permissionNames } from "./permissions.ts";

const backing = {
  user: "node 'E'",
  role: "backing",
  needs: Permission.CONSISTENT_READ,
  shares: ALL_PERMISSIONS & ~(Permission.WRITE | Permission.RESIZE),
};
const guest = {
  user: "an unnamed block device",
  role: "root",
  needs: Permission.CONSISTENT_READ | Permission.WRITE,
  shares: ALL_PERMISSIONS,
};
const job = {
  user: "stream job 'job0'",
  role: "main node",
  needs: Permission.CONSISTENT_READ | Permission.WRITE_UNCHANGED,
  shares: ALL_PERMISSIONS & ~Permission.RESIZE,
};

describe("claims", () => {
  it("go together when nobody forbids what another needs", () => {
    expect(() => checkClaim("E", guest, [guest, job])).not.toThrow();
    expect(() => checkClaim("D", job, [backing])).not.toThrow();
  });

  it("conflict in QEMU's words, whoever came first", () => {
    const words =
      "Permission conflict on node 'D': permissions 'write' are both required by an unnamed block device " +
      "(uses node 'D' as 'root' child) and unshared by node 'E' (uses node 'D' as 'backing' child).";
    expect(() => checkClaim("D", guest, [backing])).toThrow(words);
    expect(() => checkClaim("D", backing, [job, guest])).toThrow(words);
    try {
      checkClaim("D", guest, [backing]);
    } catch (error) {
      expect((error as BlockError).code).toBe("EPERM");
    }
  });

  it("name every permission that is missing", () => {
    expect(permissionNames(ALL_PERMISSIONS)).toBe("consistent read, write, write unchanged, resize");
    const resizer = { ...guest, needs: Permission.WRITE | Permission.RESIZE };
    expect(() => checkClaim("D", resizer, [backing])).toThrow(
      "permissions 'write, resize' are both required",
    );
  });
});
