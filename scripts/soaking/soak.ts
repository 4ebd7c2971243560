// The run: lives of the daemon one after the other, each full of rounds.
//
//   life 1 (half of the time)                      life 2        life 3       ...
//   [round][round][round] ... [round]  SIGTERM     [round] ...   kill -9      [round] ...   quit
//
//   round: snapshots, merges with whatever may happen to them, faults, growth; then nobody does anything for
//   a moment, and what is still open is counted. Some rounds end with a check of every byte.
//
//   between two lives: qemu-img checks the chain, and every byte of a copy made by qemu-img is checked.

import { errorMessage } from "../../src/base/errors.ts";
import { Prng } from "../../src/base/prng.ts";
import { KiB, MiB } from "../../src/base/units.ts";
import { type Counts, noCounts } from "./counts.ts";
import type { GuestFigures } from "./guest.ts";
import { GuestProcess } from "./guest-process.ts";
import { CHAIN_BYTES, CHAIN_BYTES_MAX, ImageFolder, PLAIN, PLAIN_BYTES } from "./image-folder.ts";
import { lifeEnds } from "./life-ends.ts";
import {
  CHAIN_EXPORT,
  chainOptions,
  eventually,
  type Layer,
  LiveChain,
  WRITES_WITH_FAULTS,
} from "./live-chain.ts";
import { Merge, type MergePlan, planMerge, planMerges, randomSpeed } from "./merge.ts";
import { latencies, type Mark, type QuietPoint, type Sample } from "./samples.ts";
import { type Ending, SoakedDaemon } from "./soaked-daemon.ts";
import { Visitors } from "./visitors.ts";

const PLAIN_EXPORT = "plain";
const DISKS = [CHAIN_EXPORT, PLAIN_EXPORT] as const;
/** A chain that has as many images is merged before it gets another one. */
const LAYERS_MAX = 7;
/** More than faults can bring in their time. */
const MANY_ERRORS = 1_000_000;
const FAULT_MS_MAX = 3000;
const QUIET_MS_MAX = 10_000;

export interface SoakSettings {
  readonly seed: number;
  readonly seconds: number;
  readonly sampleSeconds: number;
  /** Where everything lies; there. */
  readonly folder: string;
  readonly tell: (line: string) => void;
}

export interface SoakResult {
  readonly seed: number;
  readonly seconds: number;
  readonly samples: readonly Sample[];
  readonly quietPoints: readonly QuietPoint[];
  readonly marks: readonly Mark[];
  readonly counts: Counts;
  /** What must not be: the run ended there. */
  readonly wrong: string | undefined;
}

/** What must not be has been seen: by the run itself or by one of the others. */
class Wrong extends Error {
  override readonly name = "Wrong";
}

export class Soak {
  readonly #settings: SoakSettings;
  readonly #prng: Prng;
  readonly #folder: ImageFolder;
  readonly #guests: GuestProcess;
  readonly #counts = noCounts();
  readonly #samples: Sample[] = [];
  readonly #quietPoints: QuietPoint[] = [];
  readonly #marks: Mark[] = [];
  readonly #startMs = performance.now();
  #wrong: string | undefined;
  #interrupted = false;
  #alarm!: (wrong: Wrong) => void;
  readonly #alarmed = new Promise<never>((_resolve, reject) => {
    this.#alarm = reject;
  });
  #life = 0;
  #chainBytes = CHAIN_BYTES;
  #nextJob = 1;
  #daemon: SoakedDaemon | undefined;
  #chain!: LiveChain;
  #visitors: Visitors | undefined;
  #sampling: Promise<void> | undefined;
  #sampledAt = 0;
  #toldMinute = 0;

  constructor(settings: SoakSettings) {
    this.#settings = settings;
    this.#prng = new Prng(settings.seed);
    this.#folder = new ImageFolder(settings.folder, this.#prng);
    this.#alarmed.catch(() => undefined);
    this.#guests = new GuestProcess((what) => this.#raise(what));
  }

  /** Ends the run at once; what was measured so far is its result. */
  interrupt(): void {
    this.#interrupted = true;
    this.#alarm(new Wrong("interrupted"));
  }

  /** Runs to the end of the time, or until something is wrong. */
  async run(): Promise<SoakResult> {
    let sampling: NodeJS.Timeout | undefined;
    try {
      await this.#makeGuests();
      const top = await this.#folder.create({ chainBytes: CHAIN_BYTES, plainBytes: PLAIN_BYTES });
      sampling = setInterval(() => {
        this.#sampling = this.#sample().catch((error: unknown) =>
          this.#raise(`a sample: ${errorMessage(error)}`),
        );
      }, this.#settings.sampleSeconds * 1000);
      await Promise.race([this.#lives(top), this.#alarmed]);
    } catch (error) {
      if (!this.#interrupted) this.#wrong ??= errorMessage(error);
    } finally {
      clearInterval(sampling);
      await this.#sampling;
      await this.#clearUp();
    }
    const { seed } = this.#settings;
    return {
      seed,
      seconds: this.#seconds(),
      samples: this.#samples,
      quietPoints: this.#quietPoints,
      marks: this.#marks,
      counts: this.#counts,
      wrong: this.#wrong,
    };
  }

  async #clearUp(): Promise<void> {
    this.#guests.close();
    // Not awaited: what a visitor waits for may never come.
    this.#visitors?.end().catch(() => undefined);
    // Whatever it says to that: it has been judged already.
    await this.#daemon?.end("kill").catch(() => undefined);
  }

  async #makeGuests(): Promise<void> {
    const mebibytesMax = CHAIN_BYTES_MAX / MiB;
    for (const disk of DISKS) {
      await this.#guests.call({ do: "make", disk, mebibytesMax, seed: this.#prng.below(2 ** 31) });
    }
  }

  async #lives(firstTop: string): Promise<void> {
    const ends = lifeEnds(this.#settings.seconds);
    const endings: Ending[] = ["kill", "terminate", "kill", "quit"];
    let top = firstTop;
    for (const [index, end] of ends.entries()) {
      // The last one in peace: then every byte that was answered must be there.
      const ending = index === ends.length - 1 ? "terminate" : endings[index % endings.length]!;
      await this.#begin(top);
      while (this.#seconds() < end) await this.#round();
      top = await this.#end(ending);
    }
  }

  // --- a life -------------------------------------------------------------------------------------------

  async #begin(top: string): Promise<void> {
    const layers = await this.#folder.chainOf(top);
    const how = this.#prng.pick(["named", "linked"] as const);
    const plainFile = `file.driver=file,file.filename=${this.#folder.file(PLAIN)},file.discard=unmap`;
    const options = [
      ...chainOptions(this.#folder, layers, how),
      ...["--blockdev", `driver=qcow2,node-name=${PLAIN_EXPORT},discard=unmap,${plainFile}`],
      ...["--export", `type=nbd,id=${PLAIN_EXPORT},name=${PLAIN_EXPORT},node-name=plain,writable=on`],
    ];
    const daemon = await SoakedDaemon.start(this.#settings.folder, options, (how) => this.#raise(how));
    this.#life++;
    this.#daemon = daemon;
    this.#chain = new LiveChain(daemon, this.#folder, top, this.#prng);
    for (const disk of DISKS) {
      await this.#guests.call({ do: "connect", disk, uri: daemon.uri(disk) });
    }
    if (this.#life === 1) for (const disk of DISKS) await this.#guests.call({ do: "fill", disk });
    await this.#checkDisks();
    await this.#guestsWork();
    this.#visitors = new Visitors({
      daemon,
      exports: DISKS,
      prng: new Prng(this.#prng.below(2 ** 31)),
      counts: this.#counts,
      wrong: (what) => this.#raise(what),
    });
    this.#visitors!.begin();
  }

  /** Ends it under load, mostly in a merge too, and judges what it leaves; gives the top. */
  async #end(ending: Ending): Promise<string> {
    if (this.#prng.chance(0.7)) await this.#startOfMerge();
    await this.#visitors!.end();
    for (const disk of DISKS) await this.#guests.call({ do: "expectLoss", disk });
    const daemon = this.#daemon!;
    this.#daemon = undefined;
    await daemon.end(ending);
    this.#marks.push({ seconds: this.#seconds(), what: ending });
    if (ending === "kill") this.#counts.kills++;
    else this.#counts.terminations++;
    const how = ending === "kill" ? "killed" : "asked";
    for (const disk of DISKS) await this.#guests.call({ do: "lost", disk, how });
    const { top } = this.#chain;
    await this.#judgeFiles(top);
    return top;
  }

  /** A merge that will not see its end. */
  async #startOfMerge(): Promise<void> {
    const layers = await this.#chain.layers();
    if (layers.length < 2) return;
    for (const plan of planMerges(this.#prng, layers.length)) {
      await this.#startMerge(layers, plan, { speed: 16 * MiB });
    }
    await rest(this.#prng.below(500));
  }

  async #judgeFiles(top: string): Promise<void> {
    const chain = await this.#folder.chainOf(top);
    for (const { name, format } of [...chain, { name: PLAIN, format: "qcow2" }]) {
      if (format === "qcow2") this.#counts.leaks += await this.#folder.leaksOf(name);
    }
    const kept = new Set([...chain.map(({ name }) => name), PLAIN]);
    for (const name of this.#folder.names()) if (!kept.has(name)) this.#folder.remove(name);
    for (const [disk, image] of [
      [CHAIN_EXPORT, top],
      [PLAIN_EXPORT, PLAIN],
    ] as const) {
      await this.#folder.withCopy(image, (filename) =>
        this.#guests.call({ do: "checkFile", disk, filename }),
      );
      this.#counts.copiesCompared++;
    }
  }

  // --- a round ------------------------------------------------------------------------------------------

  async #round(): Promise<void> {
    await this.#grow();
    await this.#merge();
    if (this.#prng.chance(0.15)) await this.#resize();
    await this.#quietPoint(this.#prng.chance(0.2));
    this.#counts.rounds++;
  }

  /** Snapshots until there is something to merge. */
  async #grow(): Promise<void> {
    const { length } = await this.#chain.layers();
    const wanted = this.#prng.between(3, LAYERS_MAX);
    for (let count = length; count < wanted; count++) {
      await this.#chain.snapshot();
      this.#counts.snapshots++;
      // So that each has something of its own.
      await rest(this.#prng.below(400));
    }
  }

  async #merge(): Promise<void> {
    const fault = this.#prng.pick(["none", "none", "none", "none", "full disk", "bad disk"] as const);
    if (fault === "bad disk") await this.#badDisk();
    const layers = await this.#chain.layers();
    const plans =
      fault === "bad disk"
        ? [planMerge(this.#prng, layers.length, 0)]
        : planMerges(this.#prng, layers.length);
    const merges: Merge[] = [];
    for (const plan of plans) {
      merges.push(await this.#startMerge(layers, plan, { meetsFault: fault !== "none" }));
    }
    if (fault === "full disk") await this.#fullDisk(merges[0]!);
    if (fault !== "none") await this.#endOfFaults();
    for (const merge of merges) await this.#disturb(merge, merges);
    await this.#endsOf(merges, { layers, mustWork: fault === "none" });
  }

  /** Judges how the merges end and what they leave; errors are wrong unless there were faults. */
  async #endsOf(
    merges: readonly Merge[],
    { layers, mustWork }: { layers: readonly Layer[]; mustWork: boolean },
  ): Promise<void> {
    const before = layers.map(({ name }) => name);
    const since = (await this.#chain.layers())
      .map(({ name }) => name)
      .filter((name) => !before.includes(name));
    let left = [...since, ...before];
    for (const merge of merges) {
      const end = await merge.end();
      if (typeof end === "object" && mustWork) throw new Wrong(`${merge.id} failed: ${end.error}`);
      if (end !== "completed") {
        this.#counts.unfinishedMerges++;
        continue;
      }
      this.#counts.merges++;
      left = left.filter((name) => !merge.dropped.some((layer) => layer.name === name));
    }
    await this.#chain.expectLayers(left, "a merge");
    const names = new Set(left);
    await this.#chain.dispose(
      merges.flatMap(({ dropped }) => dropped).filter(({ name }) => !names.has(name)),
    );
  }

  #startMerge(
    layers: readonly Layer[],
    plan: MergePlan,
    { speed = randomSpeed(this.#prng), meetsFault = false },
  ): Promise<Merge> {
    return Merge.start(this.#daemon!, layers, plan, {
      id: `merge-${this.#nextJob++}`,
      speed,
      onError: meetsFault ? this.#prng.pick(["stop", "enospc", "report", "ignore"]) : "report",
      finalizes: this.#prng.chance(0.2),
    });
  }

  async #disturb(merge: Merge, merges: readonly Merge[]): Promise<void> {
    await rest(this.#prng.below(300));
    const choice = this.#prng.below(8);
    if (choice === 0) {
      await merge.tell("job-pause");
      await merge.untilPaused();
      await merge.tell("job-resume");
    } else if (choice === 1) {
      await merge.tell("block-job-set-speed", { speed: randomSpeed(this.#prng) });
    } else if (choice === 2) {
      await merge.tell("job-cancel");
    } else if (choice === 3 && merges.every(({ top }) => top.name !== this.#chain.top)) {
      // An image that a job works on takes no snapshot.
      await this.#chain.snapshot();
      this.#counts.snapshots++;
    }
  }

  /** The host has no more room for the image that is merged into, until somebody has noticed. */
  async #fullDisk(merge: Merge): Promise<void> {
    await this.#beginOfFaults();
    const room = this.#prng.between(64, 2048) * KiB;
    this.#daemon!.limitFileBytes(this.#folder.lengthOf(merge.top.name) + room);
    const until = performance.now() + FAULT_MS_MAX;
    while ((await merge.status()) === "running" && performance.now() < until) await rest(50);
    this.#daemon!.limitFileBytes(undefined);
  }

  /** Some of the first writes to a new overlay fail, and reads from it. */
  async #badDisk(): Promise<void> {
    await this.#beginOfFaults();
    await this.#chain.faultySnapshot();
    this.#counts.snapshots++;
  }

  async #beginOfFaults(): Promise<void> {
    this.#counts.faults++;
    this.#visitors!.mayFail = true;
    await this.#allowErrors(MANY_ERRORS);
  }

  /** From now on nothing may fail. */
  async #endOfFaults(): Promise<void> {
    await this.#guests.call({ do: "afterWrites", disk: CHAIN_EXPORT, count: WRITES_WITH_FAULTS });
    await this.#guestsRest();
    await this.#allowErrors(0);
    await this.#guestsWork();
  }

  async #resize(): Promise<void> {
    const bytes = Math.min(CHAIN_BYTES_MAX, this.#chainBytes + this.#prng.between(1, 4096) * 512);
    if (bytes === this.#chainBytes) return;
    await this.#visitors!.end();
    await this.#guests.call({ do: "rest", disk: CHAIN_EXPORT });
    await this.#guests.call({ do: "disconnect", disk: CHAIN_EXPORT });
    await this.#chain.grow(bytes);
    this.#chainBytes = bytes;
    this.#counts.resizes++;
    this.#counts.snapshots++;
    await this.#guests.call({ do: "connect", disk: CHAIN_EXPORT, uri: this.#daemon!.uri(CHAIN_EXPORT) });
    await this.#guests.call({ do: "work", disk: CHAIN_EXPORT });
    this.#visitors!.begin();
  }

  /** Nobody does anything; then only what the chain needs may be open. */
  async #quietPoint(withCheck: boolean): Promise<void> {
    await this.#visitors!.end();
    await this.#guestsRest();
    const files = [...(await this.#chain.layers()).map(({ name }) => name), PLAIN].sort();
    const daemon = this.#daemon!;
    let opened: readonly string[] = [];
    const isClean = () => {
      opened = daemon.footprint(this.#folder.path)?.openImages ?? [];
      return [...new Set(opened)].sort().join() === files.join();
    };
    await eventually(isClean, `other files than ${files.join(" ")} are open`, QUIET_MS_MAX).catch((error) => {
      throw new Wrong(`${errorMessage(error)}: ${opened.join(" ")}`);
    });
    const { otherDescriptors } = daemon.footprint(this.#folder.path)!;
    this.#quietPoints.push({
      seconds: this.#seconds(),
      life: this.#life,
      layers: files.length - 1,
      imageDescriptors: opened.length,
      otherDescriptors,
    });
    if (withCheck) await this.#checkDisks();
    await this.#guestsWork();
    this.#visitors!.mayFail = false;
    this.#visitors!.begin();
  }

  async #checkDisks(): Promise<void> {
    for (const disk of DISKS) await this.#guests.call({ do: "checkDisk", disk });
    this.#counts.comparisons++;
  }

  // --- guests and samples -------------------------------------------------------------------------------

  async #allowErrors(count: number): Promise<void> {
    for (const disk of DISKS) await this.#guests.call({ do: "allowErrors", disk, count });
  }

  async #guestsRest(): Promise<void> {
    for (const disk of DISKS) await this.#guests.call({ do: "rest", disk });
  }

  async #guestsWork(): Promise<void> {
    for (const disk of DISKS) await this.#guests.call({ do: "work", disk });
  }

  async #sample(): Promise<void> {
    const footprint = this.#daemon?.footprint(this.#folder.path);
    const life = this.#life;
    const figures: GuestFigures[] = [];
    for (const disk of DISKS) {
      figures.push((await this.#guests.call({ do: "takeFigures", disk })) as GuestFigures);
    }
    const seconds = this.#seconds();
    const requests = figures.reduce((sum, each) => sum + each.latenciesMs.length + each.flushes, 0);
    this.#counts.requests += requests;
    for (const { bytes, failed } of figures) {
      this.#counts.bytes += bytes;
      this.#counts.failedRequests += failed;
    }
    const elapsed = seconds - this.#sampledAt;
    this.#sampledAt = seconds;
    if (footprint === undefined || this.#daemon === undefined || life !== this.#life) return;
    const names = this.#folder.names();
    const allocated = names.map((name) => this.#folder.allocatedBy(name));
    const plainAllocatedBytes = this.#folder.allocatedBy(PLAIN);
    this.#samples.push({
      seconds,
      life,
      memoryBytes: footprint.memoryBytes,
      threads: footprint.threads,
      descriptors: footprint.openImages.length + footprint.otherDescriptors,
      layers: names.length - 1,
      chainAllocatedBytes: allocated.reduce((sum, bytes) => sum + bytes, 0) - plainAllocatedBytes,
      plainAllocatedBytes,
      plainLengthBytes: this.#folder.lengthOf(PLAIN),
      requestsPerSecond: requests / elapsed,
      ...latencies(figures.slice(0, 1)),
    });
    this.#tellProgress(footprint.memoryBytes);
  }

  #tellProgress(memoryBytes: number): void {
    const minute = Math.floor(this.#seconds() / 60);
    if (minute === this.#toldMinute) return;
    this.#toldMinute = minute;
    const { merges, snapshots, faults, terminations, kills, requests } = this.#counts;
    this.#settings.tell(
      `${minute} min: ${requests} requests, ${merges} merges, ${snapshots} snapshots, ${faults} times faults, ` +
        `${terminations + kills} restarts; memory ${(memoryBytes / MiB).toFixed(0)} MiB`,
    );
  }

  #seconds(): number {
    return (performance.now() - this.#startMs) / 1000;
  }

  #raise(what: string): void {
    if (this.#interrupted) return;
    this.#wrong ??= what;
    this.#alarm(new Wrong(what));
  }
}

function rest(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
