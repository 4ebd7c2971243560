// Hostile clients of the monitors, by seed: commands with any arguments, broken JSON, garbage, in any pieces.
//
//   1. A case has a daemon and files of its own, so it follows from its seed alone. Nothing listens or
//      connects beyond this machine, and nothing is written outside its folder.
//   2. Judged: each request that can be read has one answer, a result or an error of the world; whatever was
//      sent, the monitor then answers a sound request; the daemon ends.

import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { MemorySocket } from "../../../nbd/testing/memory-socket.ts";
import { systemClock } from "../../base/clock.ts";
import type { Logger } from "../../base/logger.ts";
import { Prng } from "../../base/prng.ts";
import { COMMANDS } from "../commands/all.ts";
import { Daemon } from "../daemon.ts";
import { parseDaemonOptions } from "../daemon-options.ts";
import { runStep } from "../daemon-steps.ts";
import { DRIVERS } from "../drivers.ts";
import { HmpMonitor } from "../hmp/monitor.ts";
import { HMP_PROMPT } from "../hmp/session.ts";
import { QmpMonitor } from "../qmp-monitor.ts";
import { systemWallClock } from "../wall-clock.ts";
import { hmpLine } from "./hmp-lines.ts";
import { makeQcow2Image, makeRawImage } from "./image-fixtures.ts";
import { type Sample, sampleOf, sampleText, type Words, withOneOdd } from "./schema-values.ts";

const SIZE = 1 << 18;
/** Turns of the loop within which an answer must have come: commands wait for files and sockets. */
const WAIT_MS_MAX = 20_000;
const INTERNAL =
  /TypeError|RangeError|AssertionError|Cannot read|is not a function|is not iterable|undefined/;

/** The daemon of one case. */
class Scene {
  readonly directory: string;
  readonly daemon: Daemon;
  /** What was logged as a mistake of the program. */
  readonly mistakes: string[] = [];

  private constructor(directory: string) {
    this.directory = directory;
    const silent = () => {};
    const logger: Logger = {
      debug: silent,
      info: silent,
      warn: silent,
      error: (message) => this.mistakes.push(message),
    };
    this.daemon = new Daemon({ drivers: DRIVERS, clock: systemClock, wallClock: systemWallClock, logger });
  }

  static async open(base: string, seed: number): Promise<Scene> {
    const directory = path.join(base, String(seed));
    mkdirSync(directory);
    const scene = new Scene(directory);
    makeRawImage(scene.at("A"), SIZE, true);
    makeQcow2Image(scene.at("B"), SIZE, { backing: { file: "A", format: "raw" }, patterned: true });
    makeQcow2Image(scene.at("C"), SIZE, { backing: { file: "B", format: "qcow2" } });
    const args = [
      "--blockdev",
      `qcow2,node-name=C,file.driver=file,file.filename=${scene.at("C")}`,
      "--nbd-server",
      `addr.type=unix,addr.path=${scene.at("nbd")}`,
      "--export",
      "nbd,id=virtio0,node-name=C,writable=on",
    ];
    for (const step of parseDaemonOptions(args).steps) await runStep(scene.daemon, step);
    return scene;
  }

  at(name: string): string {
    return path.join(this.directory, name);
  }

  words(): Words {
    const files = ["A", "B", "C", "new", "none/x"].map((name) => this.at(name));
    const names = [
      "C",
      "virtio0",
      "job0",
      "job1",
      "node0",
      ...[...this.daemon.graph.nodes].map((n) => n.name),
    ];
    return [
      ...files,
      ...files,
      ...names,
      ...names,
      this.at(""),
      `file:${this.at("A")}`,
      this.at("x\0y"),
      "#x",
    ];
  }

  async close(): Promise<void> {
    try {
      await this.daemon.shutDown().finally(() => this.daemon.chardevs.closeAll());
    } finally {
      rmSync(this.directory, { recursive: true, force: true });
    }
  }
}

/** What every fuzzer of a monitor has: a folder, and a way to know that something takes for ever. */
abstract class MonitorFuzz {
  readonly #base = mkdtempSync(path.join(tmpdir(), "monitor-fuzz-"));
  protected abstract converse(scene: Scene, prng: Prng): Promise<void>;

  async run(seed: number): Promise<void> {
    // A name without a folder is a file, too.
    const former = process.cwd();
    process.chdir(this.#base);
    try {
      await this.#run(seed);
    } finally {
      process.chdir(former);
    }
  }

  async #run(seed: number): Promise<void> {
    const scene = await Scene.open(this.#base, seed);
    try {
      await inTime(this.converse(scene, new Prng(seed)), "the conversation");
    } finally {
      // What a daemon cannot do at its end (a file that is gone) is no news here.
      await inTime(
        scene.close().catch(() => {}),
        "the end of the daemon",
      );
    }
    const mistake = scene.mistakes.find((message) => /^QMP|by a mistake|Error:.*\n\s+at /.test(message));
    if (mistake !== undefined) throw new Error(mistake);
  }

  close(): void {
    rmSync(this.#base, { recursive: true, force: true });
  }
}

async function inTime<T>(work: Promise<T>, what: string): Promise<T> {
  let cancel = () => {};
  const late = new Promise<never>((_, reject) => {
    cancel = systemClock.after(WAIT_MS_MAX, () => reject(new Error(`${what} takes for ever`)));
  });
  return Promise.race([work, late]).finally(() => cancel());
}

// --- QMP ---------------------------------------------------------------------------------------------------

export class QmpFuzz extends MonitorFuzz {
  answers = 0;
  results = 0;

  protected override async converse(scene: Scene, prng: Prng): Promise<void> {
    const socket = new MemorySocket();
    const peer = { input: socket, output: socket, close: () => socket.destroy() };
    new QmpMonitor(scene.daemon, { pretty: prng.chance(0.1) }).opened(peer);
    if (prng.chance(0.95)) socket.feed(Buffer.from('{"execute":"qmp_capabilities"}'));
    const ids: string[] = [];
    for (let count = prng.between(5, 25); count > 0; count--) {
      if (prng.chance(0.15)) {
        // 0xff ends what is open, whatever it was.
        feedInPieces(
          socket,
          Buffer.concat([junk(prng, scene.words()), Buffer.from("\xff\n", "latin1")]),
          prng,
        );
        continue;
      }
      const id = `id${ids.length}`;
      ids.push(id);
      const text = sampleText({ id, ...someRequest(prng, scene.words()) });
      feedInPieces(socket, Buffer.from(text), prng);
      if (prng.chance(0.3)) await systemClock.turn();
    }
    socket.feed(Buffer.from('{"execute":"query-version","id":"last"}'));
    const heard = await this.#hearUntil(socket, '"id": "last"');
    for (const id of ids) {
      const found = heard.split(`"id": "${id}"`).length - 1;
      if (found !== 1) throw new Error(`request ${id} has ${found} answers`);
    }
    const wrong = [...heard.matchAll(/"error": \{[^}]*\}/g)].find(([error]) => INTERNAL.test(error));
    if (wrong !== undefined) throw new Error(`an error of the program: ${wrong[0]}`);
    this.answers += ids.length;
    this.results += heard.split('"return"').length - 1;
    socket.destroy();
  }

  async #hearUntil(socket: MemorySocket, sign: string): Promise<string> {
    for (;;) {
      const heard = Buffer.concat(socket.received).toString();
      if (heard.includes(sign)) return heard;
      if (socket.destroyed) throw new Error("the monitor hung up");
      await systemClock.turn();
    }
  }
}

function feedInPieces(socket: MemorySocket, bytes: Buffer, prng: Prng): void {
  for (let at = 0; at < bytes.length; ) {
    const next = prng.chance(0.7) ? bytes.length : at + prng.between(1, 200);
    socket.feed(bytes.subarray(at, next));
    at = next;
  }
}

function someRequest(prng: Prng, words: Words): Record<string, Sample> {
  if (prng.chance(0.05))
    return prng.pick<Record<string, Sample>>([{ execute: 7 }, { execute: "x" }, {}, { a: 1 }]);
  const command = prng.pick(COMMANDS);
  let args = sampleOf(command.data, prng, words);
  if (prng.chance(0.3)) {
    const odd = [...withOneOdd(args)];
    args = prng.pick(odd);
  }
  return { execute: command.name, arguments: harmless(args) };
}

/**
 * Nothing that leaves this machine, takes the descriptors of this process, waits for somebody, or fills a
 * disk.
 */
export function harmless(value: Sample): Sample {
  if (typeof value !== "object" || value === null) return value;
  if (Array.isArray(value)) return value.map(harmless);
  const made: { [member: string]: Sample } = {};
  for (const [name, held] of Object.entries(value)) made[name] = harmless(held);
  if (typeof made["host"] === "string") made["host"] = "127.0.0.1";
  if (typeof made["port"] === "string") made["port"] = "0";
  if (typeof made["str"] === "string") made["str"] = "nothing";
  if (typeof made["fd"] === "string") made["fd"] = "nothing";
  if (made["type"] === "stdio") made["type"] = "null";
  if (made["type"] === "fd") made["type"] = "unix";
  if ("addr" in made) made["wait"] = false;
  delete made["preallocation"];
  return made;
}

function junk(prng: Prng, words: Words): Buffer {
  const kind = prng.below(5);
  if (kind === 0) return prng.fill(Buffer.alloc(prng.between(1, 300)));
  if (kind === 1) return Buffer.from(prng.pick(["[", "{", '{"a":', "[[[[{"]).repeat(prng.between(1, 2000)));
  if (kind === 2) return Buffer.from(`"${"x".repeat(prng.between(1, 100_000))}`);
  const text = Buffer.from(sampleText(someRequest(prng, words)));
  for (let count = prng.between(1, 4); count > 0; count--) text[prng.below(text.length)] = prng.below(256);
  return kind === 3 ? text : text.subarray(0, prng.below(text.length + 1));
}

// --- HMP ---------------------------------------------------------------------------------------------------

export class HmpFuzz extends MonitorFuzz {
  lines = 0;

  protected override async converse(scene: Scene, prng: Prng): Promise<void> {
    const socket = new MemorySocket();
    const peer = { input: socket, output: socket, close: () => socket.destroy() };
    new HmpMonitor(scene.daemon).opened(peer);
    const count = prng.between(3, 30);
    for (let line = 0; line < count; line++) {
      feedInPieces(socket, Buffer.concat([hmpLine(prng, scene.words()), Buffer.from("\n")]), prng);
    }
    socket.feed(Buffer.from("info version\n"));
    // The first prompt stands below the greeting.
    while (promptsIn(socket) < count + 2) {
      if (socket.destroyed) throw new Error("the monitor hung up");
      await systemClock.turn();
    }
    const shown = Buffer.concat(socket.received).toString();
    const wrong = shown.split("\n").find((line) => INTERNAL.test(line));
    if (wrong !== undefined) throw new Error(`an error of the program: ${wrong}`);
    if (promptsIn(socket) !== count + 2)
      throw new Error(`${promptsIn(socket)} prompts for ${count + 1} lines`);
    this.lines += count;
    socket.destroy();
  }
}

function promptsIn(socket: MemorySocket): number {
  return Buffer.concat(socket.received).toString().split(HMP_PROMPT).length - 1;
}
