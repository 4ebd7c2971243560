import { execFileSync, spawnSync } from "node:child_process";
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { GiB, KiB, MiB, TiB } from "../../base/units.ts";
import { type CreateOptions, createQcow2, newHeader } from "./create.ts";
import { headerAreaBytes, isQcow2, parseHeader } from "./header.ts";
import { MemoryImage } from "./testing/memory-image.ts";

const hasQemu = spawnSync("qemu-img", ["--version"]).status === 0;
const directory = mkdtempSync(join(tmpdir(), "qcow2-create-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

async function create(options: CreateOptions): Promise<MemoryImage> {
  const image = new MemoryImage();
  await createQcow2(image, options);
  return image;
}

/** The image as a sparse file of the host. */
function store(image: MemoryImage, name: string): string {
  const path = join(directory, name);
  const fd = openSync(path, "w");
  ftruncateSync(fd, image.size);
  for (const [page, bytes] of image.pages) {
    const at = page * bytes.length;
    writeSync(fd, bytes, 0, Math.min(bytes.length, image.size - at), at);
  }
  closeSync(fd);
  return path;
}

/** Mistakes, with what qemu-img makes of them. */
const MISTAKES: [CreateOptions, string][] = [
  [{ size: -1 }, "Invalid image size specified"],
  [{ size: Number.NaN }, "Invalid image size specified"],
  [{ size: 0, clusterSize: 1000 }, "Cluster size must be a power of two between 512 and 2048k"],
  [{ size: 0, clusterSize: 256 }, "Cluster size must be a power of two between 512 and 2048k"],
  [{ size: 0, clusterSize: 4 * MiB }, "Cluster size must be a power of two between 512 and 2048k"],
  [
    { size: 0, clusterSize: 8192, extendedL2: true },
    "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
  ],
  [
    { size: 0, version: 2, extendedL2: true },
    "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
  ],
  [
    { size: 0, version: 2, lazyRefcounts: true },
    "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
  ],
  [
    { size: 0, version: 2, compressionType: "zstd" },
    "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)",
  ],
  [
    { size: 0, version: 2, refcountBits: 8 },
    "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
  ],
  [{ size: 0, refcountBits: 3 }, "Refcount width must be a power of two and may not exceed 64 bits"],
  [{ size: 0, refcountBits: 128 }, "Refcount width must be a power of two and may not exceed 64 bits"],
  [{ size: 0, refcountBits: 0 }, "Refcount width must be a power of two and may not exceed 64 bits"],
  [{ size: 0, backingFormat: "raw" }, "Backing format cannot be used without backing file"],
  [
    { size: MiB, backingFile: "b", preallocation: "metadata" },
    "Backing file and preallocation can only be used at the same time if extended_l2 is on",
  ],
  [
    { size: 200 * GiB, clusterSize: 512 },
    "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
  ],
  [
    { size: 4096 * TiB },
    "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
  ],
];

describe("options", () => {
  test.each(MISTAKES)("%o is refused and the file is left alone", async (options, words) => {
    const image = MemoryImage.from(Buffer.from("precious"));
    await expect(createQcow2(image, options)).rejects.toMatchObject({ code: "EINVAL", message: words });
    expect(image.bytes().toString()).toBe("precious");
  });

  test("a size is rounded up to whole sectors", () => {
    expect(newHeader({ size: 1000 }).size).toBe(1024);
  });
});

test("what a crash leaves behind is no image: the header comes last", async () => {
  const image = new MemoryImage();
  const failing = Object.assign(image, {
    flush() {
      throw new Error("power cut");
    },
  });
  await expect(createQcow2(failing, { size: GiB })).rejects.toThrow("power cut");
  expect(isQcow2(image.bytes().subarray(0, 512))).toBe(false);
});

test("the header says what was asked for", async () => {
  const options: CreateOptions = {
    size: 10 * GiB,
    clusterSize: 128 * KiB,
    refcountBits: 64,
    lazyRefcounts: true,
    extendedL2: true,
    compressionType: "zstd",
    backingFile: "json:{}",
    backingFormat: "raw",
  };
  const bytes = (await create(options)).bytes();
  expect(parseHeader(bytes.subarray(0, headerAreaBytes(bytes)), bytes.length)).toMatchObject({
    version: 3,
    clusterBits: 17,
    size: 10 * GiB,
    refcountOrder: 6,
    compatible: 1n,
    incompatible: 8 | 16,
    compressionType: 1,
    backingFile: "json:{}",
    backingFormat: "raw",
  });
});

describe.skipIf(!hasQemu)("qemu-img takes it", () => {
  const sizes = [0, 512, MiB, GiB + 512];
  const shapes: Omit<CreateOptions, "size">[] = [{ version: 2 }, { version: 3 }];
  for (const refcountBits of [1, 2, 4, 8, 16, 32, 64]) shapes.push({ refcountBits });
  for (const clusterSize of [512, 4 * KiB, MiB, 2 * MiB]) shapes.push({ clusterSize });
  shapes.push({ extendedL2: true, compressionType: "zstd", lazyRefcounts: true });

  test.each(shapes)("%o", async (shape) => {
    for (const size of sizes) {
      const path = store(await create({ ...shape, size }), "image");
      const check = spawnSync("qemu-img", ["check", path], { encoding: "utf8" });
      expect(check.stdout + check.stderr).toContain("No errors were found on the image.");
      const info = JSON.parse(
        execFileSync("qemu-img", ["info", "--output=json", path], { encoding: "utf8" }),
      );
      expect(info["virtual-size"]).toBe(size);
      expect(info["cluster-size"]).toBe(shape.clusterSize ?? 64 * KiB);
    }
  });

  test.each(["metadata", "falloc", "full"] as const)("preallocation %s", async (preallocation) => {
    for (const shape of [
      {},
      { extendedL2: true },
      { clusterSize: 512 },
      { refcountBits: 64, clusterSize: 4096 },
    ]) {
      const path = store(await create({ size: 3 * MiB + 512, preallocation, ...shape }), "image");
      const check = execFileSync("qemu-img", ["check", "--output=json", path], { encoding: "utf8" });
      const report = JSON.parse(check);
      expect(report).toMatchObject({ "check-errors": 0, "allocated-clusters": report["total-clusters"] });
      expect(report).not.toHaveProperty("leaks");
    }
  });

  test("a disk of 16 TiB takes little memory and space", async () => {
    const image = await create({ size: 16 * TiB });
    expect(image.pages.size).toBeLessThan(8);
    execFileSync("qemu-img", ["check", store(image, "image")]);
  });
});
