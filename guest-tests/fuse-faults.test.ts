// Images on a file system in user space that fails when it is told to, and keeps its callers waiting: guests
// hear errors as errors, nothing wrong is mapped, and when the disk is good again all goes on. Who waits for
// a disk that is stuck is nobody else. Needs root, /dev/fuse, nbdkit and nbdfuse.

import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { NbdClient } from "../nbd/client.ts";
import { KiB, MiB } from "../src/base/units.ts";
import { Chain, checkForErrors, compareImages, linksOnDisk } from "./harness/chain.ts";
import { type Daemon, nbdServerArguments, startDaemon } from "./harness/daemon.ts";
import { FaultyFile, type FaultySettings } from "./harness/faulty-file.ts";
import { later } from "./harness/patience.ts";
import { codeOf, expectEither, expectPieces, fill, PIECE, piece } from "./harness/pieces.ts";
import { scratchDirectory } from "./harness/scratch.ts";
import { exportArguments } from "./harness/serve.ts";
import { run } from "./harness/tool.ts";

const missing = whatIsMissing();

function whatIsMissing(): string | undefined {
  if (process.getuid?.() !== 0) return "only root may mount";
  if (!existsSync("/dev/fuse")) return "this kernel has no /dev/fuse";
  const tools = spawnSync("sh", ["-c", "command -v nbdfuse && command -v nbdkit && nbdkit --dump-plugin sh"]);
  return tools.status === 0 ? undefined : "no nbdfuse, or no nbdkit with its sh plugin";
}

type Format = "raw" | "qcow2";
const DISK = 16 * MiB;
/** Pieces of the disk that its backing image holds. */
const BACKED = 8;
const OLD = Buffer.alloc(PIECE, 0xb0);
/** A faulty file does not grow; this is room for the tables and for leaks. */
const ROOM = 2 * DISK;

/** A disk of 16 MiB in a faulty file; a qcow2 stands over a good backing image. */
async function faultyDisk(format: Format, settings?: FaultySettings): Promise<FaultyFile> {
  const directory = scratchDirectory();
  const image = path.join(directory, "disk.img");
  if (format === "raw") return FaultyFile.of(image, DISK, settings);
  const base = path.join(directory, "base.img");
  await run("qemu-img", "create", "-q", "-f", "qcow2", base, String(DISK));
  await run("qemu-io", "-f", "qcow2", "-c", `write -q -P 0xb0 0 ${BACKED * PIECE}`, base);
  await run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image);
  return FaultyFile.of(image, ROOM, settings);
}

interface Served {
  readonly daemon: Daemon;
  readonly client: NbdClient;
}

/** Serves a file as "disk", and a good one as "other". */
async function serve(file: string, format: Format): Promise<Served> {
  const directory = scratchDirectory();
  const other = path.join(directory, "other.img");
  await run("qemu-img", "create", "-q", "-f", "raw", other, String(DISK));
  const daemon = await startDaemon(directory, [
    ...nbdServerArguments(directory),
    ...["--blockdev", `driver=${format},node-name=disk,file.driver=file,file.filename=${file}`],
    ...["--blockdev", `driver=raw,node-name=other,file.driver=file,file.filename=${other}`],
    ...exportArguments("disk", "disk"),
    ...exportArguments("other", "other"),
  ]);
  return { daemon, client: await NbdClient.connect(daemon.uri("disk")) };
}

async function end({ daemon, client }: Served): Promise<void> {
  await client.disconnect();
  await daemon.quit();
}

/** The image checks well by what the disk holds, whatever its file system still says. */
async function checkDisk(faulty: FaultyFile, format: Format): Promise<void> {
  if (format === "qcow2") await checkForErrors(faulty.disk);
}

const oldPiece = (format: Format, index: number) =>
  format === "qcow2" && index < BACKED ? OLD : Buffer.alloc(PIECE);

const title = `a disk on a faulty FUSE file system${missing === undefined ? "" : ` (skipped: ${missing})`}`;

describe.skipIf(missing !== undefined)(title, () => {
  describe.each(["raw", "qcow2"] as const)("as %s", (format) => {
    it.each(["EIO", "ENOSPC"] as const)(
      "answers writes with %s, and goes on when it is mended",
      async (errno) => {
        const faulty = await faultyDisk(format);
        const served = await serve(faulty.file, format);
        const { client } = served;
        await fill(client, 0, 4);
        await client.flush();
        faulty.fail("pwrite", errno);
        // Over what was written, over the backing image, and beyond it; whole clusters, and parts of some.
        for (const index of [2, 6, 20])
          expect(await codeOf(client.write(index * PIECE, piece(40)))).toBe(errno);
        const part = Buffer.alloc(3 * KiB, 41);
        expect(await codeOf(client.write(7 * PIECE + 70 * KiB, part))).toBe(errno);
        await faulty.forget();
        await expectPieces(client, 2);
        await expectEither(client, 2, piece(2), piece(40));
        for (const index of [6, 20]) await expectEither(client, index, oldPiece(format, index), piece(40));
        await expectEither(client, 7, oldPiece(format, 7), Buffer.alloc(PIECE, 41));
        faulty.mend("pwrite");
        expect(await fill(client, 2, 32)).toEqual({ next: 32, code: "ok" });
        await client.flush();
        await faulty.forget();
        await expectPieces(client, 32);
        await end(served);
        await checkDisk(faulty, format);
        const again = await serve(faulty.file, format);
        await expectPieces(again.client, 32);
        await end(again);
      },
    );

    it("answers reads with EIO, and with the bytes when it is mended", async () => {
      const faulty = await faultyDisk(format);
      const served = await serve(faulty.file, format);
      const { client } = served;
      await fill(client, 0, 8);
      await client.flush();
      await faulty.forget();
      faulty.fail("pread", "EIO");
      expect(await codeOf(client.read(0, PIECE))).toBe("EIO");
      expect(await codeOf(client.read(5 * PIECE, 512))).toBe("EIO");
      // Half of a sector's worth of old bytes cannot be had: a write that needs them must not make them up.
      const before = oldPiece(format, 8);
      const after = Buffer.from(before).fill(99, 4 * KiB, 4 * KiB + 512);
      const code = await codeOf(client.write(8 * PIECE + 4 * KiB, after.subarray(4 * KiB, 4 * KiB + 512)));
      faulty.mend("pread");
      await expectPieces(client, 8);
      if (code === "ok") await expectEither(client, 8, after);
      else await expectEither(client, 8, before, after);
      await end(served);
      await checkDisk(faulty, format);
    });

    it("answers a flush with EIO, and calls nothing durable until it is opened again", async () => {
      const faulty = await faultyDisk(format);
      const served = await serve(faulty.file, format);
      const { client } = served;
      await fill(client, 0, 4);
      await client.flush();
      await fill(client, 4, 8);
      faulty.fail("flush", "EIO");
      expect(await codeOf(client.flush())).toBe("EIO");
      expect(await codeOf(client.write(0, piece(0), { fua: true }))).toBe("EIO");
      faulty.mend("flush");
      // This file system would say yes now; the pages of another may be gone.
      expect(await codeOf(client.flush())).not.toBe("ok");
      expect(await codeOf(client.write(0, piece(0), { fua: true }))).not.toBe("ok");
      await expectPieces(client, 8);
      await client.disconnect();
      await served.daemon.kill();
      await checkDisk(faulty, format);
      const again = await serve(faulty.file, format);
      await expectPieces(again.client, 4);
      for (let index = 4; index < 8; index++) {
        await expectEither(again.client, index, oldPiece(format, index), piece(index));
      }
      expect(await fill(again.client, 4, 12)).toEqual({ next: 12, code: "ok" });
      await again.client.flush();
      await expectPieces(again.client, 12);
      await end(again);
      await checkDisk(faulty, format);
    });

    it.each(["pwrite", "pread", "flush"] as const)(
      "keeps nobody else waiting when a %s is stuck",
      async (call) => {
        const faulty = await faultyDisk(format);
        const served = await serve(faulty.file, format);
        const { daemon, client } = served;
        await fill(client, 0, 4);
        await client.flush();
        await fill(client, 0, 1);
        await faulty.forget();
        faulty.hold(call);
        const stuck: () => Promise<unknown> = {
          pwrite: () => client.write(0, piece(0)),
          pread: () => client.read(2 * PIECE, PIECE),
          flush: () => client.flush(),
        }[call];
        const answer = later(stuck());
        await faulty.held(call);
        expect(await daemon.qmp.execute("query-jobs")).toEqual([]);
        const other = await NbdClient.connect(daemon.uri("other"));
        expect(await fill(other, 0, 4)).toEqual({ next: 4, code: "ok" });
        await other.flush();
        await expectPieces(other, 4);
        await other.disconnect();
        faulty.release(call);
        await answer;
        await client.flush();
        await expectPieces(client, 4);
        await end(served);
        await checkDisk(faulty, format);
      },
    );
  });

  describe("a merge", () => {
    it.each([
      ["reads", "base", "pread", "EIO", "stop", "failed"],
      ["reads", "base", "pread", "ENOSPC", "enospc", "nospace"],
      ["writes", "top", "pwrite", "EIO", "stop", "failed"],
      ["writes", "top", "pwrite", "ENOSPC", "enospc", "nospace"],
    ] as const)(
      "whose %s of its %s fail (%s: %s) with on-error=%s waits, and goes on when the disk is mended",
      async (_what, where, call, errno, policy, ioStatus) => {
        const { daemon, faulty, copy, top } = await mergeable(where);
        const { qmp } = daemon;
        faulty.fail(call, errno);
        await qmp.execute("block-stream", { "job-id": "job", device: "top", "on-error": policy });
        // QEMU's word for whatever fails while a merge copies is "read".
        for (let round = 0; round < 2; round++) {
          const mark = qmp.mark;
          if (round > 0) await qmp.execute("block-job-resume", { device: "job" });
          const { data } = await qmp.waitFor(
            (event) => event.event === "BLOCK_JOB_ERROR",
            round > 0 ? mark : 0,
          );
          expect(data).toEqual({ device: "job", operation: "read", action: "stop" });
          await qmp.waitForStatus("job", "paused", round > 0 ? mark : 0);
          const [job] = (await qmp.execute("query-block-jobs")) as Record<string, unknown>[];
          expect(job).toMatchObject({ status: "paused", "io-status": ioStatus });
        }
        faulty.mend(call);
        await compareImages(daemon.uri("top"), copy);
        await qmp.execute("block-job-resume", { device: "job" });
        await qmp.waitForEnd("job");
        await compareImages(daemon.uri("top"), copy);
        await daemon.quit();
        expect(await linksOnDisk(top)).toEqual([path.basename(top)]);
        await compareImages(top, copy, "qcow2");
        await checkForErrors(top);
      },
    );

    it("whose result cannot be made durable fails, and the chain is the old one", async () => {
      const { daemon, faulty, copy, base } = await mergeable("top");
      const { qmp } = daemon;
      faulty.fail("flush", "EIO");
      await qmp.execute("block-stream", { "job-id": "job", device: "top" });
      await expect(qmp.waitForEnd("job")).rejects.toThrow("Input/output error");
      await compareImages(daemon.uri("top"), copy);
      await daemon.kill();
      const link = await run("qemu-img", "info", "--output=json", faulty.disk);
      expect((JSON.parse(link) as Record<string, string>)["backing-filename"]).toBe(path.basename(base));
      await checkForErrors(faulty.disk);
    });

    it("on a slow disk takes its time, and guests find their bytes", async () => {
      const { daemon, top } = await mergeable("base", { delayMs: 20 });
      const { qmp } = daemon;
      const client = await NbdClient.connect(daemon.uri("top"));
      await qmp.execute("block-stream", { "job-id": "job", device: "top" });
      const pieces = Array.from({ length: 40 }, (_, index) => index);
      await Promise.all(pieces.map((index) => client.write(index * PIECE, piece(index))));
      await expectPieces(client, 40);
      await qmp.waitForEnd("job");
      await expectPieces(client, 40);
      await client.disconnect();
      await daemon.quit();
      await checkForErrors(top);
    });
  });
});

/** [A] <- [B], one of them in a faulty file. */
async function mergeable(where: "base" | "top", settings?: FaultySettings) {
  const directory = scratchDirectory();
  const chain = await Chain.build(directory, { layers: 2, bytes: DISK, bytesPerLayer: 4 * MiB });
  const copy = await chain.copyOf("B");
  const files = { base: chain.file("A"), top: chain.file("B") };
  const faulty = await FaultyFile.of(files[where], ROOM, settings);
  const opened = { ...files, [where]: faulty.file };
  const daemon = await startDaemon(directory, [
    ...nbdServerArguments(directory),
    ...["--blockdev", `driver=qcow2,node-name=A,read-only=on,file.driver=file,file.filename=${opened.base}`],
    ...["--blockdev", `driver=qcow2,node-name=top,file.driver=file,file.filename=${opened.top},backing=A`],
    ...exportArguments("top", "top"),
  ]);
  return { daemon, faulty, copy, base: files.base, top: where === "top" ? faulty.disk : files.top };
}
