import { expect, it } from "vitest";
import { parseImageOptions, qcow2Options, rawOptions } from "./create-options.ts";

it("reads lists of options; later ones win, a double comma is one", () => {
  expect(parseImageOptions(["cluster_size=64k,backing_file=a,,b.img", "cluster_size=1M"])).toEqual(
    new Map([
      ["cluster_size", "1M"],
      ["backing_file", "a,b.img"],
    ]),
  );
  expect(() => parseImageOptions(["cluster_size"])).toThrow("'cluster_size' is not NAME=VALUE");
});

it("knows qemu-img's options of qcow2", () => {
  const text =
    "cluster_size=2M,compat=0.10,lazy_refcounts=on,refcount_bits=1,extended_l2=off,compression_type=zstd," +
    "preallocation=metadata";
  expect(qcow2Options(parseImageOptions([text]))).toEqual({
    clusterSize: 2 * 1024 * 1024,
    version: 2,
    lazyRefcounts: true,
    refcountBits: 1,
    extendedL2: false,
    compressionType: "zstd",
    preallocation: "metadata",
  });
});

it("refuses what it does not know, by name", () => {
  expect(() => qcow2Options(new Map([["foo", "1"]]))).toThrow("qcow2 has no option 'foo'");
  expect(() => qcow2Options(new Map([["toString", "1"]]))).toThrow("qcow2 has no option 'toString'");
  expect(() => qcow2Options(new Map([["lazy_refcounts", "maybe"]]))).toThrow("'maybe' is none of on, off");
  expect(() => rawOptions(new Map([["preallocation", "metadata"]]))).toThrow("none of off, falloc, full");
  expect(() => qcow2Options(new Map([["cluster_size", "big"]]))).toThrow("'big' is no number");
});
