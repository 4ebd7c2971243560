import { describe, expect, it } from "vitest";
import { blockdev, type DiskImage, nbdkit, qemuStorageDaemon, strata } from "./peer-kinds.ts";

const SOCKETS = { nbd: "/s/a.nbd", qmp: "/s/a.qmp", pid: "/s/a.pid" };
const CHAIN: DiskImage = { name: "disk", format: "qcow2", chain: ["/i/top", "/i/base"], readOnly: false };
const RAW: DiskImage = { name: "disk", format: "raw", chain: ["/i/raw/disk"], readOnly: false };

describe("the description of a disk", () => {
  it("gives every file of the chain the same options", () => {
    expect(blockdev(CHAIN, { aio: "io_uring" })).toEqual({
      driver: "qcow2",
      "node-name": "disk",
      discard: "unmap",
      file: { driver: "file", filename: "/i/top", discard: "unmap", aio: "io_uring" },
      backing: {
        driver: "qcow2",
        "read-only": true,
        file: { driver: "file", filename: "/i/base", "read-only": true, aio: "io_uring" },
      },
    });
  });

  it("is read-only where disks share their files", () => {
    expect(blockdev({ ...RAW, readOnly: true }, {})).toEqual({
      driver: "raw",
      "node-name": "disk",
      "read-only": true,
      file: { driver: "file", filename: "/i/raw/disk", "read-only": true },
    });
  });
});

describe("command lines", () => {
  it("differ between Strata and QSD in what makes QSD fast only", () => {
    const ours = strata(["strata-storage-daemon"]).command(SOCKETS, [CHAIN]);
    const theirs = qemuStorageDaemon({ iothread: true }).command(SOCKETS, [CHAIN]);
    const plain = theirs.map((word) =>
      word.replaceAll(`,"aio":"io_uring"`, "").replace(`,"iothread":"io0"`, ""),
    );
    expect(plain.slice(3)).toEqual(ours.slice(1));
    expect(theirs.slice(0, 3)).toEqual(["qemu-storage-daemon", "--object", "iothread,id=io0"]);
  });

  it("leave the iothread out for jobs", () => {
    const words = qemuStorageDaemon({ iothread: false }).command(SOCKETS, [CHAIN]);
    expect(words.join(" ")).not.toContain("iothread");
  });

  it("give nbdkit the folder of the raw files, and refuse what it cannot serve", () => {
    expect(nbdkit().command(SOCKETS, [RAW]).at(-1)).toBe("dir=/i/raw");
    expect(() => nbdkit().command(SOCKETS, [CHAIN])).toThrow("raw files");
  });
});
