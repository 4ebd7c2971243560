import { execFileSync, spawnSync } from "node:child_process";
import { deflateRawSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { errorCode } from "../../base/errors.ts";
import { Prng } from "../../base/prng.ts";
import { KiB, MiB } from "../../base/units.ts";
import { decompressCluster } from "./compressed.ts";
import { CompressionType } from "./header.ts";
import { zstdFrame } from "./zstd-frame.ts";

const hasZstd = spawnSync("zstd", ["--version"]).status === 0;

/** Text-like, so that all parts of a decoder have work to do: literals, repeats, runs. */
function content(bytes: number, seed: number): Buffer {
  const random = new Prng(seed);
  const out = Buffer.alloc(bytes);
  let at = 0;
  while (at < bytes) {
    const length = Math.min(random.between(1, 4000), bytes - at);
    const kind = random.below(4);
    if (kind === 0) random.fill(out.subarray(at, at + length));
    else if (kind === 1) out.fill(random.below(256), at, at + length);
    else if (kind === 2 && at > 0) out.copy(out, at, random.below(at), at);
    else for (let i = at; i < at + length; i++) out[i] = 97 + random.below(random.between(2, 20));
    at += length;
  }
  return out;
}

/** The data in whole sectors, with what the next cluster left behind it. */
function sectors(data: Buffer): Buffer {
  return Buffer.concat([data, Buffer.alloc(512 - (data.length % 512) + 512, 0xa5)]);
}

function codeOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    return errorCode(error);
  }
  return "none";
}

describe.each([512, 4 * KiB, 64 * KiB, 256 * KiB, 2 * MiB])("zlib, clusters of %d bytes", (clusterSize) => {
  test("decodes what deflate with a window of 12 bits made, with trailing bytes", async () => {
    const plain = content(clusterSize, clusterSize);
    const output = Buffer.alloc(clusterSize);
    const packed = deflateRawSync(plain, { windowBits: 12 });
    await decompressCluster(CompressionType.ZLIB, sectors(packed), output);
    expect(output.equals(plain)).toBe(true);
  });

  test("refuses what decodes to less or to more than a cluster", async () => {
    for (const bytes of [clusterSize - 1, clusterSize + 1, clusterSize * 4]) {
      const packed = sectors(deflateRawSync(Buffer.alloc(bytes, 1)));
      const decode = async () => decompressCluster(CompressionType.ZLIB, packed, Buffer.alloc(clusterSize));
      await expect(decode()).rejects.toMatchObject({ code: "IMAGE_CORRUPT" });
    }
  });
});

test("zlib: data cut in its last bytes is refused, not padded", () => {
  const packed = deflateRawSync(content(64 * KiB, 3));
  const cut = packed.subarray(0, packed.length - 20);
  expect(codeOf(() => decompressCluster(CompressionType.ZLIB, cut, Buffer.alloc(64 * KiB)))).toBe(
    "IMAGE_CORRUPT",
  );
});

describe.skipIf(!hasZstd)("zstd (needs the zstd program)", () => {
  const pack = (plain: Buffer, ...args: string[]) =>
    execFileSync("zstd", ["-q", "-c", ...args, "--stream-size=" + plain.length], {
      input: plain,
      maxBuffer: 8 * MiB,
    });

  test.each([16, 512, 4 * KiB, 64 * KiB, 256 * KiB, 2 * MiB])(
    "clusters of %d bytes at several levels",
    async (size) => {
      for (const level of ["-1", "-3", "-12", "-19"]) {
        for (let seed = 1; seed <= (size > MiB ? 1 : 6); seed++) {
          const plain = content(size, seed);
          const output = Buffer.alloc(size, 0xff);
          await decompressCluster(CompressionType.ZSTD, sectors(pack(plain, level)), output);
          expect(output.equals(plain), `level ${level} seed ${seed}`).toBe(true);
        }
      }
    },
  );

  test("with a checksum and without a stated size", async () => {
    const plain = content(64 * KiB, 5);
    for (const args of [["--check"], ["--no-check"], ["--no-check", "--no-content-size"]]) {
      const output = Buffer.alloc(64 * KiB);
      await decompressCluster(CompressionType.ZSTD, sectors(pack(plain, ...args)), output);
      expect(output.equals(plain), args.join(" ")).toBe(true);
    }
  });

  test("refuses a frame of another size", () => {
    const packed = sectors(pack(content(32 * KiB, 5)));
    const decode = () => decompressCluster(CompressionType.ZSTD, packed, Buffer.alloc(64 * KiB));
    expect(codeOf(decode)).toBe("IMAGE_CORRUPT");
  });

  test("finds the end of a frame", () => {
    const packed = pack(content(64 * KiB, 9));
    expect(zstdFrame(sectors(packed))).toMatchObject({ bytes: packed.length, contentBytes: 64 * KiB });
  });

  test("random damage ends in an error or in wrong bytes, never in anything else (seed 77)", async () => {
    const random = new Prng(77);
    const packed = sectors(pack(content(64 * KiB, 11)));
    for (let round = 0; round < 300; round++) {
      const damaged = Buffer.from(packed);
      for (let n = random.between(1, 4); n > 0; n--) damaged[random.below(packed.length)] = random.below(256);
      const decode = async () => decompressCluster(CompressionType.ZSTD, damaged, Buffer.alloc(64 * KiB));
      await decode().catch((error) => expect(errorCode(error)).toBe("IMAGE_CORRUPT"));
    }
  });
});

test("zstd: a window that would take gigabytes is refused before it is allocated", () => {
  // No content size, window exponent 31: 2 TiB.
  const frame = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8, 0x01, 0x00, 0x00]);
  const decode = () => decompressCluster(CompressionType.ZSTD, frame, Buffer.alloc(64 * KiB));
  expect(codeOf(decode)).toBe("IMAGE_CORRUPT");
});
