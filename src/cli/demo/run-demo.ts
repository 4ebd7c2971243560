// The story that `strata demo` tells:
//
//   a guest with a file system works for five days; every evening a live snapshot     [A] <- [B] <- [C] <-
//   [D] <- [E] C is merged into D while it works                                                 [A] <- [B]
//   <- [D] <- [E] everything above A is merged into E while it works                                [A] <-
//   [E] B, C and D are deleted, and every byte is compared with what the guest wrote

import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { NbdClient } from "../../../nbd/client.ts";
import { Prng } from "../../base/prng.ts";
import { formatSize, MiB } from "../../base/units.ts";
import type { ChainReport } from "../../control/chain-report.ts";
import { createQcow2 } from "../../format/qcow2/create.ts";
import { hostImageFile } from "../../format/qcow2/image-file.ts";
import { createHostFile } from "../../sys/create-host-file.ts";
import { drawChain } from "../chain-picture.ts";
import type { CommandContext } from "../command-context.ts";
import { leave } from "../commands/stream.ts";
import { EXIT_CODES } from "../exit-codes.ts";
import { ExitRequest } from "../failure.ts";
import { watchJob } from "../job-watch.ts";
import { DemoDaemon } from "./demo-daemon.ts";
import {
  type Difference,
  differences,
  FILE_SYSTEM_BYTES,
  type FileSystemKind,
  fileSystemKind,
  fileSystemOfDay,
} from "./file-system.ts";
import { Guest } from "./guest.ts";
import { prove } from "./proof.ts";

export interface DemoSettings {
  readonly seed: number;
  /** Leaves the images where they are. */
  readonly keep: boolean;
  /** A folder to work in; otherwise one is made in the system's place for temporary files. */
  readonly directory?: string | undefined;
  /** Forces our own file system where ext4 could be made. */
  readonly fat: boolean;
}

const SCRATCH_BYTES = 32 * MiB;
const DISK_BYTES = FILE_SYSTEM_BYTES + SCRATCH_BYTES;
const DEVICE = "virtio0";
const INDENT = "  ";
/** How long a merge is made to take, by its speed limit, so that there is something to see. */
const MERGE_SECONDS = 4;
/** The day's changes that the guest makes while images are merged. */
const LAST_DAY = 6;
/** Images that begin with a live snapshot, and the day whose writes they hold. */
const SNAPSHOTS = [
  ["C", 3],
  ["D", 4],
  ["E", 5],
] as const;

/** Runs the demo. @throws BlockError with what is wrong, if anything is */
export async function runDemo(settings: DemoSettings, context: CommandContext): Promise<void> {
  const directory = mkdtempSync(path.join(settings.directory ?? tmpdir(), "strata-demo-"));
  const demo = new Demo(directory, settings, context);
  let interrupted = false;
  const forget = context.onInterrupt(() => {
    interrupted = true;
    void demo.end();
  });
  try {
    await demo.run();
  } catch (error) {
    if (interrupted) throw new ExitRequest(EXIT_CODES.INTERRUPTED.code, "the demo was stopped");
    throw error;
  } finally {
    forget();
    await demo.end();
    if (settings.keep) context.terminal.out(`\nThe images are in ${directory}\n`);
    else rmSync(directory, { recursive: true, force: true });
  }
}

class Demo {
  readonly #directory: string;
  readonly #settings: DemoSettings;
  readonly #context: CommandContext;
  readonly #fileSystem: FileSystemKind;
  #daemon!: DemoDaemon;
  #disk!: NbdClient;
  #guest!: Guest;
  /** The file system as it stood on the last day that the guest has reached. */
  #today!: Buffer;

  constructor(directory: string, settings: DemoSettings, context: CommandContext) {
    this.#directory = directory;
    this.#settings = settings;
    this.#context = context;
    this.#fileSystem = settings.fat ? "FAT16" : fileSystemKind();
  }

  async run(): Promise<void> {
    const start = this.#context.clock.nowMs();
    await this.#buildChain();
    await this.#draw(
      "Five images. The guest works on the top one, and goes on doing so during all that follows.",
    );
    this.#guest.write(this.#advance(LAST_DAY), this.#today);
    await this.#merge({ top: "D", base: "B", title: "C is merged into D:" });
    await this.#draw("[C] is gone from the chain:");
    await this.#merge({ top: "E", base: "A", title: "Everything above A is merged into E:" });
    await this.#draw("Two images are left:");
    await this.#finish();
    const seconds = ((this.#context.clock.nowMs() - start) / 1000).toFixed(0);
    this.#say(`\nEvery byte is what it should be. ${seconds} seconds, seed ${this.#settings.seed}.`);
  }

  /** Ends what runs, however far it got. */
  async end(): Promise<void> {
    this.#disk?.destroy();
    await this.#daemon?.kill();
  }

  #say(text: string): void {
    this.#context.terminal.out(`${text}\n`);
  }

  #file(name: string): string {
    return path.join(this.#directory, name === "A" ? "A.raw" : `${name}.qcow2`);
  }

  // --- the chain ---------------------------------------------------------------------------------

  async #buildChain(): Promise<void> {
    this.#say(
      `A disk of ${formatSize(DISK_BYTES)}: ${formatSize(FILE_SYSTEM_BYTES)} of ${this.#fileSystem} with files, ` +
        `${formatSize(SCRATCH_BYTES)} for random writes.\n`,
    );
    await this.#makeBase();
    await this.#makeOverlay();
    await this.#serve();
    this.#guest.work();
    await this.#liveDay(2);
    for (const [name, day] of SNAPSHOTS) {
      await this.#snapshot(name);
      await this.#liveDay(day);
    }
  }

  /** The first day as a raw image, as it is downloaded from a vendor of systems. */
  async #makeBase(): Promise<void> {
    this.#today = fileSystemOfDay(this.#fileSystem, 1, this.#directory);
    writeFileSync(this.#file("A"), this.#today);
    truncateSync(this.#file("A"), DISK_BYTES);
    this.#say("day 1   A.raw: the system as it was installed");
  }

  async #makeOverlay(): Promise<void> {
    const file = await createHostFile(this.#file("B"), { size: 0 });
    try {
      const backing = { backingFile: "A.raw", backingFormat: "raw" };
      await createQcow2(hostImageFile(file), { size: DISK_BYTES, ...backing });
    } finally {
      await file.close();
    }
  }

  async #serve(): Promise<void> {
    const backing = { driver: "raw", "node-name": "A", file: { driver: "file", filename: this.#file("A") } };
    const blockdev = {
      driver: "qcow2",
      "node-name": "B",
      file: { driver: "file", filename: this.#file("B") },
      backing: { ...backing, "read-only": true },
    };
    const exported = { type: "nbd", id: DEVICE, name: DEVICE, "node-name": "B", writable: true };
    const options = ["--blockdev", JSON.stringify(blockdev), "--export", JSON.stringify(exported)];
    this.#daemon = await DemoDaemon.start(this.#directory, this.#context.clock, options);
    this.#disk = await NbdClient.connect({ address: { path: this.#daemon.nbdSocket }, exportName: DEVICE });
    const reference = Buffer.alloc(DISK_BYTES);
    this.#today.copy(reference);
    this.#guest = new Guest(this.#disk, reference, FILE_SYSTEM_BYTES, new Prng(this.#settings.seed));
  }

  async #snapshot(name: string): Promise<void> {
    await this.#daemon.client.execute("blockdev-snapshot-sync", {
      "node-name": previousName(name),
      "snapshot-file": this.#file(name),
      "snapshot-node-name": name,
      format: "qcow2",
    });
  }

  /** The guest brings its file system to the state of a day; it scribbles elsewhere all the while. */
  async #liveDay(day: number): Promise<void> {
    this.#guest.write(this.#advance(day), this.#today);
    await this.#guest.caughtUp();
    const image = path.basename(this.#file("ABCDE"[day - 1]!));
    this.#say(`day ${day}   ${image}: what the guest wrote over NBD that day`);
  }

  #advance(day: number): Difference[] {
    const next = fileSystemOfDay(this.#fileSystem, day, this.#directory);
    const changes = differences(this.#today, next);
    this.#today = next;
    return changes;
  }

  // --- the merges --------------------------------------------------------------------------------

  async #merge({ top, base, title }: { top: string; base: string; title: string }): Promise<void> {
    const { terminal, clock } = this.#context;
    const id = `stream-${top}`;
    const report = await this.#report();
    const speed = Math.max(MiB, Math.round(bytesBetween(report, top, base) / MERGE_SECONDS));
    this.#say(
      `${title}\n  (strata) block_stream ${top} ${base}   at ${formatSize(speed)}/s, so that it can be watched\n`,
    );
    const { client } = this.#daemon;
    const settings = {
      client,
      id,
      label: `into ${top}`,
      terminal,
      clock,
      json: false,
      onInterrupt: () => () => undefined,
    };
    const before = this.#guest.counters.writes;
    const end = await Promise.race([
      watchJob(settings, () =>
        client.execute("block-stream", { "job-id": id, device: top, "base-node": base, speed }),
      ),
      this.#guest.whenWrong(),
    ]);
    leave(end, id);
    this.#say(`  ${this.#guest.counters.writes - before} writes of the guest meanwhile\n`);
  }

  #report(): Promise<ChainReport> {
    return this.#daemon.client.execute("x-strata-query-chain", { device: DEVICE }) as Promise<ChainReport>;
  }

  async #draw(title: string): Promise<void> {
    const report = await this.#report();
    const layers = report.layers.map((layer) => ({ ...layer, filename: path.basename(layer.filename) }));
    const columns = this.#context.terminal.columns - INDENT.length;
    const picture = drawChain({ device: DEVICE, report: { ...report, layers }, jobs: [] }, columns);
    this.#say(`\n${title}\n\n${indented(picture)}`);
  }

  // --- the end -----------------------------------------------------------------------------------

  async #finish(): Promise<void> {
    await this.#guest.rest();
    const { writes, writeBytes, zeroes, reads } = this.#guest.counters;
    this.#say(
      `The guest made ${writes} writes (${formatSize(writeBytes)}), ${zeroes} zeroings, ${reads} checked reads.`,
    );
    const tell = (line: string) => this.#say(`  ok  ${line}`);
    await this.#guest.compareAll();
    tell("all that the guest reads over NBD is what it wrote");
    await this.#disk.disconnect();
    await this.#daemon.quit();
    for (const name of ["B", "C", "D"]) rmSync(this.#file(name));
    tell("the daemon has ended, B, C and D are deleted");
    const { reference } = this.#guest;
    const claim = { image: this.#file("E"), chain: ["A", "E"], reference, fileSystem: this.#fileSystem };
    await prove({ ...claim, day: LAST_DAY, directory: this.#directory }, tell);
  }
}

function previousName(name: string): string {
  return String.fromCharCode(name.charCodeAt(0) - 1);
}

function indented(text: string): string {
  return text.replace(/^(?=.)/gm, INDENT);
}

/** Data that the images below `top` and above `base` hold: about what a merge copies. */
function bytesBetween(report: ChainReport, top: string, base: string): number {
  const names = report.layers.map((layer) => layer["node-name"]);
  const between = report.layers.slice(names.indexOf(top) + 1, names.indexOf(base));
  return between.reduce((sum, layer) => sum + layer.seen, 0);
}
