import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect, it } from "vitest";
import { readFatImage } from "./fat-image.ts";
import {
  differences,
  ext4Faults,
  FILE_SYSTEM_BYTES,
  fileSystemKind,
  fileSystemOfDay,
  filesOfDay,
} from "./file-system.ts";

it("finds the pages that differ and joins neighbours", () => {
  const before = Buffer.alloc(10 * 4096);
  const after = Buffer.from(before);
  after[4096] = 1;
  after[3 * 4096 - 1] = 1;
  after[9 * 4096 + 5] = 1;
  expect(differences(before, after)).toEqual([
    { offset: 4096, bytes: 8192 },
    { offset: 9 * 4096, bytes: 4096 },
  ]);
  expect(differences(before, before)).toEqual([]);
  const all = differences(Buffer.alloc(600 * 1024), Buffer.alloc(600 * 1024, 1));
  expect(all.map(({ bytes }) => bytes)).toEqual([256 * 1024, 256 * 1024, 88 * 1024]);
});

it("makes a FAT16 file system of every day", () => {
  const [second, third] = [2, 3].map((day) => fileSystemOfDay("FAT16", day, ""));
  // Compared by name: a whole-value comparison of buffers this large takes minutes.
  const wanted = filesOfDay(3);
  const got = readFatImage(third!);
  expect([...got.keys()]).toEqual([...wanted.keys()]);
  for (const [name, content] of wanted) expect(got.get(name)!.equals(content), name).toBe(true);
  const changed = differences(second!, third!).reduce((sum, { bytes }) => sum + bytes, 0);
  // The new file and the changed pages, not everything.
  expect(changed).toBeGreaterThan(5 * 1024 * 1024);
  expect(changed).toBeLessThan(10 * 1024 * 1024);
});

it.skipIf(fileSystemKind() !== "ext4")(
  "makes an ext4 of every day, and two days differ in their files alone",
  () => {
    const directory = mkdtempSync(path.join(tmpdir(), "strata-fs-"));
    try {
      const [second, third] = [2, 3].map((day) => fileSystemOfDay("ext4", day, directory));
      expect(third!.length).toBe(FILE_SYSTEM_BYTES);
      const changed = differences(second!, third!).reduce((sum, { bytes }) => sum + bytes, 0);
      expect(changed).toBeGreaterThan(5 * 1024 * 1024);
      expect(changed).toBeLessThan(12 * 1024 * 1024);
      const image = path.join(directory, "third.img");
      writeFileSync(image, third!);
      expect(ext4Faults(image)).toBeUndefined();
      third!.fill(0xff, 0, 3 * 1024 * 1024);
      writeFileSync(image, third!);
      expect(ext4Faults(image)).toBeDefined();
    } finally {
      rmSync(directory, { recursive: true });
    }
  },
);
