// The commands of the human monitor: what they take, what they say, which QMP commands they make.
//
// An image may be named as device, node or file everywhere (names.ts). A job may be named by its id, or by
// the image that it works on.

import { BlockError } from "../../base/errors.ts";
import { isNodeName } from "../../block/graph.ts";
import type { BlockNode } from "../../block/node.ts";
import type { ArgumentSpec, ArgumentValues } from "./arguments.ts";
import { parseArguments, usageOf } from "./arguments.ts";
import {
  infoBlock,
  infoBlockJobs,
  infoChain,
  infoCounters,
  infoJobs,
  infoNamedBlockNodes,
  infoVersion,
} from "./info.ts";
import { splitLine } from "./line.ts";
import { findBase, findDevice, findImage } from "./names.ts";
import type { HmpTarget } from "./target.ts";

interface HmpCommand {
  readonly name: string;
  readonly arguments: readonly ArgumentSpec[];
  readonly help: string;
  /** The text to show; it ends with a newline, or is empty. */
  run(target: HmpTarget, values: ArgumentValues): Promise<string> | string;
}

const text = (name: string, optional = false): ArgumentSpec => ({ name, kind: "text", optional });
const bytes = (name: string, optional = false): ArgumentSpec => ({ name, kind: "size", optional });
const flag = (name: string): ArgumentSpec => ({ name, kind: "flag" });

function word(values: ArgumentValues, name: string): string {
  return values.get(name) as string;
}

// --- merging and snapshots ---------------------------------------------------------------------------------

async function blockStream(target: HmpTarget, values: ArgumentValues): Promise<string> {
  const name = word(values, "device");
  const top = findImage(target, name);
  const args: Record<string, unknown> = { device: top.name, "job-id": jobIdFor(target, name, top.name) };
  const base = values.get("base");
  if (base !== undefined) args["base-node"] = findBase(target, top, base as string).name;
  const speed = values.get("speed");
  if (speed !== undefined) args["speed"] = speed;
  await target.execute("block-stream", args);
  return "";
}

/** The name that the user gave, where it can be a job's; otherwise the node's; otherwise a made one. */
function jobIdFor(target: HmpTarget, name: string, nodeName: string): string {
  const device = findDevice(target, name)?.name ?? name;
  for (const id of [device, nodeName]) if (isNodeName(id)) return id;
  return `stream-${nodeName.replace(/[^A-Za-z0-9._-]/g, "")}`;
}

async function snapshotBlkdev(target: HmpTarget, values: ArgumentValues): Promise<string> {
  const node = findImage(target, word(values, "device"));
  const file = word(values, "new-image-file");
  await target.execute("blockdev-snapshot-sync", {
    "node-name": node.name,
    "snapshot-file": file,
    "snapshot-node-name": newNodeName(target, file),
    format: (values.get("format") as string | undefined) ?? "qcow2",
    mode: values.get("-n") === true ? "existing" : "absolute-paths",
  });
  return "";
}

/** From the file's name where that is free and can be one: disk.img gives disk. */
function newNodeName(target: HmpTarget, file: string): string {
  const taken = new Set([...target.nodes()].map((node) => node.name));
  const stem = (file.split("/").pop() ?? "").replace(/\.[^.]*$/, "");
  const candidate = isNodeName(stem) ? stem : "snapshot";
  for (let count = 1; ; count++) {
    const name = count === 1 ? candidate : `${candidate.slice(0, 24)}-${count}`;
    if (!taken.has(name)) return name;
  }
}

// --- jobs --------------------------------------------------------------------------------------------------

async function jobNamed(target: HmpTarget, name: string): Promise<string> {
  const jobs = (await target.execute("query-block-jobs", {})) as { device: string }[];
  const ids = jobs.map((job) => job.device);
  if (ids.includes(name)) return name;
  const device = findDevice(target, name);
  const other = [device?.name, device?.id, device?.node.name].find(
    (id) => id !== undefined && ids.includes(id),
  );
  if (other !== undefined) return other;
  const running = ids.length === 0 ? "there are none" : `there are: ${ids.join(", ")}`;
  throw new BlockError("JOB_NOT_ACTIVE", `Block job '${name}' not found; ${running}`);
}

function jobVerb(command: string, more: Record<string, unknown> = {}): HmpCommand["run"] {
  return async (target, values) => {
    await target.execute(command, { device: await jobNamed(target, word(values, "device")), ...more });
    return "";
  };
}

async function setSpeed(target: HmpTarget, values: ArgumentValues): Promise<string> {
  const device = await jobNamed(target, word(values, "device"));
  await target.execute("block-job-set-speed", { device, speed: values.get("speed") });
  return "";
}

async function cancel(target: HmpTarget, values: ArgumentValues): Promise<string> {
  const device = await jobNamed(target, word(values, "device"));
  await target.execute("block-job-cancel", { device, force: values.get("-f") === true });
  return "";
}

// --- the table ---------------------------------------------------------------------------------------------

interface InfoTopic {
  readonly help: string;
  /** Whether one image may be named after it. */
  readonly takesImage?: boolean;
  show(target: HmpTarget, image: BlockNode | undefined): Promise<string> | string;
}

const INFO: Readonly<Record<string, InfoTopic>> = {
  block: { help: "the devices that are served, or one image", takesImage: true, show: infoBlock },
  "block-jobs": { help: "merges and other block jobs under way", show: infoBlockJobs },
  chain: { help: "the images of each device, oldest first", show: infoChain },
  counters: { help: "requests, cluster locks, caches and flushes of each image", show: infoCounters },
  jobs: { help: "all jobs", show: infoJobs },
  "named-block-nodes": { help: "all nodes of the graph", show: infoNamedBlockNodes },
  version: { help: "the version of this daemon", show: infoVersion },
};

async function info(target: HmpTarget, values: ArgumentValues): Promise<string> {
  const topic = values.get("topic") as string | undefined;
  if (topic === undefined) {
    return Object.entries(INFO)
      .map(([name, { help, takesImage }]) => `info ${name}${takesImage ? " [device]" : ""} -- ${help}\n`)
      .join("");
  }
  const shown = Object.hasOwn(INFO, topic) ? INFO[topic] : undefined;
  if (shown === undefined) {
    throw new BlockError(
      "EINVAL",
      `unknown topic: 'info ${topic}'; there are: ${Object.keys(INFO).join(", ")}`,
    );
  }
  const name = values.get("device") as string | undefined;
  if (name !== undefined && shown.takesImage !== true) {
    throw new BlockError("EINVAL", `info ${topic}: extraneous characters at the end of line: '${name}'`);
  }
  return shown.show(target, name === undefined ? undefined : findImage(target, name));
}

const COMMANDS: readonly HmpCommand[] = [
  {
    name: "block_job_cancel",
    arguments: [flag("-f"), text("device")],
    help: "stop a job; the chain stays as it was (-f: also a paused one)",
    run: cancel,
  },
  {
    name: "block_job_complete",
    arguments: [text("device")],
    help: "bring a job that is ready to its end",
    run: jobVerb("block-job-complete"),
  },
  {
    name: "block_job_pause",
    arguments: [text("device")],
    help: "let a job stand still",
    run: jobVerb("block-job-pause"),
  },
  {
    name: "block_job_resume",
    arguments: [text("device")],
    help: "let a paused job go on",
    run: jobVerb("block-job-resume"),
  },
  {
    name: "block_job_set_speed",
    arguments: [text("device"), bytes("speed")],
    help: "limit a job to so many bytes per second (0: no limit; 10M: ten MiB)",
    run: setSpeed,
  },
  {
    name: "block_stream",
    arguments: [text("device"), text("base", true), bytes("speed", true)],
    help: "merge the images between base and device into device; without base, all of them",
    run: blockStream,
  },
  { name: "help", arguments: [text("command", true)], help: "this list, or one command of it", run: help },
  {
    name: "info",
    arguments: [text("topic", true), text("device", true)],
    help: "show what is there",
    run: info,
  },
  {
    name: "quit",
    arguments: [],
    help: "stop the daemon; everything is written first",
    run: async (target) => {
      await target.execute("quit", {});
      return "";
    },
  },
  {
    name: "snapshot_blkdev",
    arguments: [flag("-n"), text("device"), text("new-image-file"), text("format", true)],
    help: "put a new overlay on a device while the guest writes (-n: the file is there already)",
    run: snapshotBlkdev,
  },
];

/** QEMU's other names of the same command. */
const ALIASES: Readonly<Record<string, string>> = { "?": "help", q: "quit" };

export const HMP_COMMAND_NAMES: readonly string[] = COMMANDS.map((command) => command.name);
export const HMP_INFO_TOPICS: readonly string[] = Object.keys(INFO);

function help(_target: HmpTarget, values: ArgumentValues): string {
  const wanted = values.get("command") as string | undefined;
  const shown = wanted === undefined ? COMMANDS : COMMANDS.filter((each) => each.name === wanted);
  if (shown.length === 0) throw unknownCommand(wanted!);
  return shown
    .map((each) => `${[each.name, usageOf(each.arguments)].join(" ").trim()} -- ${each.help}\n`)
    .join("");
}

function unknownCommand(name: string): BlockError {
  return new BlockError("COMMAND_NOT_FOUND", `unknown command: '${name}'; see 'help'`);
}

/** Carries out one line; the text to show, empty for an empty line. @throws BlockError */
export async function runHmpLine(target: HmpTarget, line: string): Promise<string> {
  const [first, ...words] = splitLine(line);
  if (first === undefined) return "";
  const name = ALIASES[first] ?? first;
  const command = COMMANDS.find((each) => each.name === name);
  if (command === undefined) throw unknownCommand(first);
  return command.run(target, parseArguments(name, command.arguments, words));
}
