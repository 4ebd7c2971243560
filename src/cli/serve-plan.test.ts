import { expect, it } from "vitest";
import { chainOptions, connectLines, shellWord } from "./serve-plan.ts";

const plain = (filename: string, driver = "qcow2") => ({ filename, driver, plain: true });

it("names every image of the chain and opens only the top for writing", () => {
  const options = chainOptions([plain("/i/E.qcow2"), plain("/i/B.qcow2"), plain("/i/A.raw", "raw")], false);
  expect(options).toEqual({
    driver: "qcow2",
    "node-name": "E",
    "read-only": false,
    discard: "unmap",
    file: { driver: "file", filename: "/i/E.qcow2", discard: "unmap" },
    backing: {
      driver: "qcow2",
      "node-name": "B",
      "read-only": true,
      file: { driver: "file", filename: "/i/B.qcow2" },
      backing: {
        driver: "raw",
        "node-name": "A",
        "read-only": true,
        file: { driver: "file", filename: "/i/A.raw" },
      },
    },
  });
});

it("states that a lone image has no backing, and writes nothing where it is served read-only", () => {
  expect(chainOptions([plain("/i/E.qcow2")], true)).toEqual({
    driver: "qcow2",
    "node-name": "E",
    "read-only": true,
    file: { driver: "file", filename: "/i/E.qcow2" },
    backing: null,
  });
});

it("leaves what is below to the link where the link says more than a file name", () => {
  const odd = { filename: "/i/A.raw", driver: "raw", plain: false };
  expect(chainOptions([plain("/i/E.qcow2"), odd], true)).not.toHaveProperty("backing");
});

it("says how to connect over a unix socket and over TCP", () => {
  const unix = connectLines({ address: { path: "/run/s.nbd" }, exportName: "virtio0", readOnly: false });
  expect(unix).toBe(
    [
      "  address     nbd+unix:///virtio0?socket=/run/s.nbd",
      "  QEMU        qemu-system-x86_64 ... -drive 'file=nbd+unix:///virtio0?socket=/run/s.nbd,format=raw,if=virtio'",
      "  /dev/nbd0   nbd-client -unix /run/s.nbd /dev/nbd0 -name virtio0",
      "",
    ].join("\n"),
  );
  const tcp = connectLines({ address: { host: "::1", port: 10809 }, exportName: "a b", readOnly: true });
  expect(tcp).toContain("nbd://[::1]/a%20b");
  expect(tcp).toContain("nbd-client ::1 10809 /dev/nbd0 -name 'a b'");
  expect(tcp).toContain("readonly=on");
});

it("quotes for a shell only where that is needed", () => {
  expect(["a/b.c", "a b", "it's"].map(shellWord)).toEqual(["a/b.c", "'a b'", "'it'\\''s'"]);
});
